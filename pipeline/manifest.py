"""Manifests: Parquet tables of assets, read row by row, and completed where they do not say enough."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pds

from operators.errors import AssetError
from pipeline.config import JobConfig, JobConfigError
from pipeline.decode import limits_for, probe_media
from pipeline.filesystems import filesystem
from pipeline.schema import ManifestRow
from pipeline.storage import Store
from pipeline.uris import locate, redact

# Beyond this a header lies; the work for it would fill the driver's memory.
MAX_HOURS = 1000


def read_manifest(url: str, limit: int | None = None) -> Iterator[dict[str, Any]]:
    """Records of a manifest (a Parquet file or a folder of them). Raises JobConfigError when there is none."""
    location = locate(url)
    try:
        dataset = pds.dataset(location.path, filesystem=filesystem(location.scheme), format="parquet")
        missing = {"asset_id", "uri"} - set(dataset.schema.names)
        if missing:
            raise JobConfigError(
                f"manifest {url} has no column {' and no column '.join(sorted(missing))}; "
                "make it with jobs/build_manifest.py, or add the columns"
            )
        left = limit
        for batch in dataset.to_batches(batch_size=4096):
            yield from _records(batch, url)[:left]
            if left is not None:
                left -= min(left, len(batch))
                if not left:
                    return
    except (FileNotFoundError, pa.ArrowInvalid, OSError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise JobConfigError(
            f"manifest {url} cannot be read ({first}); give a Parquet file or a folder of them"
        ) from None


def _records(batch: pa.RecordBatch, url: str) -> list[dict[str, Any]]:
    """Rows of a batch. JobConfigError for a column with values that Python has none for: text that is no UTF-8, years
    beyond 9999."""
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError):
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                column.to_pylist()
            except (ValueError, OverflowError) as error:
                raise JobConfigError(
                    f"manifest {redact(url)}: column {name} cannot be read ({str(error)[:200]}); correct or drop it"
                ) from None
        raise


def complete(row: ManifestRow, store: Store, config: JobConfig) -> ManifestRow:
    """The row with what it did not say: source version, duration, channels. Raises AssetError."""
    if row.etag is None or row.size_bytes is None:
        found = store.stat_media(row.uri)
        row = row.model_copy(update={"etag": row.etag or found.etag, "size_bytes": found.size_bytes})
    if row.duration_seconds is None:
        info = probe_media(store, row.uri, limits_for(config, row.size_bytes))
        row = row.model_copy(update={"duration_seconds": info.duration_seconds, "channels": info.channels})
    if not row.duration_seconds:
        raise AssetError("empty_file", f"{redact(row.uri)} lasts 0 s", "take the row out of the manifest")
    if row.duration_seconds > MAX_HOURS * 3600:
        raise AssetError(
            "bad_duration",
            f"asset {row.asset_id!r} is said to last {row.duration_seconds / 3600:.0f} h",
            f"correct duration_seconds; recordings of more than {MAX_HOURS} h must be cut first",
            field="duration_seconds",
        )
    return row
