"""What a scenario came to: a line for the reader, and the figures in out/faults.json."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FIGURES = Path(__file__).parents[2] / "out" / "faults.json"


@dataclass
class Outcome:
    """A line of the report. `tried` counts injected faults; `recover_seconds` is the longest time from one to the next
    commit; `failures` are causes that some run recorded of items that a later run did; `garbage` counts objects."""

    scenario: str
    tried: int
    runs: int
    items: int
    lost: int
    doubled: int
    recover_seconds: float
    seconds: float
    failures: dict[str, int] = field(default_factory=dict)
    garbage: int = 0
    passed: bool = False


def report(outcome: Outcome) -> None:
    """One line for the reader, and the figures into out/faults.json beside those of the other scenarios."""
    FIGURES.parent.mkdir(exist_ok=True)
    known = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    known[outcome.scenario] = {k: v for k, v in vars(outcome).items() if k != "scenario"}
    FIGURES.write_text(json.dumps(known, indent=1) + "\n")
    print(f"\n{line(outcome.scenario, known[outcome.scenario])}", flush=True)


def show() -> None:
    """The table of all scenarios."""
    if FIGURES.exists():
        found = json.loads(FIGURES.read_text())
        print("\n" + "\n".join([HEADING, *(line(name, values) for name, values in found.items())]))


def line(name: str, found: dict[str, Any]) -> str:
    causes = ", ".join(f"{cause} {n}" for cause, n in found["failures"].items()) or "-"
    return (
        f"{name:44} {found['tried']:>5} {found['runs']:>5} {found['items']:>6} {found['lost']:>5} "
        f"{found['doubled']:>8} {found['recover_seconds']:>8.1f} {found['seconds']:>8.1f} "
        f"{found['garbage']:>8}  {causes}{'' if found['passed'] else '  FAILED'}"
    )


HEADING = (
    f"{'scenario':44} {'tried':>5} {'runs':>5} {'items':>6} {'lost':>5} {'doubled':>8} {'recover':>8} {'took':>8} "
    f"{'garbage':>8}  recorded, then done by another run"
)
