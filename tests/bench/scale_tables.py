"""Rows into the stems table by the commits of a driver, up to so many, compaction as in a run. One JSON line a mark."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path

from lake_rows import stem_row
from scale_plan import resident

from pipeline.compaction import compact
from pipeline.keys import stem_key
from pipeline.run import COMPACT_EVERY
from pipeline.schema import StemRow
from pipeline.storage import Store
from pipeline.tables import Tables

# Of a run's default settings: rows of one commit.
SMALL = 200
# Rows of one commit between the marks: a million by small ones would only take longer, and cost what the marks say.
LARGE = 5000
MEASURED = 20


def main() -> None:
    folder, marks = Path(sys.argv[1]), [int(mark) for mark in sys.argv[2:]]
    store = Store(str(folder))
    tables = Tables(store)
    rows = commits = 0
    joined = 0.0
    before = resident()

    def add(count: int) -> float:
        nonlocal rows, commits, joined
        new = [row(i) for i in range(rows, rows + count)]
        started = time.monotonic()
        assert tables.add_stems(new) == count
        taken = time.monotonic() - started
        rows, commits = rows + count, commits + 1
        if commits % COMPACT_EVERY == 0:
            started = time.monotonic()
            tables.compact("stems")
            joined += time.monotonic() - started
        return taken

    template = stem_row(store, "tape", metadata_json='{"collection": "collection 1"}')
    labels = (template.target_label, template.residual_label)

    def row(number: int) -> StemRow:
        asset, item = f"tape-{number:08d}", hashlib.sha256(str(number).encode()).hexdigest()
        urls = [store.url(stem_key(template.config_hash, asset, item[:32], label, "flac")) for label in labels]
        ids = {
            "item_id": item[:32],
            "asset_id": asset,
            "uri": f"s3://archive/tapes/{asset}.wav",
            "source_etag": item[32:],
        }
        measured = {"duration_seconds": 60.0 + number * 7 % 541, "target_peak": number % 997 / 997}
        return template.model_copy(update=ids | measured | {"target_uri": urls[0], "residual_uri": urls[1]})

    for mark in marks:
        filling = time.monotonic()
        while rows < mark - MEASURED * SMALL:
            add(min(LARGE, mark - MEASURED * SMALL - rows))
        filling = time.monotonic() - filling
        small = sorted(add(SMALL) for _ in range(MEASURED))
        assert tables.add_stems([row(0)]) == 0  # it is there
        fresh = Tables(store)
        started = time.monotonic()
        known = fresh.committed_item_ids(template.config_hash)
        reading = time.monotonic() - started
        assert len(known) == rows
        found = {
            "rows": rows,
            "commit_ms_median": round(small[MEASURED // 2] * 1e3, 1),
            "commit_ms_worst": round(small[-1] * 1e3, 1),
            "rows_a_second": round(SMALL / small[MEASURED // 2]),
            "fill_seconds": round(filling, 1),
            "compaction_seconds_so_far": round(joined, 1),
            "read_all_ids_seconds": round(reading, 2),
            "memory_mb": round((resident() - before) / 1e6),
        }
        del fresh, known
        print(json.dumps(found), flush=True)
    done = compact(tables, "stems", retention_hours=0)
    assert done is not None and done.after.rows == rows
    found = {
        "rows": rows,
        "final_compaction_seconds": round(done.seconds, 1),
        "files_before": done.before.files,
        "files_after": done.after.files,
        "mb_after": round(done.after.size_bytes / 1e6, 1),
        "bytes_a_row": round(done.after.size_bytes / rows),
    }
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
