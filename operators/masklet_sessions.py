"""Streaming a video of any length through transformers' SAM video models, in bounded memory.

Their sessions keep every frame and every output. What a forward pass can still look at is much less: the mask memory of
the last `num_maskmem` frames, the object pointers of the last `max_object_pointers_in_encoder`, and those of frames
where an object was found or confirmed. The rest is let go after each frame, which changes no result.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import Sam2VideoModel, Sam3VideoModel

# seconds, (height, width) of the picture, pixels [3, side, side]
Shown = tuple[float, tuple[int, int], Tensor]
# seconds, (height, width), mask logits [objects, h, w]
Followed = tuple[float, tuple[int, int], Tensor]

_LARGE = ("pred_masks", "high_res_masks")
_MEMORY = ("maskmem_features", "maskmem_pos_enc")


def follow_points(
    model: Sam2VideoModel, frames: Iterable[Shown], coordinates: Tensor, labels: Tensor
) -> Iterator[Followed]:
    """Follow the one object at `coordinates` [1, 1, n, 2] (`labels` [1, 1, n]) of the first frame."""
    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

    session = Sam2VideoInferenceSession(**_where(model))
    _announce(session, model)
    for index, (seconds, size, pixels) in enumerate(frames):
        session.add_new_frame(pixels, index)
        if index == 0:
            session.add_point_inputs(session.obj_id_to_idx(1), 0, {"point_coords": coordinates, "point_labels": labels})
            session.obj_with_new_inputs = [1]
        out = model(inference_session=session, frame_idx=index)
        _forget(session, index, model)
        yield seconds, size, out.pred_masks[:, 0]


def follow_phrase(
    model: Sam3VideoModel, frames: Iterable[Shown], phrase: str, ids: Tensor, mask: Tensor
) -> Iterator[Followed]:
    """Find and follow the objects that `phrase` (tokens `ids` and `mask`, [1, L]) names.

    Frames come out `hotstart_delay` frames late: by then the model has taken back objects that did not last.
    """
    from transformers.models.sam3_video.modeling_sam3_video import Sam3VideoInferenceSession

    session = Sam3VideoInferenceSession(**_where(model))
    number = session.add_prompt(phrase)
    session.prompt_input_ids[number], session.prompt_attention_masks[number] = ids, mask
    _announce(session, model.tracker_model)
    waiting: deque[tuple[float, tuple[int, int], dict[int, Tensor]]] = deque()

    def oldest() -> Followed:
        seconds, size, masks = waiting.popleft()
        kept = [logits for number, logits in masks.items() if number not in session.hotstart_removed_obj_ids]
        return seconds, size, torch.cat(kept) if kept else torch.zeros(0, 1, 1)

    for index, (seconds, size, pixels) in enumerate(frames):
        session.add_new_frame(pixels, index)
        out = model(inference_session=session, frame_idx=index)
        session.hotstart_removed_obj_ids.update(out.removed_obj_ids)
        visible = {number: m for number, m in out.obj_id_to_mask.items() if number not in out.suppressed_obj_ids}
        waiting.append((seconds, size, visible))
        _forget(session, index, model.tracker_model)
        _forget_history(session, index, model.hotstart_delay)
        if len(waiting) >= max(model.hotstart_delay, 1):
            yield oldest()
    while waiting:
        yield oldest()


def _where(model: Any) -> dict[str, Any]:
    device = model.device
    return {
        "inference_device": device,
        "inference_state_device": device,
        "video_storage_device": device,
        "dtype": model.dtype,
    }


def _announce(session: Any, tracker: Any) -> None:
    """Places for frames to come: with fewer frames than pointers, the model would scale their distances differently."""
    session.processed_frames = {i: torch.empty(0) for i in range(tracker.config.max_object_pointers_in_encoder)}


def _forget(session: Any, index: int, tracker: Any) -> None:
    """Let go of what no frame after `index` reads."""
    # An empty place stays: the model takes the number of places for the number of frames.
    session.processed_frames[index] = torch.empty(0)
    pointers_from = index + 2 - tracker.config.max_object_pointers_in_encoder
    memory_from = index + 2 - tracker.num_maskmem
    for outputs in session.output_dict_per_obj.values():
        recent, found = outputs["non_cond_frame_outputs"], outputs["cond_frame_outputs"]
        for frame in [f for f in recent if f < min(pointers_from, memory_from)]:
            del recent[frame]
        limit = tracker.config.max_cond_frame_num
        selected = set(found) if limit < 0 else set(sorted(found)[-limit:] if limit else ())
        for frame, output in [*recent.items(), *found.items()]:
            for name in _LARGE:
                output.pop(name, None)
            if frame < memory_from and frame not in selected:
                for name in _MEMORY:
                    output.pop(name, None)
    for inputs in (session.mask_inputs_per_obj, session.point_inputs_per_obj, session.frames_tracked_per_obj):
        for by_frame in inputs.values():
            for frame in [f for f in by_frame if f <= index]:
                del by_frame[frame]


def _forget_history(session: Any, index: int, delay: int) -> None:
    """Per-frame notes of SAM 3, which it copies at every frame: unbounded, they would make long videos slow."""
    for by_frame in (session.obj_id_to_tracker_score_frame_wise, session.suppressed_obj_ids):
        for frame in [f for f in by_frame if f < index]:
            del by_frame[frame]
    # Objects older than the delay are never taken back, so how often they were unmatched counts for nothing.
    settled = {number for number, first in session.obj_first_frame_idx.items() if first <= index - delay}
    for number in settled & set(session.unmatched_frame_inds):
        session.unmatched_frame_inds[number] = []
    for pair in [pair for pair in session.overlap_pair_to_frame_inds if pair[1] in settled]:
        del session.overlap_pair_to_frame_inds[pair]
