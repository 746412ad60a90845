"""What separators do to band gains, well or badly: gains [B, T, C] (share of the target in each band) in and out."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MUTED = 0.003


def _each(values: np.ndarray) -> Tensor:
    """One value a row, [B, 1, 1]."""
    return torch.from_numpy(values.astype(np.float32))[:, None, None]


def smeared(gain: Tensor, rng: np.random.Generator) -> Tensor:
    """Of every strength (an exponent), blurred over time and bands, with a floor through which the rest leaks."""
    count = len(gain)
    exponent = _each(np.exp(rng.uniform(np.log(0.3), np.log(3), count)))
    floor = _each(10 ** (rng.uniform(-60, -6, count) / 20))
    blur = (2 * int(rng.integers(0, 4)) + 1, 2 * int(rng.integers(0, 6)) + 1)
    soft = F.avg_pool2d(gain[:, None], blur, stride=1, padding=(blur[0] // 2, blur[1] // 2), count_include_pad=False)
    return floor + (1 - floor) * soft[:, 0] ** exponent


def fluttering(gain: Tensor, rng: np.random.Generator) -> Tensor:
    """Every band of every frame some dB up or down: musical noise."""
    spread = _each(rng.uniform(2, 15, len(gain)))
    flutter = torch.from_numpy(rng.standard_normal(gain.shape, dtype=np.float32)) * spread
    return (gain * 10 ** (flutter / 20)).clamp_max(2)


def muffled(gain: Tensor, rng: np.random.Generator) -> Tensor:
    """Nothing above a frequency, or nothing below one, or holes in time."""
    count, frames, bands = gain.shape
    kept = torch.ones_like(gain)
    for row in range(count):
        choice, at = rng.integers(3), int(rng.integers(bands // 5, bands - 10))
        if choice == 0:
            kept[row, :, at:] = MUTED
        elif choice == 1:
            kept[row, :, : at // 2] = MUTED
        else:
            dropped = torch.from_numpy(rng.random(-(-frames // 8)) < rng.uniform(0.1, 0.8))
            kept[row, dropped.repeat_interleave(8)[:frames]] = MUTED
    return gain * kept


def confused(gain: Tensor, rng: np.random.Generator) -> Tensor:
    """In doubt between target and rest, more or less, band by band and for moments: a network that is no good."""
    count, frames, bands = gain.shape
    coarse = rng.standard_normal((count, 1, -(-frames // 10) + 1, bands // 8), dtype=np.float32)
    doubt = F.interpolate(torch.from_numpy(coarse), (frames, bands), mode="bilinear")[:, 0]
    trust = _each(rng.uniform(-0.5, 3, count))
    return (torch.special.logit(gain, 0.003) * 0.5 * trust + 2 * doubt).sigmoid()


def exponent(gain: Tensor, rng: np.random.Generator, low: float, high: float) -> Tensor:
    """Over-suppressed for exponents above 1, under-suppressed below."""
    return gain ** _each(rng.uniform(low, high, len(gain)))
