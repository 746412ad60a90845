"""How the pipeline scales, with a separator that only sleeps: planning, the model's busy share, memory, table commits.

`make bench-scale` prints a table and writes out/bench-scale.json, part by part: parts that are not run again keep their
figures. About 35 minutes on 2 cores that are free; `--only plan tables` runs some of the parts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PARTS = ("plan", "tables", "busy", "memory")
# Seconds of a stubbed segment: what the largest released model should need for ten minutes of sound on an H200.
SLEEP = 6.0
SEGMENTS_EACH = 12


def measure(script: str, *arguments: Any) -> list[dict[str, Any]]:
    """Run a part in a process and a folder of its own; the JSON lines that it prints."""
    with tempfile.TemporaryDirectory(prefix="bench-scale-") as folder:
        command = [sys.executable, str(HERE / script)]
        words = list(map(str, arguments))
        mode = [words.pop(0)] if words and not words[0][0].isdigit() else []
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(HERE)])}
        environment.setdefault("OMP_NUM_THREADS", "1")
        done = subprocess.run(
            [*command, *mode, f"{folder}/part", *words], env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def plan(args: argparse.Namespace) -> dict[str, Any]:
    rows = [found for count in args.rows for found in measure("scale_plan.py", count)]
    show("planning: manifest -> segments to do (driver)", rows)
    first, last = rows[0], rows[-1]
    growth = last["cpu_seconds"] / last["rows"] / (first["cpu_seconds"] / first["rows"])
    print(f"  processor time a row, {last['rows']:,} against {first['rows']:,} rows: x {growth:.2f} (1 is linear)\n")
    return {"sizes": rows, "cpu_a_row_last_to_first": round(growth, 2)}


def tables(args: argparse.Namespace) -> dict[str, Any]:
    *marks, final = measure("scale_tables.py", *args.rows)
    show("table commits of 200 rows, as the table grows", marks)
    show("compaction at the end (jobs/compact.py)", [final])
    return {"marks": marks, "compaction": final}


def busy(args: argparse.Namespace) -> dict[str, Any]:
    rows = []
    for actors in args.actors:
        rows += measure("scale_run.py", "busy", actors, SEGMENTS_EACH, args.sleep)
        show("share of their time that the model actors are busy", rows[-1:])
    return {"actors": rows}


def memory(args: argparse.Namespace) -> dict[str, Any]:
    (found,) = measure("scale_run.py", "memory", args.segments, args.minutes, args.per_execution)
    flat = {k: v for k, v in found.items() if not isinstance(v, dict)}
    show("overhead and memory over many segments (stub of 0 s)", [flat])
    for name in ("all_mb_by_percent_done", "driver_mb_by_percent_done"):
        print(f"  {name}: " + ", ".join(f"{k} %: {v}" for k, v in found[name].items()))
    return found


def show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    print(title)
    for name in rows[0]:
        print(f"  {name:32}" + "".join(f"{row[name]:>14,}" for row in rows))
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="manifest, table")
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--sleep", type=float, default=SLEEP, help="seconds of a stubbed segment")
    parser.add_argument("--segments", type=int, default=10_000, help="of the memory part")
    parser.add_argument("--per-execution", type=int, default=2_500, help="segments of one execution of the memory part")
    parser.add_argument("--minutes", type=float, default=20, help="after which the memory part ends with what is done")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "bench-scale.json")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    report = json.loads(args.out.read_text()) if args.out.exists() else {}
    for part in args.only:
        found = {"plan": plan, "tables": tables, "busy": busy, "memory": memory}[part](args)
        load = round(os.getloadavg()[0], 1)
        report[part] = {
            "measured_at": f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
            "cores": os.cpu_count(),
            "load": load,
            **found,
        }
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
