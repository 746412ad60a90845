"""Which samples of a recording a range needs at another rate: arithmetic alone, for processes without torch."""

from __future__ import annotations

import math

# torchaudio's default kernel, which `operators.resample` reproduces.
ZERO_CROSSINGS = 6
ROLLOFF = 0.99


def source_range(start: int, stop: int | None, rate_in: int, rate_out: int) -> tuple[int, int | None]:
    """Input samples [first, last) that `resample_range` needs for the output samples [start, stop)."""
    if rate_in == rate_out:
        return start, stop
    orig, new = ratio(rate_in, rate_out)
    margin = math.ceil(kernel_width(orig, new) / orig) * orig
    first = max(0, start // new * orig - margin)
    return first, None if stop is None else -(-stop // new) * orig + margin


def ratio(rate_in: int, rate_out: int) -> tuple[int, int]:
    """Both rates without their common divisor."""
    divisor = math.gcd(rate_in, rate_out)
    return rate_in // divisor, rate_out // divisor


def kernel_width(orig: int, new: int) -> int:
    """Input samples on either side that an output sample depends on."""
    return math.ceil(ZERO_CROSSINGS * orig / (min(orig, new) * ROLLOFF))
