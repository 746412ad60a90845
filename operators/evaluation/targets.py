"""What the shipped model is meant to reach, and whether it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .bootstrap import Interval


@dataclass(frozen=True)
class Target:
    """One aim: `found` is held against `wanted`; the interval says how sure that is."""

    what: str
    found: float
    wanted: float
    unit: str
    interval: Interval | None = None
    at_most: bool = False

    @property
    def met(self) -> bool:
        return self.found <= self.wanted if self.at_most else self.found >= self.wanted

    @property
    def verdict(self) -> str:
        """PASS, or by how much it is short; and whether chance could turn that round."""
        word = "PASS" if self.met else f"short of target by {abs(self.wanted - self.found):.2g}"
        bounds = self.interval
        if bounds and bounds.low is not None and bounds.high is not None and bounds.low < self.wanted < bounds.high:
            word += ", but the interval reaches past the aim" if self.met else ", but the interval reaches it"
        return word

    def record(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "found": self.found,
            "wanted": self.wanted,
            "unit": self.unit,
            "at_most": self.at_most,
            "met": self.met,
            "interval": None if self.interval is None else self.interval.record(),
        }


def table(targets: Sequence[Target]) -> str:
    width = max((len(t.what) for t in targets), default=0) + 2
    lines = [f"{'target':{width}}{'found':>24}{'wanted':>12}"]
    for t in targets:
        # Bounds in the value's own unit.
        bounds = f" [{t.interval.low:.2f}, {t.interval.high:.2f}]" if t.interval and t.interval.low is not None else ""
        sign = "<=" if t.at_most else ">="
        lines.append(f"{t.what:{width}}{f'{t.found:.2f}{bounds}':>24}{f'{sign} {t.wanted:g}':>9} {t.unit:5}{t.verdict}")
    return "\n".join(lines)
