"""Multi-diffusion windows on a recording's absolute frame grid.

Windows start at 0, S, 2S, ... of the *recording*, the last one moved back to end with it; a recording shorter than a
window is one window of its own length. An excerpt uses exactly those windows that lie fully inside it, so nothing
depends on how a recording was cut apart (SAM-Audio paper, long-form section, for the soft masks).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from .config import LongFormConfig


@dataclass(frozen=True)
class Window:
    """`frames` frames from row `start` of the concatenated states of all excerpts; `excerpt` is its index."""

    excerpt: int
    start: int
    frames: int

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + self.frames)


def window_starts(total_frames: int, long_form: LongFormConfig) -> list[int]:
    """First frames of a recording's windows."""
    last = total_frames - long_form.window
    return [0] if last <= 0 else [*range(0, last, long_form.stride), last]


def windows_inside(start: int, end: int, total_frames: int, long_form: LongFormConfig) -> list[tuple[int, int]]:
    """(first frame, frames) of the recording's windows that lie in [start, end)."""
    length = min(long_form.window, total_frames)
    firsts = window_starts(total_frames, long_form)
    return [(first, length) for first in firsts if start <= first and first + length <= end]


def soft_mask(frames: int) -> Tensor:
    """Triangle [frames], positive everywhere, so that a frame which one window covers alone keeps its value."""
    rise = torch.arange(frames) + 0.5
    return torch.minimum(rise, rise.flip(0))


def stack(rows: Tensor, windows: Sequence[Window]) -> Tensor:
    """[B, frames, ...] of windows of one length, from rows [sum of T, ...]."""
    return torch.stack([rows[w.rows] for w in windows])


class Merge:
    """Weighs what windows say about each frame by normalised soft masks."""

    def __init__(self, windows: Sequence[Window], rows: int, window_batch: int, device: torch.device) -> None:
        self._masks = {n: soft_mask(n).to(device)[:, None] for n in {w.frames for w in windows}}
        self._batches = list(_batches(windows, window_batch))
        weight = torch.zeros(rows, 1, device=device)
        for w in windows:
            weight[w.rows] += self._masks[w.frames]
        self.covered = weight > 0  # [rows, 1]
        self._weight = weight.clamp_min(1e-6)

    def __call__(self, like: Tensor, evaluate: Callable[[list[Window]], Tensor]) -> Tensor:
        """`evaluate` gives [B, frames, C] for a batch of windows of one length; the merged [rows, C]."""
        merged = torch.zeros_like(like)
        for batch in self._batches:
            out = evaluate(batch) * self._masks[batch[0].frames]
            # One window after the other: a scatter would add overlapping windows in any order.
            for w, values in zip(batch, out, strict=True):
                merged[w.rows] += values
        return merged / self._weight


def _batches(windows: Sequence[Window], size: int) -> Iterator[list[Window]]:
    """Windows of equal length in groups of at most `size`; nothing is ever padded."""
    for _, group in groupby(sorted(windows, key=lambda w: w.frames), key=lambda w: w.frames):
        same = list(group)
        yield from (same[i : i + size] for i in range(0, len(same), size))
