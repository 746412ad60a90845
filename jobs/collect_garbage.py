"""List what nobody needs any more in a lake, and with --delete delete it.

python jobs/collect_garbage.py --lake s3://bucket/lake
python jobs/collect_garbage.py --lake s3://bucket/lake --delete
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from operators.errors import AssetError
from pipeline.collector import Collected, collect
from pipeline.garbage import Findings, Kind, Scan
from pipeline.keys import lease_prefix
from pipeline.lease import Lease, LeaseLost
from pipeline.storage import StorageError, Store
from pipeline.tables import Tables

NAME = "collect_garbage"


def main(argv: Sequence[str] | None = None) -> int:
    """0: done, or another collector is at work. 1: the lake cannot be used. 2: wrong arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lake", required=True, help="Folder of the lake: a path or a URL")
    parser.add_argument("--delete", action="store_true", help="Delete what is found; without it nothing is changed")
    parser.add_argument(
        "--grace-hours",
        type=float,
        default=168.0,
        metavar="H",
        help="Nothing younger is garbage (168: a week). Longer than any run, and than readers keep URLs of stems",
    )
    parser.add_argument(
        "--lease-seconds", type=float, default=60.0, metavar="S", help="How long a killed one blocks (60)"
    )
    parser.add_argument("--json", metavar="FILE", default="out/collect-garbage.json", help="Where the report goes")
    args = parser.parse_args(argv)
    if args.grace_hours < 0 or not 0 < args.lease_seconds <= 3600:
        parser.error("--grace-hours must not be negative, --lease-seconds must be in 0 to 3600")
    try:
        store = Store(args.lake)
        return _delete(store, args) if args.delete else _list(store, args)
    except AssetError as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return 2
    except (StorageError, LeaseLost) as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return 1


def _list(store: Store, args: argparse.Namespace) -> int:
    # By this machine's clock: reading the store's means writing to it.
    findings = Scan(store, Tables(store), time.time(), args.grace_hours * 3600).run()
    _report(store, findings, None, args)
    return 0


def _delete(store: Store, args: argparse.Namespace) -> int:
    lease = Lease(store, NAME, args.lease_seconds, NAME)
    if not lease.acquire():
        print(f"{NAME}: nothing done, another one is at work: {lease.holder()}", file=sys.stderr)
        return 0
    with lease:
        # The store has just dated our lease.
        now = max(entry.modified for entry in store.entries(lease_prefix(NAME)))
        findings = Scan(store, Tables(store), now, args.grace_hours * 3600).run()
        _report(store, findings, collect(store, Tables(store), findings, lease.confirm), args)
    return 0


def _report(store: Store, findings: Findings, collected: Collected | None, args: argparse.Namespace) -> None:
    kinds = {}
    print(f"{'':36} {'objects':>9} {'GB':>9} {'oldest':>9}  for example")
    for kind in Kind:
        found = [one for one in findings.garbage if one.kind is kind]
        oldest = max((one.age_seconds for one in found), default=0.0)
        size = sum(one.size_bytes for one in found)
        kinds[str(kind)] = {"objects": len(found), "size_bytes": size, "oldest_hours": round(oldest / 3600, 2)}
        example = found[0].key if found else ""
        print(f"{kind:36} {len(found):>9,} {size / 1e9:>9.3f} {oldest / 86400:>7.1f} d  {example}")
    print(f"{'stems of committed items (kept)':36} {'':>9} {findings.kept_bytes / 1e9:>9.3f}")
    for stone in findings.unfinished_drops[:5]:
        print(f"unfinished drop: item {stone.item_id} of {stone.config_hash}, replaced by {stone.superseded_by}")
    for key in findings.without_stems[:5]:
        print(f"WARNING {key}: its stems are gone; restore them, or delete the marker and run the job again")
    for config, item in findings.without_marker[:5]:
        print(f"WARNING item {item} of {config} has a row and no marker; jobs/rebuild_tables.py removes the row")
    report = {
        "lake": store.root,
        "grace_hours": args.grace_hours,
        "deleted": collected is not None,
        "kinds": kinds,
        "kept_stem_bytes": findings.kept_bytes,
        "unfinished_drops": [stone.item_id for stone in findings.unfinished_drops],
        "markers_without_stems": findings.without_stems,
        "rows_without_marker": [item for _, item in findings.without_marker],
        "objects": [{"kind": str(one.kind), "key": one.key} for one in findings.garbage[:10_000]],
    }
    if collected is None:
        print(f"nothing was deleted; --delete deletes these {len(findings.garbage):,} objects")
    else:
        report |= {"spared": collected.spared, "withdrawn": list(collected.withdrawn)}
        print(f"deleted {collected.objects:,} objects, {collected.size_bytes / 1e9:.3f} GB; {collected.spared} spared")
        for item in collected.withdrawn:
            print(f"WARNING item {item} was committed while its stems were deleted: taken back, run the job again")
    path = Path(args.json)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
