"""Cutting a recording into canonical segments and joining their stems again.

Cuts are absolute: segment i of a recording is the same stretch whoever computes it. Frames are latent frames
(hop_length samples). A segment's core belongs to it alone; the halo on either side is read for context.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# 0.2 s at 25 Hz: long enough that a difference between neighbours cannot click, short enough that frames which
# both segments computed from the same windows fill it (see Joiner).
FADE_FRAMES = 5


@dataclass(frozen=True, slots=True)
class Segment:
    """Core [core_start, core_end) and read range [start, end), in frames of the recording."""

    index: int
    count: int
    core_start: int
    core_end: int
    start: int
    end: int


def cut(total_frames: int, core_frames: int, halo_frames: int) -> list[Segment]:
    """Segments of a recording: core i is [i*core_frames, (i+1)*core_frames), the read range is halo wider.

    Both are clipped to the recording. Raises ValueError for an empty recording or core, or a negative halo.
    """
    if total_frames <= 0 or core_frames <= 0 or halo_frames < 0:
        raise ValueError(
            f"cannot cut {total_frames} frames into cores of {core_frames} with halo {halo_frames}: "
            "total and core must be positive, halo must not be negative"
        )
    starts = range(0, total_frames, core_frames)
    return [
        Segment(
            index=index,
            count=len(starts),
            core_start=start,
            core_end=min(start + core_frames, total_frames),
            start=max(start - halo_frames, 0),
            end=min(start + core_frames + halo_frames, total_frames),
        )
        for index, start in enumerate(starts)
    ]


def crossfade(tail: np.ndarray, head: np.ndarray) -> np.ndarray:
    """Linear fade from `tail` to `head`, both [..., samples] of the same stretch of time."""
    n = tail.shape[-1]
    rise = (np.arange(n, dtype=np.float32) + 0.5) / max(n, 1)
    return tail * (1 - rise) + head * rise


class Joiner:
    """Joins the stems of one recording's segments, in order, holding no more than one fade between calls.

    The fade ends at the core border: the frames just before it are covered by the same windows in both segments
    when cores are a multiple of the window stride, so there the neighbours agree.
    """

    def __init__(self, hop_length: int, fade_frames: int = FADE_FRAMES) -> None:
        self._hop = hop_length
        self._fade = fade_frames
        self._next = 0
        self._count: int | None = None
        self._tail: np.ndarray | None = None

    @property
    def finished(self) -> bool:
        """Whether the last segment has been added."""
        return self._next == self._count

    def add(self, segment: Segment, samples: np.ndarray) -> np.ndarray:
        """Take a segment's samples [..., n], its read range from `segment.start` on; return the finished ones.

        The results of all calls, laid end to end, are the recording. Raises ValueError when segments come out of
        order or `samples` does not reach the end of the core.
        """
        if segment.index != self._next or self.finished:
            raise ValueError(f"segment {self._next} expected, got segment {segment.index} of {segment.count}")
        last = segment.index == segment.count - 1
        core = (segment.core_start - segment.start) * self._hop
        core_end = samples.shape[-1] if last else (segment.core_end - segment.start) * self._hop
        missing = core_end - samples.shape[-1]
        if missing > 0 or core_end <= core:
            raise ValueError(
                f"segment {segment.index} of {segment.count}: {samples.shape[-1]} samples do not reach the end of "
                f"its core at sample {core_end}; give the whole read range"
            )
        keep = 0 if last else min(self._fade, segment.end - segment.core_end, segment.core_end - segment.core_start)
        parts = []
        if self._tail is not None:
            n = self._tail.shape[-1]
            if n > core:
                raise ValueError(f"segment {segment.index}: its halo is shorter than its neighbour's fade")
            parts.append(crossfade(self._tail, samples[..., core - n : core]))
        body_end = core_end - keep * self._hop
        parts.append(samples[..., core:body_end])
        self._tail = samples[..., body_end:core_end].copy() if not last else None
        self._next, self._count = self._next + 1, segment.count
        return np.concatenate(parts, axis=-1)
