"""Join the small files of a lake's tables, and delete those that only old versions of them read.

python jobs/compact.py --lake s3://bucket/lake
python jobs/compact.py --lake s3://bucket/lake --keep-old-files     # join only
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from operators.errors import AssetError
from pipeline.compaction import RETENTION_HOURS, TARGET_BYTES, Compacted, compact
from pipeline.storage import StorageError, Store
from pipeline.tables import TableName, Tables

NAME = "compact"
NAMES: tuple[TableName, ...] = ("stems", "failures", "runs")


def main(argv: Sequence[str] | None = None) -> int:
    """0: done. 1: a table cannot be used, or runs kept it too busy. 2: wrong arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lake", required=True, help="Folder of the lake: a path or a URL")
    parser.add_argument("--target-mb", type=int, default=TARGET_BYTES >> 20, metavar="MB", help="Size of a file (128)")
    parser.add_argument(
        "--retention-hours",
        type=int,
        default=RETENTION_HOURS,
        metavar="H",
        help="Files that versions of the last H hours read are kept (168: a week)",
    )
    parser.add_argument("--keep-old-files", action="store_true", help="Count unused files instead of deleting them")
    parser.add_argument("--json", metavar="FILE", default="out/compact.json", help="Where the report goes")
    args = parser.parse_args(argv)
    if args.target_mb < 1 or args.retention_hours < 0:
        parser.error("--target-mb must be at least 1, --retention-hours must not be negative")
    try:
        done = run(Tables(Store(args.lake)), args)
    except AssetError as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return 2
    except StorageError as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return 1
    path = Path(args.json)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"lake": args.lake, "tables": [asdict(one) for one in done]}, indent=2) + "\n")
    return 1 if any(one.gave_up for one in done) else 0


def run(tables: Tables, args: argparse.Namespace) -> list[Compacted]:
    done = []
    unused = "unused" if args.keep_old_files else "deleted"
    print(f"{'table':10} {'rows':>11} {'files':>15} {'MB':>17} {'log files':>13} {unused:>8} {'s':>6}")
    for name in NAMES:
        one = compact(
            tables,
            name,
            target_bytes=args.target_mb << 20,
            retention_hours=args.retention_hours,
            delete=not args.keep_old_files,
        )
        if one is None:
            print(f"{name:10} there is no such table")
            continue
        done.append(one)
        a, b = one.before, one.after
        files, size = f"{a.files} -> {b.files}", f"{a.size_bytes / 1e6:.2f} -> {b.size_bytes / 1e6:.2f}"
        log = f"{a.log_files} -> {b.log_files}"
        print(f"{name:10} {b.rows:>11,} {files:>15} {size:>17} {log:>13} {one.unused_files:>8} {one.seconds:>6.1f}")
        if one.gave_up:
            print(f"WARNING {name}: runs committed to it all the time; run this again when they are done")
    return done


if __name__ == "__main__":
    sys.exit(main())
