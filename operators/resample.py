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

from operators.rates import ROLLOFF, ZERO_CROSSINGS, kernel_width, ratio, source_range

__all__ = ["StreamResampler", "polyphase", "resample_in_pieces", "resample_range", "source_range"]

# torchaudio stores one full row of `orig` taps a phase: gigabytes for two rates without a common divisor.
MAX_DENSE_TAPS = 1 << 23
OUTPUTS_PER_PIECE = 1 << 16
PIECE_VALUES = 1 << 26  # 256 MiB of float32


def resample_range(
    samples: np.ndarray, first: int, start: int, stop: int | None, rate_in: int, rate_out: int
) -> np.ndarray:
    """Output samples [start, stop) of a recording of which `samples` `[channels, n]` float32 begins at `first`.

    `first` comes from `source_range`. Where `samples` ends before its `last`, the recording is taken to end there, and
    so does the result: at ceil(length * rate_out / rate_in) on the output grid.
    """
    if rate_in == rate_out:
        return samples
    orig, new = ratio(rate_in, rate_out)
    offset = first // orig * new
    if samples.shape[1] == 0:
        return np.zeros((samples.shape[0], 0), np.float32)
    if new * (orig + 2 * kernel_width(orig, new)) <= MAX_DENSE_TAPS:
        # Half a gigabyte and seconds to import, which a worker spends on the first recording of another rate.
        import torch
        import torchaudio.functional

        whole = torchaudio.functional.resample(torch.from_numpy(samples), rate_in, rate_out).numpy()
    else:
        whole = _resample_sparse(samples, orig, new)
    return np.ascontiguousarray(whole[:, start - offset : None if stop is None else stop - offset])


def resample_in_pieces(
    samples: np.ndarray,
    first: int,
    start: int,
    stop: int | None,
    rate_in: int,
    rate_out: int,
    values: int = PIECE_VALUES,
) -> np.ndarray:
    """`resample_range`, so many input values at a time: the filter's copies of a long part would fill a machine."""
    if rate_in == rate_out or samples.size <= values:
        return resample_range(samples, first, start, stop, rate_in, rate_out)
    end = -(-(first + samples.shape[1]) * rate_out // rate_in)
    end = end if stop is None else min(stop, end)
    step = max(1, values // samples.shape[0] * rate_out // rate_in)
    pieces = []
    for begin in range(start, max(end, start + 1), step):
        until = min(begin + step, end)
        low, high = source_range(begin, until, rate_in, rate_out)
        part = samples[:, low - first : None if high is None else high - first]
        pieces.append(resample_range(part, low, begin, until, rate_in, rate_out))
    return np.concatenate(pieces, axis=1)


class StreamResampler:
    """Converts a recording that comes in pieces of any size, and keeps no more of it than the kernel reaches.

    The results of `add` and the last one of `finish`, laid end to end, are the recording converted at once, but for its
    end: it has floor(length * rate_out / rate_in) samples, at least one. So a recording that was converted to a higher
    rate and comes back has the length that it had.
    """

    def __init__(self, rate_in: int, rate_out: int) -> None:
        self._rates = rate_in, rate_out
        self._orig, self._new = ratio(rate_in, rate_out)
        self._held: np.ndarray | None = None  # [channels, n], the input from `_first` on
        self._first = 0
        self._done = 0  # output samples given out

    def add(self, samples: np.ndarray) -> np.ndarray:
        """Take the next samples `[channels, n]` float32; return the output samples `[channels, m]` that they settle."""
        if self._orig == self._new:
            return samples
        self._held = samples if self._held is None else np.concatenate([self._held, samples], axis=1)
        margin = math.ceil(kernel_width(self._orig, self._new) / self._orig) * self._orig
        blocks = (self._first + self._held.shape[1] - margin) // self._orig
        start, stop = self._done, blocks * self._new
        if stop <= start:
            return np.zeros((samples.shape[0], 0), np.float32)
        out = resample_range(self._held, self._first, start, stop, *self._rates)
        self._done = stop
        first, _ = source_range(stop, None, *self._rates)
        # A copy: the view would keep all of the input alive.
        self._held, self._first = self._held[:, first - self._first :].copy(), first
        return out

    def finish(self) -> np.ndarray:
        """The output samples that were waiting for their neighbours, `[channels, m]`; (0, 0) if nothing was added."""
        if self._held is None:
            return np.zeros((0, 0), np.float32)
        length = self._first + self._held.shape[1]
        total = max(min(length, 1), length * self._new // self._orig)
        return resample_range(self._held, self._first, self._done, total, *self._rates)


def polyphase(factor: int) -> tuple[int, np.ndarray]:
    """The kernel for `factor` times the rate: (neighbours on either side, weights `[factor, 2 * neighbours + 1]`).

    Output sample `t * factor + phase` is the sum of the inputs around `t` with the weights of its phase.
    """
    first, weights = _sparse_kernel(1, factor)
    side = -int(first[0])
    return side, weights[:, : 2 * side + 1]


@lru_cache(maxsize=4)
def _sparse_kernel(orig: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """The taps that are not zero, for each of the `new` phases: (first input index `[new]`, weights `[new, taps]`)."""
    width = kernel_width(orig, new)
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
    width = kernel_width(orig, new)
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
