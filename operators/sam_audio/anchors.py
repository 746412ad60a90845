"""Span prompts: "+" (the target sounds here) and "-" (it does not), in seconds of the recording.

Source: facebookresearch/sam-audio, `sam_audio/processor.py` (ids and alignment) and `sam_audio/model/model.py`
(the embedding). An anchor is a tuple (token, start_seconds, end_seconds).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

NULL, PAD = 0, 3
TOKENS: dict[str, int] = {"<null>": NULL, "+": 1, "-": 2, "<pad>": PAD}
# The first two rows of every item's id list; its anchors follow.
LEADING_IDS = (NULL, PAD)

Anchor = tuple[str, float, float]


class AnchorError(ValueError):
    """An anchor that cannot be used: names it and says what is expected."""


def anchor_ids(anchors: Sequence[Anchor]) -> list[int]:
    """Token ids an alignment points into: `<null>`, `<pad>`, then one id an anchor, in order."""
    return [*LEADING_IDS, *(_token_id(anchor) for anchor in anchors)]


def anchor_frames(anchor: Anchor, sample_rate: int, hop_length: int) -> slice:
    """Frames [ceil(start*sr/hop), ceil(end*sr/hop)) of an anchor, in double precision and in this order.

    The order of operations decides on which side a boundary falls: 0.28 s at 48 kHz and hop 1920 is frame 8.
    """
    _token_id(anchor)
    _, start, end = anchor
    if not (math.isfinite(start) and math.isfinite(end)):
        raise AnchorError(f"anchor {anchor!r}: start and end must be finite seconds")
    return slice(math.ceil(start * sample_rate / hop_length), math.ceil(end * sample_rate / hop_length))


def seconds_of_frame(frame: int, sample_rate: int, hop_length: int) -> float:
    """Time at which a frame starts, in seconds; as an anchor's bound it means that frame and not the next.

    The quotient alone does not: 7 frames of 40 ms are 0.28 s, which is frame 8.
    """
    seconds = frame * hop_length / sample_rate
    while math.ceil(seconds * sample_rate / hop_length) > frame:
        seconds = math.nextafter(seconds, -math.inf)
    return seconds


def align(
    anchors: Sequence[Anchor],
    total_frames: int,
    *,
    sample_rate: int,
    hop_length: int,
    start: int = 0,
    stop: int | None = None,
) -> Tensor:
    """Alignment [stop - start] (int64) of absolute frames `start..stop` of a recording of `total_frames` frames.

    0 where no anchor lies, 2 + k on the frames of anchor k; later anchors overwrite earlier ones. Bounds past the
    recording are cut and negative ones count from its end (Python slices, as in the reference), so a window's
    alignment is exactly that stretch of the whole recording's.
    """
    stop = total_frames if stop is None else stop
    alignment = torch.zeros(stop - start, dtype=torch.int64)
    for k, anchor in enumerate(anchors):
        first, last, _ = anchor_frames(anchor, sample_rate, hop_length).indices(total_frames)
        alignment[max(first - start, 0) : max(last - start, 0)] = len(LEADING_IDS) + k
    return alignment


def align_batch(
    anchors: Sequence[Sequence[Anchor]] | None,
    audio_pad_mask: Tensor,
    *,
    sample_rate: int,
    hop_length: int,
) -> tuple[Tensor, Tensor]:
    """Ids [B, longest list] and alignment [B, T] of a zero-padded batch; both int64, on the mask's device.

    `audio_pad_mask` [B, T] is True on frames that exist; the others point at `<pad>` unless an anchor reaches
    into them. `anchors=None` means no anchors anywhere; an item without any has an empty list.
    """
    batch, frames = audio_pad_mask.shape
    per_item: Sequence[Sequence[Anchor]] = [()] * batch if anchors is None else anchors
    if len(per_item) != batch:
        raise AnchorError(f"anchors: {len(per_item)} lists for {batch} recordings; give one list a recording")
    lists = [anchor_ids(item) for item in per_item]
    longest = max(map(len, lists))
    ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in lists], dtype=torch.int64)
    spans = torch.stack([align(item, frames, sample_rate=sample_rate, hop_length=hop_length) for item in per_item]).to(
        audio_pad_mask.device
    )
    padding = torch.where(audio_pad_mask, NULL, LEADING_IDS.index(PAD))
    return ids.to(audio_pad_mask.device), torch.where(spans > 0, spans, padding)


def _token_id(anchor: Anchor) -> int:
    if len(anchor) != 3 or anchor[0] not in ("+", "-"):
        raise AnchorError(f"anchor {anchor!r}: expected ('+' or '-', start_seconds, end_seconds)")
    return TOKENS[anchor[0]]


class EmbedAnchors(nn.Module):
    """Adds a gated, projected token embedding to every frame (reference class of the same name)."""

    def __init__(self, num_anchors: int, embedding_dim: int, dim: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(num_anchors + 1, embedding_dim, padding_idx=num_anchors)
        self.proj = nn.Linear(embedding_dim, dim, bias=False)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids [B, T] to what is added to the frames, [B, T, D]."""
        table = self.proj(self.embed.weight) * torch.tanh(self.gate)  # four rows: project them, not T frames
        return nn.functional.embedding(tokens, table)
