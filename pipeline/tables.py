"""The Delta tables `stems`, `failures` and `runs` below `tables/` of the lake, written by drivers only.

Rows that are new are appended to the very version in which they were found to be new, or not at all: neither a rerun
nor a second driver can double one, and a commit costs the same however large the table is. The commit markers hold the
same rows; `rebuild` makes a stems table of them.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from pipeline.known import KnownIds
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
_COMMIT_TRIES = 20
# Delta takes appends of several writers at once, doubles included; without retries of its own the later one fails.
_EXCLUSIVE = CommitProperties(max_commit_retries=0)
_REBUILD_BATCH = 10_000
# What delta-rs says of a network or server that fails, in contrast to a store that refuses.
_UNSTEADY = re.compile(r"Generic \w+ error")
_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # seconds
_T = TypeVar("_T")
# Ten pages of a listing: beyond it, several listings at once are worth their requests.
_MANY_MARKERS = 10_000


class StoreUnsteady(StorageError):
    """The store did not answer, or broke off: it may the next time."""


class Tables:
    """The three tables of one lake. Missing ones are made at the first write."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._known = {"stems": KnownIds("config_hash", "item_id"), "failures": KnownIds("run_id", "item_id")}

    def url(self, name: TableName) -> str:
        """Where the table is: what DuckDB's `delta_scan`, pandas or Spark are given."""
        return self.store.url(f"tables/{name}")

    def add_stems(self, rows: Sequence[StemRow]) -> int:
        """Insert the rows whose item is not in the table yet; returns how many that were."""
        return self._insert("stems", {(row.config_hash, row.item_id): row for row in reversed(rows)})

    def add_failures(self, rows: Sequence[FailureRow]) -> int:
        """Insert failures: one row an item and run, the first stays."""
        return self._insert("failures", {(row.run_id, row.item_id): row for row in reversed(rows)})

    def put_run(self, row: RunRow) -> None:
        """Insert the run's row, or replace it when the run has one."""
        source = to_table([row], RUNS_SCHEMA)

        def write(table: DeltaTable) -> None:
            table.merge(source, f"t.run_id = {_literal(row.run_id)}", "s", "t", merge_schema=True) \
                .when_matched_update_all().when_not_matched_insert_all().execute()  # fmt: skip

        self._commit("runs", write)

    def delete_stems(self, config_hash: str, item_ids: Sequence[str]) -> int:
        """Delete the rows of these items; returns how many there were. Their markers must have gone before."""
        if not item_ids:
            return 0
        values = ", ".join(_literal(i) for i in item_ids)
        predicate = f"config_hash = {_literal(config_hash)} AND item_id IN ({values})"

        def delete(table: DeltaTable) -> int:
            return int(table.delete(predicate)["num_deleted_rows"])

        return self._commit("stems", delete)

    def committed_item_ids(self, config_hash: str) -> set[str]:
        """Items of a configuration in the stems table; `catch_up` first when a run may have died."""

        def ids() -> set[str]:
            table = self._open("stems")
            if table is None:
                return set()
            with _delta_errors("stems"):
                return set(self._known["stems"].of(table, config_hash))

        return _patiently(ids)

    def catch_up(self, config_hash: str) -> int:
        """Insert rows whose marker was written by a run that died before its table commit: how many."""
        known = self.committed_item_ids(config_hash)
        keys = self.store.scan(commit_prefix(config_hash), many=len(known) > _MANY_MARKERS)
        missing = sorted(key for key in keys if _item_of(key) not in known)
        return sum(self.add_stems(rows) for rows in _batches(_markers(self.store, missing)))

    def read(
        self,
        name: TableName,
        columns: list[str] | None = None,
        where: tuple[str, str, str] | None = None,
    ) -> pa.Table:
        """The table's rows; none when there is no table yet. `where` is (column, operator, value)."""
        return _patiently(lambda: self._read(name, columns, where))

    def _read(self, name: TableName, columns: list[str] | None, where: tuple[str, str, str] | None) -> pa.Table:
        table = self._open(name)
        if table is None:
            return pa.Table.from_pylist([], schema=_SCHEMAS[name]).select(columns or _SCHEMAS[name].names)
        with _delta_errors(name):
            there = {field.name for field in table.schema().fields}
            chosen = None if columns is None else [column for column in columns if column in there]
            rows = table.to_pyarrow_table(columns=chosen, filters=[where] if where else None)
        for column in set(columns or ()) - there:  # a table of an older version lacks it
            rows = rows.append_column(column, pa.nulls(len(rows), _SCHEMAS[name].field(column).type))
        return rows if columns is None else rows.select(columns)

    def create_missing(self) -> None:
        """Make the tables that do not exist, so that readers find all three, empty ones too."""
        for name in _SCHEMAS:
            _patiently(lambda name=name: self._open_or_create(name))  # type: ignore[misc]

    def compact(self, name: TableName, min_files: int = 64) -> bool:
        """Join small files once there are many; a conflict with another driver, or a poor store, only puts it off."""
        try:
            table = self._open(name)
            if table is None or len(table.file_uris()) < min_files:
                return False
            before = table.version()
            with _delta_errors(name):
                table.optimize.compact()
        except (CommitFailedError, StoreUnsteady):
            return False
        if name in self._known:
            self._known[name].rewritten(table, before)
        return True

    def _insert(self, name: TableName, rows: dict[tuple[str, str], Row]) -> int:
        """Append the rows that are new, by their keys; returns how many."""
        if not rows:
            return 0
        known = self._known[name]

        def write(table: DeltaTable) -> int:
            new = {key: row for key, row in reversed(rows.items()) if key[1] not in known.of(table, key[0])}
            if new:
                source = to_table(list(new.values()), _SCHEMAS[name])
                # merge: a table of an older version gets the columns that it lacks.
                write_deltalake(table, source, mode="append", schema_mode="merge", commit_properties=_EXCLUSIVE)
                known.appended(table, {group: [i for g, i in new if g == group] for group in {g for g, _ in new}})
            return len(new)

        return self._commit(name, write)

    def _commit(self, name: TableName, write: Callable[[DeltaTable], Any]) -> Any:
        """Run a write, again on the newest version when another driver's commit came between.

        And again when the store failed it: what was written after all is found in the newest version.
        """
        return _patiently(lambda: self._commit_once(name, write))

    def _commit_once(self, name: TableName, write: Callable[[DeltaTable], Any]) -> Any:
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
        kind = StoreUnsteady if _UNSTEADY.search(text) else StorageError
        raise kind(f"table {name}: {text}") from None


def _patiently(action: Callable[[], _T]) -> _T:
    """Do it, and again while the store is unsteady: delta-rs gives up sooner than a run should, and at a conditional
    put without an answer at once."""
    for pause in _PAUSES:
        try:
            return action()
        except StoreUnsteady:
            time.sleep(pause * random.uniform(0.5, 1.5))
    return action()
