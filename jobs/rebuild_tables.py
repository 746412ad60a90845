"""Make the stems table of a lake from its commit markers: `python jobs/rebuild_tables.py --lake s3://bucket/lake`."""

from __future__ import annotations

import argparse
import sys
import time

from operators.errors import AssetError
from pipeline.storage import StorageError, Store
from pipeline.tables import Tables, rebuild


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lake", required=True, help="Folder of the lake: a path or a URL")
    args = parser.parse_args(argv)
    started = time.monotonic()
    try:
        store = Store(args.lake)
        rows = rebuild(store)
    except (AssetError, StorageError) as error:
        print(f"rebuild failed: {error}", file=sys.stderr)
        return 2 if isinstance(error, AssetError) else 1
    print(f"{rows} rows in {Tables(store).url('stems')}, {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
