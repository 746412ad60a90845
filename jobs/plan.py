"""Say what a job would do and cost, without doing it: assets, hours, segments, bytes, GPU hours and money.

python jobs/plan.py --manifest m.parquet --lake lake --description speech --price-per-gpu-hour 3.5
python jobs/plan.py --of archive_reprocess --config nightly.yaml --json plan.json

--of separate|dialogue_extract|archive_reprocess: whose plan (separate). --json FILE: where it goes (out/plan.json).
--top N: how many of the largest and oddest assets, and of the rejected (10). All other settings are the job's:
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.dialogue_extract import PRESET
from operators.errors import AssetError
from operators.sam_audio.checkpoint import CheckpointError
from operators.sam_audio.config import ConfigError
from pipeline.config import JobConfig, JobConfigError
from pipeline.estimate import Survey, assets_of, cost, largest, throughput
from pipeline.job import open_job
from pipeline.keys import commit_prefix
from pipeline.manifest import read_manifest
from pipeline.plan import Plan, Planner
from pipeline.progress import clock
from pipeline.schema import utc_now
from pipeline.settings import load_config
from pipeline.stale import Selection, Verdict, selections
from pipeline.storage import StorageError
from pipeline.uris import redact

NAME = "plan"
JOBS: dict[str, dict[str, Any]] = {"separate": {}, "dialogue_extract": PRESET, "archive_reprocess": {}}


def main(argv: Sequence[str] | None = None) -> int:
    """0: planned. 1: the lake cannot be used. 2: the settings are wrong."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--of", choices=JOBS, default="separate")
    parser.add_argument("--json", default="out/plan.json")
    parser.add_argument("--top", type=int, default=10)
    args, rest = parser.parse_known_args(argv)
    try:
        config = load_config(rest, JOBS[args.of], prog=f"{NAME}.py", description=__doc__)
        report = plan(config, args.of, args.top)
    except (JobConfigError, ConfigError, CheckpointError, AssetError) as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return 2
    except StorageError as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return 1
    path = Path(args.json)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    print(table(report))
    return 0


def plan(config: JobConfig, of: str, top: int) -> dict[str, Any]:
    """The report. Writes nothing. Raises JobConfigError, CheckpointError and StorageError."""
    started = time.monotonic()
    job = open_job(config)
    survey = Survey()
    records = survey.watch(read_manifest(config.manifest, config.limit))
    if of == "archive_reprocess":
        selection = Selection(job)
        planner = Planner(config, job.store, job.facts, job.config_hash, set(), selection.wanted)
        planned = planner.plan(selection.records(records))
        selection.prune(planned)
        skipped = {str(v): n for v, n in selection.counts.items() if not v.is_made}
        made = {str(v): n for v, n in selection.counts.items() if v.is_made and n}
    else:
        # Of a run that died, some markers are not in the table yet.
        markers = {key.rpartition("/")[2][:-5] for key in job.store.list(commit_prefix(job.config_hash))}
        committed = job.tables.committed_item_ids(job.config_hash) | markers
        planned = Planner(config, job.store, job.facts, job.config_hash, committed).plan(records)
        skipped = {str(Verdict.COMMITTED): planned.skipped} if planned.skipped else {}
        made = {}
    hours = planned.audio_seconds / 3600
    rate = throughput(job.tables, config, job.config_hash, job.facts.version)
    estimate = cost(hours, rate, config.price_per_gpu_hour) if rate else None
    stem_rate = config.output_sample_rate if isinstance(config.output_sample_rate, int) else job.facts.sample_rate
    depth = config.bit_depth or (32 if config.stem_format == "wav" else 24)
    assets = assets_of(planned)
    return {
        "job": of,
        "planned_at": utc_now().isoformat(timespec="seconds"),
        "manifest": redact(config.manifest),
        "lake": job.store.root,
        "model": redact(config.model),
        "config_hash": job.config_hash,
        "selection": list(selections(config)) if of == "archive_reprocess" else None,
        "manifest_rows": survey.rows,
        "items": planned.items,
        "todo": {
            "assets": len(assets),
            "items": len(planned.open_items),
            "segments": sum(work.segment is not None for work in planned.todo),
            "joins_only": sum(work.segment is None for work in planned.todo),
            "audio_hours": hours,
            "asset_hours": sum(item.duration_seconds for item in assets) / 3600,
            "source_bytes": sum(item.size_bytes for item in assets),
            "stem_bytes_at_most": survey.stem_bytes_at_most(planned, stem_rate, depth // 8),
            "why": made,
        },
        "skipped": skipped,
        "rejected": rejected(planned, top),
        "throughput": None if rate is None else vars(rate),
        "estimate": None if estimate is None else vars(estimate),
        "price_per_gpu_hour": config.price_per_gpu_hour,
        "currency": config.currency,
        "separators": config.separators,
        "gpus_per_separator": config.gpus_per_separator,
        "largest": [
            {
                "asset_id": item.asset_id,
                "uri": redact(item.uri),
                "hours": item.duration_seconds / 3600,
                "size_bytes": item.size_bytes,
                "segments": item.segment_count,
            }
            for item in largest(planned, top)
        ],
        "oddest": [vars(odd) for odd in survey.oddest(planned, top)],
        "planning_seconds": time.monotonic() - started,
    }


def rejected(planned: Plan, top: int) -> dict[str, Any]:
    """By cause, with examples: these would become failures at once."""
    causes = Counter(one.error.cause for one in planned.rejected)
    examples = [{"asset_id": one.asset_id, "error": str(one.error)} for one in planned.rejected[:top]]
    return {"items": len(planned.rejected), "causes": dict(causes.most_common()), "examples": examples}


def table(report: dict[str, Any]) -> str:
    """The report for a person."""
    todo, estimate, rate = report["todo"], report["estimate"], report["throughput"]
    rows = [
        ("plan of", f"{report['job']}, model {report['model']}, configuration {report['config_hash']}"),
        ("manifest", f"{report['manifest']}: {report['manifest_rows']:,} rows, {report['items']:,} items"),
        ("to do", f"{todo['assets']:,} assets, {todo['items']:,} items, {todo['segments']:,} segments"),
        ("audio", f"{_number(todo['audio_hours'])} h of items, {_number(todo['asset_hours'])} h of assets"),
        ("reads", f"{todo['source_bytes'] / 1e9:,.3f} GB of media"),
        ("writes", f"at most {todo['stem_bytes_at_most'] / 1e9:,.3f} GB of stems"),
    ]
    rows += [("make", f"{count:>9,}  {name}: {Verdict(name).meaning}") for name, count in todo["why"].items()]
    rows += [("skip", f"{count:>9,}  {name}: {Verdict(name).meaning}") for name, count in report["skipped"].items()]
    rows += [("reject", f"{count:>9,}  {cause}") for cause, count in report["rejected"]["causes"].items()]
    if estimate is None:
        rows.append(
            ("GPU hours", "unknown: run the job with --limit 20 first, or set audio_hours_per_gpu_hour (see --help)")
        )
    else:
        rows.append(("speed", f"{rate['expected']:,.1f} h of audio in a GPU hour; from {rate['source']}"))
        hours, most = _number(estimate["gpu_hours"]), _number(estimate["gpu_hours_at_most"])
        rows.append(("GPU hours", f"{hours} expected, {most} at the slowest run's speed"))
        if report["separators"]:
            lasts = estimate["gpu_hours"] / (report["separators"] * (report["gpus_per_separator"] or 1))
            rows.append(("lasts", f"{_number(lasts)} h with {report['separators']} model replicas"))
        if estimate["money"] is None:
            rows.append(("cost", "unknown: set price_per_gpu_hour"))
        else:
            money, most = _number(estimate["money"]), _number(estimate["money_at_most"])
            price = f"{report['price_per_gpu_hour']:g} {report['currency']} a GPU hour"
            rows.append(
                ("cost", f"{money} {report['currency']} expected, {most} at that speed, at {price}; no storage")
            )
    rows += [
        (
            "largest",
            f"{clock(one['hours'] * 3600):>9} {one['size_bytes'] / 1e9:>8.3f} GB {one['segments']:>5} cuts  {_id(one)}",
        )
        for one in report["largest"]
    ]
    rows += [("odd", f"{_id(one)}: {'; '.join(one['reasons'])}") for one in report["oddest"]]
    rows += [("rejected", f"{_id(one)}: {one['error']}") for one in report["rejected"]["examples"]]
    rows.append(("time", f"{report['planning_seconds']:.1f} s of planning"))
    return "\n".join(f"{name:10} {text}" for name, text in rows)


def _number(value: float) -> str:
    """Cents do not matter in thousands, and small sums are not nothing."""
    return f"{value:,.2f}" if value >= 1 else f"{value:.3g}"


def _id(one: dict[str, Any]) -> str:
    """The asset's name on one line, whatever its owner put into it."""
    return "".join(c if c.isprintable() else "?" for c in redact(one["asset_id"])[:80])


if __name__ == "__main__":
    sys.exit(main())
