"""Confidence intervals by resampling the items of a set (Efron, 1987), through scipy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

LEVEL = 0.95
RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A mean over `count` items and the bounds of its confidence interval; None where one item says nothing of spread.

    The interval is about other items drawn as these were. Items that share a recording are not independent, so it is
    too narrow for sets that repeat theirs often.
    """

    mean: float
    low: float | None
    high: float | None
    count: int

    def record(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def half_width(self) -> float:
        return 0.0 if self.low is None or self.high is None else (self.high - self.low) / 2

    def text(self, decimals: int = 2, factor: float = 1.0) -> str:
        mean = f"{self.mean * factor:.{decimals}f}"
        if self.low is None or self.high is None:
            return mean
        return f"{mean} [{self.low * factor:.{decimals}f}, {self.high * factor:.{decimals}f}]"


def mean_interval(values: Sequence[float], *, level: float = LEVEL, resamples: int = RESAMPLES) -> Interval:
    """Mean and percentile interval of `values` (at least one); the same numbers at every call.

    The percentile method, because BCa breaks down on shares near 0 or 1, such as "obeyed".
    """
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        raise ValueError("no values: a metric that no item has is left out, not averaged")
    mean = float(data.mean())
    if data.size < 2:
        return Interval(mean, None, None, int(data.size))
    if np.ptp(data) == 0:
        return Interval(mean, mean, mean, int(data.size))
    from scipy.stats import bootstrap  # half a second to import

    found = bootstrap(
        (data,),
        np.mean,
        confidence_level=level,
        n_resamples=resamples,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high), int(data.size))


def paired_interval(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Mean of `first - second` item by item: on the same items, far narrower than two intervals side by side."""
    if len(first) != len(second):
        raise ValueError(f"paired values belong to the same items, got {len(first)} and {len(second)}")
    return mean_interval([a - b for a, b in zip(first, second, strict=True)])
