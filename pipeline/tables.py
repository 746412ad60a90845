"""The Delta tables `stems`, `failures` and `runs` below `tables/` of the lake, written by drivers only.

Rows go in by a merge that inserts what is new: writing a row again changes nothing, so neither a rerun nor a
second driver can double one. The commit markers hold the same rows; `rebuild` makes a stems table of them.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import pyarrow as pa
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from pipeline.schema import (
    FAILURES_SCHEMA,
    RUNS_SCHEMA,
    STEMS_SCHEMA,
    FailureRow,
    Row,
    RunRow,
    StemRow,
    to_table,
)
from pipeline.storage import StorageError, Store, commit_prefix
from pipeline.uris import redact

TableName = Literal["stems", "failures", "runs"]

_SCHEMAS: dict[str, pa.Schema] = {"stems": STEMS_SCHEMA, "failures": FAILURES_SCHEMA, "runs": RUNS_SCHEMA}
# A reader asks for one configuration most of the time, and merges touch only the files of theirs.
_PARTITIONS: dict[str, list[str]] = {"stems": ["config_hash"], "failures": [], "runs": []}
_DESCRIPTIONS = {
    "stems": "One row a committed item: its two stems and all that made them",
    "failures": "One row an item and run that failed, with cause and remedy",
    "runs": "One row an execution of a job",
}
_COMMIT_TRIES = 12
_REBUILD_BATCH = 10_000


class Tables:
    """The three tables of one lake. Missing ones are made at the first write."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def url(self, name: TableName) -> str:
        """Where the table is: what DuckDB's `delta_scan`, pandas or Spark are given."""
        return self.store.url(f"tables/{name}")

    def add_stems(self, rows: Sequence[StemRow]) -> int:
        """Insert the rows whose item is not in the table yet; returns how many that were."""
        return self._insert("stems", rows, ("config_hash", "item_id"))

    def add_failures(self, rows: Sequence[FailureRow]) -> int:
        """Insert failures: one row an item and run, the first stays."""
        return self._insert("failures", rows, ("run_id", "item_id"))

    def put_run(self, row: RunRow) -> None:
        """Insert the run's row, or replace it when the run has one."""
        source = to_table([row], RUNS_SCHEMA)

        def write(table: DeltaTable) -> None:
            table.merge(source, f"t.run_id = {_literal(row.run_id)}", source_alias="s", target_alias="t") \
                .when_matched_update_all().when_not_matched_insert_all().execute()  # fmt: skip

        self._commit("runs", write)

    def committed_item_ids(self, config_hash: str) -> set[str]:
        """Items of a configuration in the stems table; `catch_up` first when a run may have died."""
        found = self.read("stems", ["item_id"], ("config_hash", "=", config_hash))
        return set(found.column("item_id").to_pylist())

    def catch_up(self, config_hash: str) -> int:
        """Insert rows whose marker was written by a run that died before its table commit: how many."""
        known = self.committed_item_ids(config_hash)
        keys = self.store.list(commit_prefix(config_hash))
        missing = [key for key in keys if _item_of(key) not in known]
        return sum(self.add_stems(rows) for rows in _batches(_markers(self.store, missing)))

    def read(
        self,
        name: TableName,
        columns: list[str] | None = None,
        where: tuple[str, str, str] | None = None,
    ) -> pa.Table:
        """The table's rows; none when there is no table yet. `where` is (column, operator, value)."""
        table = self._open(name)
        if table is None:
            return pa.Table.from_pylist([], schema=_SCHEMAS[name]).select(columns or _SCHEMAS[name].names)
        with _delta_errors(name):
            return table.to_pyarrow_table(columns=columns, filters=[where] if where else None)

    def create_missing(self) -> None:
        """Make the tables that do not exist, so that readers find all three, empty ones too."""
        for name in _SCHEMAS:
            self._open_or_create(name)  # type: ignore[arg-type]

    def compact(self, name: TableName, min_files: int = 64) -> bool:
        """Join small files once there are many; a conflict with another driver only puts it off."""
        table = self._open(name)
        if table is None or len(table.file_uris()) < min_files:
            return False
        try:
            table.optimize.compact()
        except CommitFailedError:
            return False
        return True

    def _insert(self, name: TableName, rows: Sequence[Row], keys: tuple[str, str]) -> int:
        """`keys`: first a column with few values (the merge skips files without them), then the rest."""
        unique = {tuple(getattr(row, key) for key in keys): row for row in reversed(rows)}
        if not unique:
            return 0
        source = to_table(list(reversed(unique.values())), _SCHEMAS[name])  # type: ignore[arg-type]
        values = ", ".join(sorted({_literal(key[0]) for key in unique}))
        predicate = f"t.{keys[0]} IN ({values}) AND " + " AND ".join(f"s.{key} = t.{key}" for key in keys)

        def write(table: DeltaTable) -> int:
            merged = table.merge(source, predicate, source_alias="s", target_alias="t")
            return int(merged.when_not_matched_insert_all().execute()["num_target_rows_inserted"])

        return self._commit(name, write)

    def _commit(self, name: TableName, write: Callable[[DeltaTable], Any]) -> Any:
        """Run a merge, again on the newest version when another driver's commit came between."""
        for attempt in range(_COMMIT_TRIES):
            with _delta_errors(name):
                try:
                    return write(self._open_or_create(name))
                except CommitFailedError:
                    if attempt == _COMMIT_TRIES - 1:
                        raise
            time.sleep(random.uniform(0, 0.05 * 2 ** min(attempt, 5)))
        raise AssertionError("unreachable")

    def _open(self, name: TableName) -> DeltaTable | None:
        with _delta_errors(name):
            try:
                return DeltaTable(self.url(name), storage_options=storage_options(self.store))
            except TableNotFoundError:
                return None

    def _open_or_create(self, name: TableName) -> DeltaTable:
        table = self._open(name)
        if table is None:
            _create(self.store, name)
            table = self._open(name)
        if table is None:
            raise StorageError(f"table {name}: could not be created at {self.url(name)}")
        return table


def rebuild(store: Store) -> int:
    """Replace the stems table by what the commit markers say, in one table commit; how many rows that is.

    Readers see the old table until the new one is complete. A row that a driver adds meanwhile may be left
    out: its next `catch_up` brings it back.
    """
    tables = Tables(store)
    tables.create_missing()
    rows = 0

    def batches() -> Iterable[pa.RecordBatch]:
        nonlocal rows
        for batch in _batches(_markers(store, store.list("commits"))):
            rows += len(batch)
            yield from to_table(batch, STEMS_SCHEMA).to_batches()

    with _delta_errors("stems"):
        write_deltalake(
            tables.url("stems"),
            pa.RecordBatchReader.from_batches(STEMS_SCHEMA, batches()),
            mode="overwrite",
            storage_options=storage_options(store),
        )
    return rows


def storage_options(store: Store) -> dict[str, str]:
    """What delta-rs needs beside the AWS variables, which it reads itself."""
    if store.scheme != "s3":
        return {}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    options = {"AWS_REGION": region}
    if endpoint:
        options["AWS_ENDPOINT_URL"] = endpoint
        if endpoint.startswith("http://"):
            options["AWS_ALLOW_HTTP"] = "true"
    return options


def _create(store: Store, name: TableName) -> None:
    if store.scheme == "file":
        store.make_folder(f"tables/{name}")
    with _delta_errors(name):
        try:
            DeltaTable.create(
                Tables(store).url(name),
                _SCHEMAS[name],
                mode="ignore",
                partition_by=_PARTITIONS[name],
                name=name,
                description=_DESCRIPTIONS[name],
                storage_options=storage_options(store),
            )
        except CommitFailedError:
            return  # another driver has just made it


def _markers(store: Store, keys: Sequence[str]) -> Iterable[StemRow]:
    for key, content in store.read_many(keys):
        try:
            yield StemRow.model_validate_json(content)
        except ValueError as error:
            raise StorageError(f"commit marker {key} is not a row of the stems table: {error}") from None


def _batches(rows: Iterable[StemRow]) -> Iterable[list[StemRow]]:
    batch: list[StemRow] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _REBUILD_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _item_of(commit_key: str) -> str:
    return commit_key.rpartition("/")[2].removesuffix(".json")


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


@contextlib.contextmanager
def _delta_errors(name: str) -> Iterator[None]:
    """Delta's errors may quote requests: hand on their first line, without secrets."""
    try:
        yield
    except (CommitFailedError, TableNotFoundError):
        raise
    except (DeltaError, OSError) as error:
        text = redact(str(error).strip().splitlines()[0][:400] if str(error).strip() else type(error).__name__)
        raise StorageError(f"table {name}: {text}") from None
