"""The planning stage over a manifest of so many rows: seconds, and memory of the driver. One JSON line."""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import time
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from operators.describe import describe
from pipeline.config import JobConfig
from pipeline.graph import ROWS_PER_BLOCK
from pipeline.manifest import read_manifest
from pipeline.plan import Planner
from pipeline.storage import Store

CHUNK = 100_000


def write_manifest(path: Path, rows: int) -> None:
    """As jobs/build_manifest.py leaves it, with one column of the owner's: recordings of 1 to 10 minutes."""
    with pq.ParquetWriter(path, _table(0, 1).schema) as out:
        for start in range(0, rows, CHUNK):
            out.write_table(_table(start, min(start + CHUNK, rows)))


def _table(start: int, stop: int) -> pa.Table:
    n = range(start, stop)
    return pa.table(
        {
            "asset_id": [f"tape-{i:08d}" for i in n],
            "uri": [f"s3://archive/tapes/{i % 977:03d}/tape-{i:08d}.wav" for i in n],
            "size_bytes": [10_000_000 + i for i in n],
            "etag": [hashlib.md5(str(i).encode()).hexdigest() for i in n],
            "duration_seconds": [60.0 + i * 7 % 541 for i in n],
            "channels": [2 for _ in n],
            "collection": [f"collection {i % 10}" for i in n],
        }
    )


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> None:
    folder, rows = Path(sys.argv[1]), int(sys.argv[2])
    folder.mkdir()
    manifest = folder / f"manifest-{rows}.parquet"
    write_manifest(manifest, rows)
    config = JobConfig(
        manifest=str(manifest),
        lake=str(folder / "lake"),
        descriptions=("speech",),
        allowed_read_prefixes=("s3://archive/tapes",),
    )
    store = Store(config.lake, config.allowed_read_prefixes)
    planner = Planner(config, store, describe("tiny"), "c" * 16, set())
    pa.default_memory_pool().release_unused()
    before, started, cpu = resident(), time.monotonic(), time.process_time()
    plan = planner.plan(read_manifest(config.manifest))
    seconds, cpu_seconds = time.monotonic() - started, time.process_time() - cpu
    held = resident() - before
    again, cpu = time.monotonic(), time.process_time()
    work_bytes, left = 0, iter(plan.todo)  # what graph.results gives to Ray
    while some := [work.to_json() for work in islice(left, ROWS_PER_BLOCK)]:
        work_bytes += pa.table({"work": some}).nbytes
    found = {
        "rows": rows,
        "segments": len(plan.todo),
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "microseconds_cpu_a_row": round(cpu_seconds / rows * 1e6, 1),
        "memory_mb": round(held / 1e6, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6 - before / 1e6, 1),
        "bytes_a_row": round(held / rows),
        "handover_seconds": round(time.monotonic() - again, 2),
        "handover_cpu_seconds": round(time.process_time() - cpu, 2),
        "handover_mb": round(work_bytes / 1e6, 1),
    }
    assert plan.items == rows and not plan.rejected
    print(json.dumps(found))


if __name__ == "__main__":
    main()
