"""SVG drawings of results: means with their intervals, and every item's value. Colours come from the page's style."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

from .bootstrap import Interval

WIDTH, LEFT, RIGHT, TOP = 860, 190, 24, 8
POINTS = 150  # of a strip at most; more are thinned evenly, the box is of all


@dataclass(frozen=True)
class Axis:
    """A linear axis over [low, high] with round ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]

    @classmethod
    def over(cls, values: Sequence[float], *, zero: bool) -> Axis:
        found = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
        low, high = min(found), max(found)
        if zero:
            low, high = min(low, 0.0), max(high, 0.0)
        if high - low < 1e-9:
            low, high = low - 0.5, high + 0.5
        rough = (high - low) / 6
        unit = 10 ** math.floor(math.log10(rough))
        step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= rough)
        low, high = math.floor(low / step) * step, math.ceil(high / step) * step
        count = round((high - low) / step)
        return cls(low, high, tuple(round(low + i * step, 10) for i in range(count + 1)))

    def x(self, value: float) -> float:
        return LEFT + (value - self.low) / (self.high - self.low) * (WIDTH - LEFT - RIGHT)


def intervals(cells: Mapping[str, Mapping[str, Interval]], systems: Sequence[str], unit: str) -> Markup:
    """Mean (dot) and confidence interval (bar) of every system, setting by setting."""
    bounds = [
        bound
        for row in cells.values()
        for cell in row.values()
        for bound in (cell.mean, cell.low, cell.high)
        if bound is not None
    ]
    axis = Axis.over(bounds, zero=unit == "dB")
    parts: list[str] = []
    y = float(TOP)
    for setting, row in cells.items():
        parts.append(_heading(setting, y))
        y += 24
        for number, system in enumerate(systems):
            if system not in row:
                continue
            cell = row[system]
            parts.append(_label(system, y))
            if cell.low is not None and cell.high is not None:
                parts.append(
                    f'<line class="bar s{number % 6}" x1="{axis.x(cell.low):.1f}" x2="{axis.x(cell.high):.1f}" '
                    f'y1="{y:.1f}" y2="{y:.1f}"/>'
                )
            parts.append(
                f'<circle class="dot s{number % 6}" cx="{axis.x(cell.mean):.1f}" cy="{y:.1f}" r="5">'
                f"<title>{escape(system)}: {escape(cell.text())} {escape(unit)}, {cell.count} items</title></circle>"
            )
            y += 22
        y += 10
    return _drawing(parts, axis, y, unit, "Means and confidence intervals")


def strips(
    values: Mapping[str, Mapping[str, Sequence[tuple[str, float]]]], systems: Sequence[str], unit: str
) -> Markup:
    """Every item (dot), quartiles (box) and median (line) of every system: `values[setting][system]`."""
    axis = Axis.over([v for row in values.values() for found in row.values() for _, v in found], zero=unit == "dB")
    parts: list[str] = []
    y = float(TOP)
    for setting, row in values.items():
        parts.append(_heading(setting, y))
        y += 30
        for number, system in enumerate(systems):
            found = row.get(system)
            if not found:
                continue
            quartiles = np.percentile([v for _, v in found], [25, 50, 75])
            left, middle, right = (axis.x(float(q)) for q in quartiles)
            parts.append(_label(system, y))
            parts.append(
                f'<rect class="box s{number % 6}" x="{left:.1f}" y="{y - 13:.1f}" '
                f'width="{max(right - left, 1):.1f}" height="26" rx="3"/>'
            )
            step = max(1, math.ceil(len(found) / POINTS))
            for place, (item, value) in enumerate(found[::step]):
                # Spread by the golden ratio: even, and the same at every drawing.
                shift = (place * 0.618034 % 1 - 0.5) * 20
                parts.append(
                    f'<circle class="point s{number % 6}" cx="{axis.x(value):.1f}" cy="{y + shift:.1f}" r="2.2">'
                    f"<title>{escape(item)}: {value:.2f} {escape(unit)}</title></circle>"
                )
            parts.append(
                f'<line class="median" x1="{middle:.1f}" x2="{middle:.1f}" y1="{y - 13:.1f}" y2="{y + 13:.1f}"/>'
            )
            y += 36
        y += 8
    return _drawing(parts, axis, y, unit, "Distribution over items")


def _heading(text: str, y: float) -> str:
    return f'<text class="heading" x="0" y="{y + 8:.1f}">{escape(text)}</text>'


def _label(text: str, y: float) -> str:
    shown = text if len(text) <= 26 else text[:25] + "…"
    return f'<text class="label" x="{LEFT - 12}" y="{y + 4:.1f}"><title>{escape(text)}</title>{escape(shown)}</text>'


def _drawing(parts: list[str], axis: Axis, y: float, unit: str, title: str) -> Markup:
    grid = []
    for tick in axis.ticks:
        x = axis.x(tick)
        kind = "zero" if tick == 0 else "grid"
        grid.append(f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{y:.1f}"/>')
        grid.append(f'<text class="tick" x="{x:.1f}" y="{y + 16:.1f}">{tick:g}</text>')
    unit_text = f'<text class="tick" x="{(LEFT + WIDTH - RIGHT) / 2:.1f}" y="{y + 34:.1f}">{escape(unit)}</text>'
    # All text in it is escaped above.
    return Markup(
        f'<svg class="chart" role="img" aria-label="{escape(title)}" viewBox="0 0 {WIDTH} {y + 42:.0f}">'
        + "".join(grid)
        + "".join(str(part) for part in parts)
        + unit_text
        + "</svg>"
    )
