"""One self-contained HTML page of a run: tables, distributions, and examples to see and hear. It loads nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import jinja2
import numpy as np
from markupsafe import Markup

from . import charts, pictures
from .columns import column
from .items import EvaluationSet, Item
from .run import Row, Summary
from .systems import System
from .targets import Target

LISTEN_SECONDS = 10.0
EXAMPLE_SYSTEMS = 2
RANKS = ("best", "median", "worst")


@dataclass(frozen=True)
class Signal:
    """One picture and player of an example."""

    name: str
    picture: str
    player: str
    score: str


@dataclass(frozen=True)
class Example:
    setting: str
    rank: str
    item_id: str
    description: str
    seconds: float
    signals: list[Signal]
    ticks: list[tuple[str, float]]


@dataclass(frozen=True)
class Page:
    """What the page says besides the figures: `missing` metrics with reasons, `facts` of the run, notes on the set."""

    title: str
    set_name: str
    notes: Sequence[str]
    missing: Mapping[str, str]
    facts: Mapping[str, str]
    targets: Sequence[Target] = field(default_factory=list)


def choose(rows: Sequence[Row], summary: Summary) -> list[tuple[str, str, Row]]:
    """(setting, rank, row) of the first system's best, median and worst item a setting, by the main metric."""
    chosen: list[tuple[str, str, Row]] = []
    main = summary.main
    if main is None:
        return chosen
    for setting in summary.settings:
        mine = [
            row
            for row in rows
            if row.get("setting") == setting and row.get("system") == summary.systems[0] and row.get(main) is not None
        ]
        mine.sort(key=lambda row: row[main], reverse=True)
        places = {"best": 0, "median": len(mine) // 2, "worst": len(mine) - 1}
        seen: set[int] = set()
        for rank in RANKS:
            if mine and places[rank] not in seen:
                seen.add(places[rank])
                chosen.append((setting, rank, mine[places[rank]]))
    return chosen


def examples(
    items: EvaluationSet,
    systems: Sequence[System],
    rows: Sequence[Row],
    summary: Summary,
    settings: Sequence[str] | None = None,
) -> list[Example]:
    """Pictures and players of the chosen items, of the first two systems, in some settings (default: all).

    They are separated again: the same estimates as in the run.
    """
    shown = [s for s in systems if s.name != "mixture"][:EXAMPLE_SYSTEMS]
    scores = {(row.get("index"), row.get("system")): row.get(summary.main or "") for row in rows}
    found = []
    for setting, rank, row in choose(rows, summary):
        if settings is not None and setting not in settings:
            continue
        item = items[row["index"]]
        waves: dict[str, np.ndarray] = {"mixture": item.mixture}
        for system in shown:
            estimate = system(item)
            if estimate is not None:
                waves[system.name] = estimate
        if item.target is not None:
            waves["true target"] = item.target
        found.append(_example(item, setting, rank, waves, {n: scores.get((row["index"], n)) for n in waves}, summary))
    return found


def _example(
    item: Item,
    setting: str,
    rank: str,
    waves: Mapping[str, np.ndarray],
    scores: Mapping[str, float | None],
    summary: Summary,
) -> Example:
    n = round(LISTEN_SECONDS * item.sample_rate)
    levels = {name: pictures.spectrogram(wave[:n], item.sample_rate) for name, wave in waves.items()}
    top = float(levels["mixture"].max())  # one scale for all: what is missing is dark
    unit = column(summary.main or "")
    signals = []
    for name, wave in waves.items():
        score = scores.get(name)
        sign, shown = ("+", f" {unit.unit}") if unit.unit == "dB" else ("", "")  # a scale's name is no unit
        said = "" if score is None else f"{score * unit.factor:{sign}.{unit.decimals}f}{shown}"
        signals.append(
            Signal(name, pictures.picture(levels[name], top), pictures.player(wave[:n], item.sample_rate), said)
        )
    seconds = min(item.seconds, LISTEN_SECONDS)
    return Example(
        setting, rank, item.item_id, item.description, seconds, signals, pictures.frequency_ticks(item.sample_rate)
    )


def render(page: Page, summary: Summary, rows: Sequence[Row], found: Sequence[Example]) -> str:
    """The page as text. Everything that comes from data is escaped; the page's policy lets it load nothing."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("operators.evaluation", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals["column"] = column
    main = summary.main
    unit = column(main or "").unit
    distribution: dict[str, dict[str, list[tuple[str, float]]]] = {}
    for row in rows:
        if main and row.get(main) is not None and not row.get("error"):
            of = distribution.setdefault(row["setting"], {}).setdefault(row["system"], [])
            of.append((row["item_id"], row[main] * column(main).factor))
    drawn: dict[str, Markup] = {}
    if main and summary.cells.get(main):
        drawn = {
            "intervals": charts.intervals(summary.cells[main], summary.systems, unit),
            "strips": charts.strips(distribution, summary.systems, unit),
        }
    groups = _groups(summary)
    text: str = environment.get_template("report.html.j2").render(
        page=page,
        summary=summary,
        groups=groups,
        best=_best(summary),
        drawn=drawn,
        examples=found,
        failed=summary.failed[:50],
        failed_count=len(summary.failed),
    )
    return text


def _groups(summary: Summary) -> list[tuple[bool, list[str]]]:
    """Metrics in reading order: those about the truth, or the main one, open; the rest folded away."""
    first = [
        m for m in summary.metrics if m in ("si_sdri_db", "sdri_db", "obeyed", "judge_overall") or m == summary.main
    ]
    rest = [m for m in summary.metrics if m not in first]
    return [(True, first), (False, rest)]


def _best(summary: Summary) -> dict[tuple[str, str], set[str]]:
    """(metric, setting) -> the systems that no other one beats by more than chance: intervals that hold the top mean.

    None where that is true of all. The bound by the true latents and the untouched mixture do not compete.
    """
    found: dict[tuple[str, str], set[str]] = {}
    for metric in summary.metrics:
        for setting, row in summary.cells[metric].items():
            competing = {s: c for s, c in row.items() if s not in ("codec oracle", "mixture")}
            if len(competing) > 1:
                top = max(c.mean for c in competing.values())
                marked = {s for s, c in competing.items() if (c.mean if c.high is None else c.high) >= top}
                found[metric, setting] = marked if len(marked) < len(competing) else set()
    return found
