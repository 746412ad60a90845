"""Make a training manifest of what a run has separated: its best stems become mixtures with known parts.

    python jobs/separate.py --manifest field.parquet --lake lake --descriptions "dog barking" --judge ...
    python jobs/pseudo_label.py --lake lake --out lake/manifests/dogs.parquet --min-overall 4 --min-precision 4
    python jobs/train_separator.py --manifest lake/manifests/dogs.parquet --lake lake --run dogs ...

An item is kept when the judge's scores, CLAP's agreement with its description (--min-clap) and the time that its target
sounds all reach their thresholds. Stems are read where they lie; nothing is copied. An existing manifest is not
overwritten.
"""

from __future__ import annotations

import argparse
import sys

from operators.errors import AssetError
from operators.judge_scores import SCORES
from operators.sam_audio.sources import CheckpointError
from pipeline.config import JobConfig, JobConfigError
from pipeline.graph import connect
from pipeline.pseudo_label import COLUMNS, select, thresholds_of
from pipeline.storage import StorageError, Store
from pipeline.tables import Tables
from pipeline.training_manifest import manifest_bytes
from pipeline.uris import redact


def run(args: argparse.Namespace) -> int:
    store = Store(args.lake, [args.lake])
    folder, _, name = args.out.rpartition("/") if "/" in args.out else (".", "", args.out)
    target = Store(folder or "/")
    if target.exists(name):
        raise JobConfigError(f"{redact(args.out)} exists and is not overwritten; give another --out")
    rows = Tables(store).read("stems", COLUMNS).to_pylist()
    if not rows:
        raise JobConfigError(f"{redact(args.lake)} holds no stems; run jobs/separate.py into it first")
    connect(JobConfig(manifest=args.lake, lake=args.lake))
    kept, reasons = select(rows, thresholds_of(args), store.root)
    if kept and not target.put_if_absent(name, manifest_bytes(kept)):
        raise JobConfigError(f"{redact(args.out)} was made by another one meanwhile; give another --out")
    hours = sum(row.duration_seconds for row in kept) / 3600
    print(f"manifest  {redact(args.out) if kept else 'not written: nothing was kept; lower the thresholds'}")
    print(f"kept      {len(kept):,} items, {hours:.2f} h")
    print(f"left out  {reasons.total():,}: {', '.join(f'{w} {n:,}' for w, n in reasons.most_common()) or 'none'}")
    return 0 if kept else 1


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 written, 1 nothing kept or the storage failed, 2 wrong arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lake", required=True, help="the run's lake: a path or URL")
    parser.add_argument("--out", required=True, help="Parquet file to write: a path or URL")
    for score in SCORES:
        parser.add_argument(f"--min-{score}", type=float, metavar="X", help=f"judge's {score}, 1 to 5 (not asked)")
    parser.add_argument("--min-active", type=float, default=0.05, metavar="X", help="share that sounds (0.05)")
    parser.add_argument("--silence-db", type=float, default=-40.0, metavar="DB", help="silence, dBFS (-40)")
    parser.add_argument("--min-clap", type=float, metavar="X", help="cosine of target and description (not asked)")
    parser.add_argument("--clap", metavar="CHECKPOINT", help="CLAP's checkpoint (its usual one)")
    try:
        return run(parser.parse_args(argv))
    except (AssetError, JobConfigError, CheckpointError) as error:
        print(f"pseudo_label: {error}", file=sys.stderr)
        return 2
    except StorageError as error:
        print(f"pseudo_label: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
