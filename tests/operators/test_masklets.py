"""Masklets from phrases, boxes and points, on small random SAM models: streaming changes nothing, and forgets."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator

import pytest
import torch
from sam_models import small_sam2, small_sam3, small_tokenizer
from torch import Tensor
from transformers import Sam2VideoModel, Sam3VideoModel
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession
from transformers.models.sam3_video.modeling_sam3_video import Sam3VideoInferenceSession

from operators.errors import AssetError
from operators.masklet_sessions import follow_phrase, follow_points
from operators.masklets import Masklets, ObjectPrompt
from operators.sam_audio import CheckpointError

FRAMES = 24  # more than the 16 object pointers a model looks back on
# Every detection matches every track, and confirms it: one object stays, with a confirmed frame every other frame.
STEADY = {
    "hotstart_delay": 4,
    "hotstart_unmatch_thresh": 4,
    "hotstart_dup_thresh": 4,
    "assoc_iou_thresh": 0.0,
    "trk_assoc_iou_thresh": 0.0,
    "recondition_every_nth_frame": 2,
    "high_conf_thresh": 0.0,
    "high_iou_thresh": 0.0,
}
# No detection is like the one before: all objects are taken back within the delay.
FLEETING = {"hotstart_delay": 4, "hotstart_unmatch_thresh": 3, "hotstart_dup_thresh": 3}


def noise_video(count: int, side: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    still = torch.randn(3, side, side, generator=generator)
    return torch.stack([0.7 * still + 0.3 * torch.randn(3, side, side, generator=generator) for _ in range(count)])


def pictures(count: int, height: int = 48, width: int = 80) -> Iterator[tuple[float, Tensor]]:
    generator = torch.Generator().manual_seed(4)
    for i in range(count):
        yield i / 25, torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def sam2() -> Sam2VideoModel:
    return small_sam2()


@pytest.fixture(scope="module")
def sam3() -> Sam3VideoModel:
    return small_sam3(**STEADY)


@pytest.mark.parametrize("options", [STEADY, FLEETING], ids=["steady", "fleeting"])
def test_streamed_phrase_equals_the_whole_video_at_once(options: dict) -> None:
    model = small_sam3(**options)
    tokens = small_tokenizer()(["dog"], padding="max_length", max_length=32, return_tensors="pt")
    video = noise_video(FRAMES, 112)
    session = Sam3VideoInferenceSession(video=video, video_height=112, video_width=112, dtype=torch.float32)
    session.add_prompt("dog")
    session.prompt_input_ids[0], session.prompt_attention_masks[0] = tokens["input_ids"], tokens["attention_mask"]
    expected = []
    for out in model.propagate_in_video_iterator(session):
        hidden = session.hotstart_removed_obj_ids | out.suppressed_obj_ids
        expected.append([mask for number, mask in out.obj_id_to_mask.items() if number not in hidden])
    with torch.inference_mode():
        shown = ((i / 25, (112, 112), pixels) for i, pixels in enumerate(video))
        found = list(follow_phrase(model, shown, "dog", tokens["input_ids"], tokens["attention_mask"]))
    assert [seconds for seconds, _, _ in found] == [i / 25 for i in range(FRAMES)]
    for (_, _, logits), masks in zip(found, expected, strict=True):
        assert len(logits) == len(masks)
        torch.testing.assert_close(logits, torch.cat(masks) if masks else torch.zeros(0, 1, 1))
    assert any(len(logits) for _, _, logits in found) == (options is STEADY)


def test_streamed_points_equal_the_whole_video_at_once(sam2: Sam2VideoModel) -> None:
    video = noise_video(FRAMES, 64)
    coordinates, labels = torch.tensor([[[[20.0, 30.0]]]]), torch.tensor([[[1]]], dtype=torch.int32)
    session = Sam2VideoInferenceSession(video=video, video_height=64, video_width=64, dtype=torch.float32)
    session.add_point_inputs(session.obj_id_to_idx(1), 0, {"point_coords": coordinates, "point_labels": labels})
    session.obj_with_new_inputs = [1]
    with torch.inference_mode():
        expected = [sam2(session, frame_idx=i).pred_masks[:, 0] for i in range(FRAMES)]
        shown = ((i / 25, (64, 64), pixels) for i, pixels in enumerate(video))
        found = [logits for _, _, logits in follow_points(sam2, shown, coordinates, labels)]
    torch.testing.assert_close(torch.stack(found), torch.stack(expected))


def held_bytes() -> int:
    gc.collect()
    return sum(o.untyped_storage().nbytes() for o in gc.get_objects() if type(o) is Tensor)


@pytest.mark.parametrize("prompt", [ObjectPrompt(phrase="dog"), ObjectPrompt(box=(5, 5, 40, 30))], ids=["sam3", "sam2"])
def test_memory_does_not_grow_with_the_video(prompt: ObjectPrompt, sam2: Sam2VideoModel, sam3: Sam3VideoModel) -> None:
    masklets = Masklets(sam3=sam3, tokenizer=small_tokenizer(), sam2=sam2)
    held = {}
    for index, _ in enumerate(masklets.track(pictures(43), prompt)):
        if index in (21, 41):
            held[index] = held_bytes()
    # What stays of a confirmed frame is its object pointer: 512 bytes.
    assert held[41] - held[21] < 60_000


def test_masks_have_the_shape_of_the_picture_within_the_limit(sam2: Sam2VideoModel) -> None:
    masklets = Masklets(sam2=sam2, max_side=40)
    masks = [mask for _, mask in masklets.track(pictures(2, 48, 80), ObjectPrompt(points=((10, 10, True),)))]
    assert [(mask.shape, mask.dtype) for mask in masks] == [((24, 40), torch.bool)] * 2
    assert Masklets(sam2=sam2).mask_size(48, 80) == (48, 80)


def test_nothing_is_masked_before_the_object_is_pointed_at(sam2: Sam2VideoModel) -> None:
    prompt = ObjectPrompt(box=(5, 5, 60, 40), at_seconds=0.1)
    found = list(Masklets(sam2=sam2).track(pictures(6), prompt))
    assert [seconds for seconds, _ in found] == [i / 25 for i in range(6)]
    assert not any(mask.any() for seconds, mask in found if seconds < 0.1)
    later = list(Masklets(sam2=sam2).track(((s, p) for s, p in pictures(6) if s >= 0.1), prompt))
    for (_, mask), (_, alone) in zip(found[3:], later, strict=True):
        assert torch.equal(mask, alone)


def test_another_box_gives_another_masklet(sam2: Sam2VideoModel) -> None:
    boxes = [(1.0, 1.0, 20.0, 20.0), (50.0, 20.0, 79.0, 47.0)]
    drawn = [torch.stack([m for _, m in Masklets(sam2=sam2).track(pictures(3), ObjectPrompt(box=b))]) for b in boxes]
    assert not torch.equal(*drawn)


def test_bfloat16_draws_much_the_same(sam2: Sam2VideoModel) -> None:
    prompt = ObjectPrompt(points=((10, 10, True), (60, 40, False)))
    half = Masklets(sam2=copy.deepcopy(sam2).bfloat16(), dtype=torch.bfloat16)
    drawn = [
        torch.stack([m for _, m in masklets.track(pictures(3), prompt)]) for masklets in (Masklets(sam2=sam2), half)
    ]
    assert (drawn[0] & drawn[1]).sum() > 0.8 * (drawn[0] | drawn[1]).sum() > 0


def test_a_place_outside_the_picture_or_the_video_is_refused(sam2: Sam2VideoModel) -> None:
    masklets = Masklets(sam2=sam2)
    with pytest.raises(AssetError, match="outside the picture of 80 x 48"):
        list(masklets.track(pictures(2), ObjectPrompt(points=((81, 10, True),))))
    with pytest.raises(AssetError, match="ends before 9 s"):
        list(masklets.track(pictures(2), ObjectPrompt(points=((8, 10, True),), at_seconds=9)))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"phrase": " "},
        {"phrase": "dog", "box": (0, 0, 1, 1)},
        {"box": (5, 5, 5, 9)},
        {"box": (0, 0, float("nan"), 1)},
        {"points": ((1, 1, False),)},
        {"points": ((-1, 1, True),)},
        {"phrase": "dog", "at_seconds": -1.0},
    ],
)
def test_a_prompt_that_names_no_object_is_refused(given: dict) -> None:
    with pytest.raises(AssetError) as error:
        ObjectPrompt(**given)
    assert error.value.cause == "bad_prompt"


def test_a_model_that_is_not_there_is_named(tmp_path) -> None:
    masklets = Masklets(phrase_model=tmp_path / "sam3", point_model=tmp_path / "sam2")
    for prompt in (ObjectPrompt(phrase="dog"), ObjectPrompt(box=(1, 1, 9, 9))):
        with pytest.raises(CheckpointError, match=r"sam[23]"):
            list(masklets.track(pictures(1), prompt))
