"""When is there sound: spans of a signal that are not silent, and how well they agree with the spans asked for.

The numbers are those of facebookresearch/sam-audio (`ranking/sound_activity.py`), which measures with pydub on a 16-bit
copy of the signal at 24 kHz: integer samples, linear interpolation that rounds down, levels in whole steps.
All of that is rebuilt here, because a level on the wrong side of a threshold by one step moves a span by 10 ms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .config import ConfigError

ANALYSIS_RATE = 24_000
FRAMES_PER_MS = ANALYSIS_RATE // 1000
FULL_SCALE = 32_768
MIN_SILENCE_MS = 250
SEEK_STEP_MS = 10
PEAK_HOP_MS = 100
PIECE = 1 << 20
THRESHOLD_MODES = ("rel_to_max", "abs")

Span = tuple[float, float]


class Overlap(NamedTuple):
    """How two lists of spans agree, each 0 to 1 as long as no list overlaps itself."""

    iou: float
    recall: float
    precision: float


def active_spans(
    wav: Tensor, sample_rate: int, *, threshold_mode: str = "rel_to_max", sil_threshold: float = -40.0
) -> list[Span]:
    """Spans (start, end), in seconds, of `wav` [n] or [channels, n] that are not silent.

    Silence is at least 250 ms at a level (RMS over all channels) of at most `sil_threshold` dB, measured against the
    loudest 250 ms of the signal ("rel_to_max") or against full scale ("abs"). A shorter signal counts as sound as a
    whole; a longer one of zeros has no span. Raises ConfigError for another mode.
    """
    if threshold_mode not in THRESHOLD_MODES:
        raise ConfigError(
            f"sound_activity: threshold_mode must be one of {', '.join(THRESHOLD_MODES)}, got {threshold_mode!r}"
        )
    if sample_rate < 1:
        raise ValueError(f"sample_rate must be positive, got {sample_rate}")
    samples = _at_analysis_rate(_to_pcm16(wav), sample_rate)
    length = round(1000 * (samples.shape[1] / ANALYSIS_RATE))  # ms
    if length < MIN_SILENCE_MS:
        return [(0.0, round(length / 1000, 3))]
    levels = _Levels(samples, length)
    if threshold_mode == "rel_to_max":
        peak = max(levels.at(start) for start in range(0, length - MIN_SILENCE_MS + 1, PEAK_HOP_MS)) / FULL_SCALE
        sil_threshold = sil_threshold + (20 * math.log(peak, 10) if peak else -math.inf)
    silent = _silences(levels, length, 10 ** (sil_threshold / 20) * FULL_SCALE)
    if silent and silent[0] == (0, length):
        return []
    edges = [0, *(edge for span in silent for edge in span), length]
    sounding = list(zip(edges[::2], edges[1::2], strict=True))
    if silent and sounding[-1] == (length, length):
        sounding.pop()
    if silent and sounding[0] == (0, 0):
        sounding.pop(0)
    return [(round(start / 1000, 3), round(end / 1000, 3)) for start, end in sounding]


def overlap(hypothesis: Sequence[Span], reference: Sequence[Span]) -> Overlap:
    """Intersection over union, over the reference and over the hypothesis; 0 where the denominator is not positive.

    Spans that overlap inside one list count twice, as in the reference code.
    """
    heard, wanted = (sum(end - start for start, end in spans) for spans in (hypothesis, reference))
    common = sum(max(0, min(a[1], b[1]) - max(a[0], b[0])) for a in hypothesis for b in reference)
    union = sum(end - start for spans in (hypothesis, reference) for start, end in spans) - common
    return Overlap(*(common / whole if whole > 0 else 0.0 for whole in (union, wanted, heard)))


def _to_pcm16(wav: Tensor) -> np.ndarray:
    """[channels, n] int16, as FFmpeg and so torchcodec write float samples to a 16-bit file: nearest, half to even."""
    if wav.dim() not in (1, 2):
        raise ValueError(f"a signal must be [samples] or [channels, samples], got {list(wav.shape)}")
    samples = torch.atleast_2d(wav.detach().float().cpu()).numpy()
    out = np.empty(samples.shape, np.int16)
    for start in range(0, samples.shape[1], PIECE):
        piece = np.rint(samples[:, start : start + PIECE] * np.float32(FULL_SCALE))
        out[:, start : start + PIECE] = np.nan_to_num(piece).clip(-FULL_SCALE, FULL_SCALE - 1)
    return out


def _at_analysis_rate(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    """Linear interpolation [channels, n] int16 at 24 kHz, in the arithmetic of Python's former `audioop.ratecv`.

    Output k lies between the input samples n - 1 and n, n = ceil(k * in / out); there is silence before the first.
    Values are widened to 32 bits, cut towards zero, and narrowed by a shift, which rounds down.
    """
    if sample_rate == ANALYSIS_RATE or samples.shape[1] == 0:
        return samples
    divisor = math.gcd(sample_rate, ANALYSIS_RATE)
    rate_in, rate_out = sample_rate // divisor, ANALYSIS_RATE // divisor
    total = (samples.shape[1] - 1) * rate_out // rate_in + 1
    out = np.empty((samples.shape[0], total), np.int16)
    for start in range(0, total, PIECE):
        k = np.arange(start, min(start + PIECE, total), dtype=np.int64)
        n = -(-k * rate_in // rate_out)
        before = (n * rate_out - k * rate_in).astype(np.float64)  # weight of sample n - 1, out of rate_out
        current = samples[:, n].astype(np.float64) * 65_536
        previous = samples[:, n - 1].astype(np.float64) * 65_536
        previous[:, n == 0] = 0.0
        mixed = (previous * before + current * (rate_out - before)) / rate_out
        out[:, start : start + PIECE] = mixed.astype(np.int64) >> 16
    return out


class _Levels:
    """RMS of the 250 ms from any millisecond on, in whole 16-bit steps, rounded down."""

    def __init__(self, samples: np.ndarray, length_ms: int) -> None:
        self.channels = samples.shape[0]
        # One value a millisecond. The length is rounded to milliseconds: up to half of one is silence that pydub adds,
        # or is left out.
        energy = np.zeros(length_ms + 1, np.int64)
        for start in range(0, length_ms, PIECE // FRAMES_PER_MS):
            stop = min(start + PIECE // FRAMES_PER_MS, length_ms)
            piece = samples[:, start * FRAMES_PER_MS : stop * FRAMES_PER_MS].astype(np.int64)
            padded = np.zeros((stop - start) * FRAMES_PER_MS, np.int64)
            padded[: piece.shape[1]] = (piece * piece).sum(0)
            energy[start + 1 : stop + 1] = padded.reshape(-1, FRAMES_PER_MS).sum(1)
        self.sums = np.cumsum(energy)

    def at(self, start: int) -> int:
        total = int(self.sums[start + MIN_SILENCE_MS] - self.sums[start])
        return int(math.sqrt(total / (MIN_SILENCE_MS * FRAMES_PER_MS * self.channels)))


def _silences(levels: _Levels, length: int, threshold: float) -> list[tuple[int, int]]:
    """Silent (start, end) in milliseconds: windows at or below the threshold, joined where they touch."""
    last = length - MIN_SILENCE_MS
    starts = [*range(0, last + 1, SEEK_STEP_MS), *([last] if last % SEEK_STEP_MS else [])]
    silent: list[tuple[int, int]] = []
    for start in starts:
        if levels.at(start) > threshold:
            continue
        end = start + MIN_SILENCE_MS
        # A short blip that leaves no window free of silence does not split it.
        if silent and start <= silent[-1][1]:
            silent[-1] = (silent[-1][0], end)
        else:
            silent.append((start, end))
    return silent
