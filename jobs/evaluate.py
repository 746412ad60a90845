"""Compare separators on a set: ours, released ones, speech denoisers, or the stems another system left in a folder.

    python jobs/evaluate.py --set eval-split --data out/training-data --model tiny --baseline deepfilternet3
    python jobs/evaluate.py --set sam-audio-bench --data bench --model facebook/sam-audio-large --settings sfx-span
    python jobs/evaluate.py --set musdb18hq --data musdb18hq --stems demucs=s3://stems/demucs --model tiny --model MODEL

Writes items.parquet (a row an item and system), summary.json (means with 95 % confidence intervals) and report.html
(one page: tables, distributions, examples to see and hear; it needs no network) to --out, a folder or URL. Metrics
that cannot be had are named with the reason. --export writes the mixtures, for a system that runs elsewhere: let it
write `<item_id>.wav` and come back with --stems.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import soundfile as sf
import torch
from tqdm import tqdm

from operators.errors import AssetError
from operators.evaluation.columns import column
from operators.evaluation.items import EvaluationSet, SetError
from operators.evaluation.musdb import EXCERPT_SECONDS
from operators.evaluation.plan import BASELINES, Plan, pick_device
from operators.evaluation.reference_free import METRICS
from operators.evaluation.report import Page, examples, render
from operators.evaluation.run import FIXED, Row, Summary, evaluate, summarise
from operators.evaluation.sets import SETS
from operators.evaluation.systems import SPANS
from operators.sam_audio import CheckpointError
from pipeline.filesystems import StorageError
from pipeline.storage import Store

CHECKPOINTS = ("judge", "clap", "aesthetics", "imagebind")


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        plan = _plan(args)
        items = plan.open_set()
        if args.export:
            return _export(items, Store(args.export))
        return _run(plan, items, Store(args.out), args.workers)
    except (SetError, CheckpointError, StorageError, AssetError, ImportError, ValueError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2


def _run(plan: Plan, items: EvaluationSet, store: Store, workers: int) -> int:
    started = time.monotonic()
    systems = plan.open_systems()
    if not systems:
        raise ValueError("nothing to evaluate: give --model, --baseline or --stems")
    names = [system.name for system in systems]
    if len(set(names)) < len(names):
        raise ValueError(f"two systems have one name among {', '.join(names)}; name --stems otherwise")
    metrics, missing = plan.open_metrics()
    print(f"{items.name}: {len(items)} items, {', '.join(names)}", flush=True)
    for name, reason in missing.items():
        print(f"  without {name}: {reason}", flush=True)
    found = (
        evaluate(items, systems, metrics)
        if workers == 0
        else _on_ray(replace(plan, metrics=tuple(m.name for m in metrics)), len(items), workers)
    )
    rows: list[Row] = []
    for of_item in tqdm(found, total=len(items), unit="item", mininterval=5):
        rows += of_item
    columns = [c for metric in metrics for c in metric.columns]
    summary = summarise(rows, columns)
    # Columns of metrics that do not apply to this set are as missing as the others.
    for metric in metrics:
        if not set(metric.columns) & set(summary.metrics):
            missing[metric.name] = "does not apply to this set (no truth, no speech setting or no video), or failed"
    seconds = time.monotonic() - started
    facts = _facts(plan, items, workers, seconds)
    record = {
        "set": items.name,
        "notes": items.notes,
        "items": len(items),
        "missing_metrics": missing,
        "facts": facts,
        **summary.record(),
    }
    page = Page(f"{', '.join(names)} on {items.name}", items.name, items.notes, missing, facts)
    store.write_bytes("items.parquet", _parquet(rows, columns))
    store.write_bytes("summary.json", (json.dumps(record, indent=1) + "\n").encode())
    store.write_bytes("report.html", render(page, summary, rows, examples(items, systems, rows, summary)).encode())
    print(_table(summary))
    if summary.failed:
        print(f"failed results: {len(summary.failed)}, the first: {summary.failed[0]['error']}")
    print(f"{seconds:.0f} s; {', '.join(store.url(k) for k in ('items.parquet', 'summary.json', 'report.html'))}")
    return 0 if summary.systems else 1


class _Worker:
    """One process of a run over Ray Data: opens what the plan names, and evaluates items by number."""

    def __init__(self, plan: Plan) -> None:
        self.items, self.systems, (self.metrics, _) = plan.open_set(), plan.open_systems(), plan.open_metrics()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        indices = [int(i) for i in batch["id"]]
        return {"rows": [json.dumps(rows) for rows in evaluate(self.items, self.systems, self.metrics, indices)]}


def _on_ray(plan: Plan, count: int, workers: int) -> Iterator[list[Row]]:
    """Rows in the order in which items are done; as `evaluate` gives them otherwise."""
    import ray.data

    from pipeline import cluster

    # One core more than workers: those hold theirs, and item numbers are read by a task.
    cluster.join(max(workers + 1, os.cpu_count() or 1))
    ray.data.DataContext.get_current().enable_progress_bars = False
    dataset = ray.data.range(count, override_num_blocks=min(count, workers * 8)).map_batches(
        _Worker,
        fn_constructor_args=(plan,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_gpus=1 if plan.device.startswith("cuda") else 0,
    )
    for row in dataset.iter_rows():
        yield json.loads(row["rows"])


def _export(items: EvaluationSet, store: Store) -> int:
    """Write every mixture as `<item_id>.wav` (32-bit float), and what is asked of it as items.parquet."""
    table: list[dict[str, Any]] = []
    for index in tqdm(range(len(items)), unit="item", mininterval=5):
        item = items[index]
        out = io.BytesIO()
        sf.write(out, item.mixture, item.sample_rate, format="WAV", subtype="FLOAT")
        store.write_bytes(f"{item.item_id}.wav", out.getvalue())
        anchors = [{"token": token, "start": start, "end": end} for token, start, end in item.anchors]
        table.append(
            {
                "item_id": item.item_id,
                "setting": item.setting,
                "description": item.description,
                "anchors": json.dumps(anchors),
                "seconds": item.seconds,
                "sample_rate": item.sample_rate,
            }
        )
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(table), out)
    store.write_bytes("items.parquet", out.getvalue())
    print(f"{len(table)} mixtures in {store.root}; masked videos are not exported")
    return 0


def _parquet(rows: Sequence[Row], columns: Sequence[str]) -> bytes:
    kinds: dict[str, pa.DataType] = dict.fromkeys(columns, pa.float64())
    fixed = {"index": pa.int64(), "seconds": pa.float64(), "cpu_seconds": pa.float64(), "wall_seconds": pa.float64()}
    schema = pa.schema([(name, fixed.get(name, pa.string())) for name in FIXED] + list(kinds.items()))
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), out)
    return out.getvalue()


def _facts(plan: Plan, items: EvaluationSet, workers: int, seconds: float) -> dict[str, str]:
    device = torch.cuda.get_device_name() if plan.device.startswith("cuda") else plan.device
    return {
        "When": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "Items": str(len(items)),
        "Models": ", ".join(plan.models) or "none",
        "Candidates": str(plan.candidates),
        "Device": device,
        "Processes": str(workers or 1),
        "torch": torch.__version__,
        "Time": f"{seconds:.0f} s",
        **{f"{name} checkpoint": value for name, value in plan.checkpoints.items()},
    }


def _table(summary: Summary) -> str:
    lines = []
    for metric in summary.metrics:
        c = column(metric)
        lines.append(f"\n{f'{c.label}, {c.unit}':26}" + "".join(f"{s[:23]:>25}" for s in summary.systems))
        for setting in summary.settings:
            row = summary.cells[metric].get(setting)
            if row:
                cells = [row[s].text(c.decimals, c.factor) if s in row else "-" for s in summary.systems]
                lines.append(f"{setting:26}" + "".join(f"{cell:>25}" for cell in cells))
    return "\n".join(lines) + "\n"


def _plan(args: argparse.Namespace) -> Plan:
    names = [m for m in args.metrics.split(",") if m]
    stems = []
    for given in args.stems:
        name, _, folder = given.partition("=")
        if not name or not folder:
            raise ValueError(f"--stems is NAME=FOLDER, got {given!r}")
        stems.append((name, folder))
    models = tuple(args.model) if args.model or args.stems or args.baseline else ("tiny",)
    checkpoints = {name: getattr(args, name) for name in CHECKPOINTS if getattr(args, name)}
    # The small judge ships here; the released one has to be fetched, as the released models have.
    if "judge" not in checkpoints and not any(model.startswith("facebook/") for model in models):
        checkpoints["judge"] = "tiny"
    return Plan(
        set_name=args.set,
        data=args.data,
        models=models,
        spans=tuple(args.spans),
        baselines=tuple(args.baseline),
        stems=tuple(stems),
        metrics=tuple(names),
        checkpoints=checkpoints,
        settings=tuple(s.strip() for s in args.settings.split(",") if s.strip()),
        limit=args.limit,
        segments=args.segments,
        excerpt_seconds=args.excerpt_seconds,
        candidates=args.candidates,
        device=pick_device(args.device),
        revision=args.revision,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="evaluate.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--set", choices=SETS, default="eval-split", help="; ".join(f"{k}: {v}" for k, v in SETS.items()))
    add("--data", type=Path, required=True, help="The set's folder")
    add("--settings", default="", help="Some of the set's settings, with commas (all)")
    add("--limit", type=int, help="Items a setting (eval-split: 100; others: all)")
    add("--segments", type=Path, help="musdb18hq: Parquet with id, start_time, end_time, description")
    add(
        "--excerpt-seconds", type=float, default=EXCERPT_SECONDS, help="musdb18hq without segments; 0: whole songs (10)"
    )
    add("--model", action="append", default=[], help='"tiny", hub name, folder or URL; again for more ("tiny")')
    add("--spans", action="append", default=[], choices=SPANS[1:], help="Every model once more with such spans")
    add(
        "--baseline",
        action="append",
        default=[],
        choices=BASELINES,
        help="A public denoiser or a bound; again for more",
    )
    add(
        "--stems", action="append", default=[], metavar="NAME=FOLDER", help="Targets of another system, a folder or URL"
    )
    add("--metrics", default=",".join(METRICS), help="With commas (all)")
    add("--judge", help='Judge: "tiny", hub name, folder or URL (the released one beside released models, else tiny)')
    add("--clap", help="CLAP checkpoint (its own from the hub)")
    add("--aesthetics", help="Audiobox aesthetics checkpoint (its own from the hub)")
    add("--imagebind", help="ImageBind checkpoint (its own)")
    add("--candidates", type=int, default=1, help="Candidates of the models, of which their ranker keeps the best (1)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (auto)")
    add("--revision", help="Revision of hub models")
    add("--workers", type=int, default=0, help="Processes on Ray Data; 0: in this one (0)")
    add("--out", default="out/evaluate", help="Folder or URL for the results (out/evaluate)")
    add("--export", help="Write the set's mixtures to this folder or URL, and end")
    return parser


if __name__ == "__main__":
    sys.exit(main())
