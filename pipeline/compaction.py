"""Keeping Delta tables quick to read: few large files instead of many small ones, and no files that nobody reads."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from pipeline.storage import StorageError, Store
from pipeline.tables import TableName, Tables, storage_options
from pipeline.uris import redact

TARGET_BYTES = 128 << 20
# Readers of an older version, and drivers about to commit on one, are done by then.
RETENTION_HOURS = 168
# A driver commits every ten seconds; each try starts from the newest version.
_TRIES = 8


@dataclass(frozen=True)
class State:
    """Of a table: what a reader of the newest version opens, and the log it reads before."""

    version: int
    files: int
    size_bytes: int
    rows: int
    log_files: int


@dataclass(frozen=True)
class Compacted:
    """A table before and after, the files that were (or, dry, would be) deleted, and what took how long."""

    table: str
    before: State
    after: State
    unused_files: int
    seconds: float
    gave_up: bool


def compact(
    tables: Tables,
    name: TableName,
    *,
    target_bytes: int = TARGET_BYTES,
    retention_hours: int = RETENTION_HOURS,
    delete: bool = True,
) -> Compacted | None:
    """Join a table's small files, write a checkpoint of its log, delete files that only old versions read.

    Drivers may commit meanwhile: none of their rows is lost, and a conflict only costs another try (`gave_up` when all
    of them met one). None when there is no such table. StorageError when it cannot be read.
    """
    started = time.monotonic()
    with _errors(name):
        table = _open(tables, name)
        if table is None:
            return None
        before = state(tables.store, name, table)
        joined = _optimize(tables, name, target_bytes)
        newest = _open(tables, name)
        assert newest is not None
        newest.create_checkpoint()
        unused = newest.vacuum(
            retention_hours=retention_hours,
            dry_run=not delete,
            # Under a week Delta asks whether that is meant: a reader may still be at an old version.
            enforce_retention_duration=retention_hours >= RETENTION_HOURS,
        )
        if delete:
            newest.cleanup_metadata()  # log entries before the checkpoint and past the table's log retention
        after = state(tables.store, name, newest)
    return Compacted(name, before, after, len(unused), time.monotonic() - started, not joined)


def state(store: Store, name: TableName, table: DeltaTable) -> State:
    added = table.get_add_actions(flatten=True)
    sizes = added.column("size_bytes").to_pylist()
    rows = added.column("num_records").to_pylist()
    log = [key for key in store.list(f"tables/{name}/_delta_log") if not key.endswith("_last_checkpoint")]
    return State(table.version(), len(sizes), sum(sizes), sum(count or 0 for count in rows), len(log))


def _optimize(tables: Tables, name: TableName, target_bytes: int) -> bool:
    for attempt in range(_TRIES):
        table = _open(tables, name)
        assert table is not None
        try:
            table.optimize.compact(target_size=target_bytes)
            return True
        except CommitFailedError:
            time.sleep(random.uniform(0, 0.1 * 2**attempt))
    return False


def _open(tables: Tables, name: TableName) -> DeltaTable | None:
    try:
        return DeltaTable(tables.url(name), storage_options=storage_options(tables.store))
    except TableNotFoundError:
        return None


@contextlib.contextmanager
def _errors(name: str) -> Iterator[None]:
    try:
        yield
    except (DeltaError, OSError) as error:
        text = redact((str(error).strip().splitlines() or [type(error).__name__])[0][:400])
        raise StorageError(f"table {name}: {text}") from None
