"""Committed items and failures without the work behind them: rows, markers and stems of a lake."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

from pipeline.keys import commit_key, stem_key
from pipeline.schema import FailureRow, StemRow
from pipeline.storage import Store
from pipeline.tables import Tables

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def stem_row(store: Store, asset_id: str, **values: Any) -> StemRow:
    """A row of the stems table, of a lake that need not have the stems."""
    config_hash = values.pop("config_hash", "c" * 16)
    name = "/".join([asset_id, config_hash, str(values.get("source_etag", "v1"))])
    item_id = values.pop("item_id", hashlib.sha256(name.encode()).hexdigest()[:32])
    urls = [store.url(stem_key(config_hash, asset_id, item_id, label, "flac")) for label in ("speech", "rest")]
    common: dict[str, Any] = {
        "uri": f"/media/{asset_id}",
        "source_etag": "v1",
        "source_size_bytes": 100,
        "model": "tiny",
        "model_version": "m1",
        "description": "speech",
        "target_label": "speech",
        "residual_label": "rest",
        "sample_rate": 48_000,
        "channels": 1,
        "duration_seconds": 9.0,
        "segment_count": 1,
        "target_peak": 0.5,
        "residual_peak": 0.5,
        "clipped_samples": 0,
        "run_id": "run-1",
        "committed_at": NOON,
    }
    return StemRow(
        item_id=item_id,
        asset_id=asset_id,
        config_hash=config_hash,
        target_uri=urls[0],
        residual_uri=urls[1],
        **(common | values),
    )


def commit(store: Store, row: StemRow, *, stems: bool = True, marker: bool = True, table: bool = True) -> StemRow:
    """Put what a commit leaves: two stems, a marker, a row of the table; or only some of these."""
    for url in (row.target_uri, row.residual_uri) if stems else ():
        store.write_bytes(store.key_of(url), b"stem " * 20)
    if marker:
        store.put_if_absent(commit_key(row.config_hash, row.item_id), row.model_dump_json().encode())
    if table:
        Tables(store).add_stems([row])
    return row


def failure_row(item_id: str, cause: str, run: int = 1, **values: Any) -> FailureRow:
    common: dict[str, Any] = {
        "asset_id": "a",
        "uri": "/media/a",
        "stage": "decode",
        "message": "m",
        "remedy": "r",
        "attempt": 1,
        "failed_at": NOON.replace(hour=run),
    }
    return FailureRow(run_id=f"run-{run}", item_id=item_id, cause=cause, **(common | values))
