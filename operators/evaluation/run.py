"""Systems over a set: one row a system and item, with every metric, and the rows of a run summed up."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import AssetError
from .bootstrap import Interval, mean_interval, paired_interval
from .items import EvaluationSet, Item, SetError
from .reference_free import Metric
from .systems import System

Row = dict[str, Any]
# Columns of a row that are no metric.
FIXED = ("index", "item_id", "setting", "system", "description", "seconds", "cpu_seconds", "wall_seconds", "error")
# The first of these that a run has orders examples and draws the distributions.
MAIN = ("si_sdri_db", "judge_overall", "clap", "dnsmos_ovrl", "aesthetics_pq")


def evaluate_item(index: int, item: Item, systems: Sequence[System], metrics: Sequence[Metric]) -> Iterator[Row]:
    """Rows of the systems that have something to say about an item; a system's failure is a row with `error`."""
    for system in systems:
        row: Row = {
            "index": index,
            "item_id": item.item_id,
            "setting": item.setting,
            "system": system.name,
            "description": item.description,
            "seconds": item.seconds,
        }
        cpu, wall = time.process_time(), time.perf_counter()
        try:
            estimate = system(item)
            row |= {"cpu_seconds": time.process_time() - cpu, "wall_seconds": time.perf_counter() - wall}
            if estimate is None:
                continue
            if estimate.shape != item.mixture.shape or not np.isfinite(estimate).all():
                raise ValueError(f"{system.name} gave {list(estimate.shape)} for {list(item.mixture.shape)}, or NaN")
            for metric in metrics:
                row |= metric(item, estimate)
        except (AssetError, SetError, ValueError, RuntimeError) as error:
            row["error"] = f"{type(error).__name__}: {error}"
        yield row


def evaluate(
    items: EvaluationSet, systems: Sequence[System], metrics: Sequence[Metric], indices: Iterable[int] | None = None
) -> Iterator[list[Row]]:
    """The rows of each item in turn; an item that cannot be made gives one row without a system."""
    for index in range(len(items)) if indices is None else indices:
        try:
            item = items[index]
        except (AssetError, SetError) as error:
            yield [{"index": index, "error": f"{type(error).__name__}: {error}"}]
            continue
        yield list(evaluate_item(index, item, systems, metrics))


@dataclass(frozen=True)
class Summary:
    """Means with confidence intervals: `cells[metric][setting][system]`.

    differences: of the first system to each other one, item by item, on `main`: `differences[setting][system]`.
    x_real_time: audio seconds for one CPU second of all threads, by system.
    """

    settings: list[str]
    systems: list[str]
    metrics: list[str]
    main: str | None
    cells: dict[str, dict[str, dict[str, Interval]]]
    differences: dict[str, dict[str, Interval]]
    x_real_time: dict[str, float]
    failed: list[Row] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        return {
            "main_metric": self.main,
            "settings": {
                setting: {
                    system: {
                        metric: self.cells[metric][setting][system].record()
                        for metric in self.metrics
                        if system in self.cells[metric].get(setting, {})
                    }
                    for system in self.systems
                }
                for setting in self.settings
            },
            "paired_differences": {
                "of": self.systems[0] if self.systems else None,
                "metric": self.main,
                "to": {s: {k: v.record() for k, v in row.items()} for s, row in self.differences.items()},
            },
            "x_real_time_per_cpu_second": self.x_real_time,
            "failed": [{k: row.get(k) for k in ("item_id", "index", "system", "error")} for row in self.failed],
        }


def summarise(rows: Sequence[Row], columns: Sequence[str]) -> Summary:
    """Sum up the rows of a run. `columns`: of the metrics that were asked, in their order."""
    good = [row for row in rows if not row.get("error")]
    settings = list(dict.fromkeys(row["setting"] for row in good))
    systems = list(dict.fromkeys(row["system"] for row in good))
    present = [c for c in columns if any(c in row for row in good)]
    values: dict[tuple[str, str, str], dict[int, float]] = {}
    for row in good:
        for column in present:
            value = row.get(column)
            if value is not None and math.isfinite(value):
                values.setdefault((column, row["setting"], row["system"]), {})[row["index"]] = value
    cells: dict[str, dict[str, dict[str, Interval]]] = {}
    for (column, setting, system), found in values.items():
        cells.setdefault(column, {}).setdefault(setting, {})[system] = mean_interval(list(found.values()))
    main = next((c for c in MAIN if c in present), present[0] if present else None)
    differences: dict[str, dict[str, Interval]] = {}
    for setting in settings:
        for other in systems[1:]:
            a, b = (values.get((main or "", setting, s), {}) for s in (systems[0], other))
            common = sorted(set(a) & set(b))
            if common:
                differences.setdefault(setting, {})[other] = paired_interval(
                    [a[i] for i in common], [b[i] for i in common]
                )
    speed = {}
    for system in systems:
        mine = [row for row in good if row["system"] == system]
        cpu = sum(row["cpu_seconds"] for row in mine)
        speed[system] = sum(row["seconds"] for row in mine) / max(cpu, 1e-9)
    failed = [row for row in rows if row.get("error")]
    return Summary(settings, systems, present, main, cells, differences, speed, failed)
