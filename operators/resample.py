"""Sample-rate conversion of a part of a recording that equals the same part of the whole, converted at once.

The kernel is torchaudio's default windowed sinc (Hann window, 6 zero crossings, roll-off 0.99), which the golden data
pin. It is periodic: with both rates divided by their common divisor, `new` output samples depend on `orig` input
samples and a few neighbours. A part that starts on a multiple of `orig` therefore sees the same kernel phases as the
whole recording, and a margin as long as the kernel gives it the same neighbours.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
import torchaudio.functional

ZERO_CROSSINGS = 6
ROLLOFF = 0.99
# torchaudio stores one full row of `orig` taps a phase: gigabytes for two rates without a common divisor.
MAX_DENSE_TAPS = 1 << 23
OUTPUTS_PER_PIECE = 1 << 16


def source_range(start: int, stop: int | None, rate_in: int, rate_out: int) -> tuple[int, int | None]:
    """Input samples [first, last) that `resample_range` needs for the output samples [start, stop)."""
    if rate_in == rate_out:
        return start, stop
    orig, new = _ratio(rate_in, rate_out)
    margin = math.ceil(_width(orig, new) / orig) * orig
    first = max(0, start // new * orig - margin)
    return first, None if stop is None else -(-stop // new) * orig + margin


def resample_range(
    samples: np.ndarray, first: int, start: int, stop: int | None, rate_in: int, rate_out: int
) -> np.ndarray:
    """Output samples [start, stop) of a recording of which `samples` `[channels, n]` float32 begins at `first`.

    `first` comes from `source_range`. Where `samples` ends before its `last`, the recording is taken to end there, and
    so does the result: at ceil(length * rate_out / rate_in) on the output grid.
    """
    if rate_in == rate_out:
        return samples
    orig, new = _ratio(rate_in, rate_out)
    offset = first // orig * new
    if samples.shape[1] == 0:
        return np.zeros((samples.shape[0], 0), np.float32)
    if new * (orig + 2 * _width(orig, new)) <= MAX_DENSE_TAPS:
        whole = torchaudio.functional.resample(torch.from_numpy(samples), rate_in, rate_out).numpy()
    else:
        whole = _resample_sparse(samples, orig, new)
    return np.ascontiguousarray(whole[:, start - offset : None if stop is None else stop - offset])


def _ratio(rate_in: int, rate_out: int) -> tuple[int, int]:
    divisor = math.gcd(rate_in, rate_out)
    return rate_in // divisor, rate_out // divisor


def _width(orig: int, new: int) -> int:
    return math.ceil(ZERO_CROSSINGS * orig / (min(orig, new) * ROLLOFF))


@lru_cache(maxsize=4)
def _sparse_kernel(orig: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """The taps that are not zero, for each of the `new` phases: (first input index `[new]`, weights `[new, taps]`)."""
    width = _width(orig, new)
    base = min(orig, new) * ROLLOFF
    phase = np.arange(new)
    first = phase * orig // new - width
    inputs = first[:, None] + np.arange(2 * width + 2)
    time = np.clip((inputs / orig - phase[:, None] / new) * base, -ZERO_CROSSINGS, ZERO_CROSSINGS)
    window = np.cos(time * np.pi / ZERO_CROSSINGS / 2) ** 2
    return first, (np.sinc(time) * window * (base / orig)).astype(np.float32)


def _resample_sparse(samples: np.ndarray, orig: int, new: int) -> np.ndarray:
    """Same sums as torchaudio's for `samples` `[channels, n]`, without its zeros."""
    first, weights = _sparse_kernel(orig, new)
    width = _width(orig, new)
    total = -(-samples.shape[1] * new // orig)
    padded = np.pad(samples, ((0, 0), (width, width + 2)))
    out = np.empty((samples.shape[0], total), np.float32)
    taps = np.arange(weights.shape[1])
    for begin in range(0, total, OUTPUTS_PER_PIECE):
        index = np.arange(begin, min(begin + OUTPUTS_PER_PIECE, total))
        block, phase = np.divmod(index, new)
        inputs = (block * orig + first[phase] + width)[:, None] + taps
        for channel in range(samples.shape[0]):
            out[channel, index] = np.einsum("nt,nt->n", padded[channel][inputs], weights[phase])
    return out
