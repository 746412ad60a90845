from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import duckdb
import duckdb_ext
import pandas as pd
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from jobs import rebuild_tables
from pipeline.schema import STEMS_SCHEMA, FailureRow, RunRow, StemRow, utc_now
from pipeline.storage import StorageError, Store, commit_key
from pipeline.tables import Tables, rebuild, storage_options


def stem(item: int, *, config_hash: str = "c0ffee", run_id: str = "run-1", **changes: object) -> StemRow:
    values: dict[str, object] = {
        "item_id": f"{item:032x}",
        "asset_id": f"film/{item}'s début.wav",
        "uri": f"s3://media/{item}.wav",
        "config_hash": config_hash,
        "model": "tiny",
        "model_version": "v1",
        "description": "speech",
        "target_label": "dialogue",
        "residual_label": "music_and_effects",
        "target_uri": f"s3://lake/stems/{item}/dialogue.flac",
        "residual_uri": f"s3://lake/stems/{item}/music_and_effects.flac",
        "sample_rate": 48_000,
        "channels": 2,
        "duration_seconds": 12.5,
        "segment_count": 1,
        "target_peak": 0.5,
        "residual_peak": 0.25,
        "clipped_samples": 0,
        "run_id": run_id,
        "committed_at": datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
        "metadata_json": '{"title": "début"}',
    }
    return StemRow.model_validate({**values, **changes})


def failure(item: int, run_id: str = "run-1", cause: str = "truncated") -> FailureRow:
    return FailureRow(
        run_id=run_id,
        item_id=f"{item:032x}",
        asset_id=str(item),
        uri=f"/media/{item}.wav",
        stage="decode",
        cause=cause,
        message="shorter than declared",
        remedy="copy the file again",
        attempt=1,
        failed_at=utc_now(),
    )


def commit(store: Store, row: StemRow) -> None:
    assert store.put_if_absent(commit_key(row.config_hash, row.item_id), row.model_dump_json().encode())


def query(store: Store, sql: str) -> list[tuple[object, ...]]:
    """What an analyst types, with the extensions from their wheels and nothing downloaded."""
    folder = f"{duckdb_ext.__path__[0]}/extensions"
    settings: dict[str, Any] = {"extension_directory": folder, "autoinstall_known_extensions": "false"}
    with duckdb.connect(config=settings) as connection:
        connection.execute("LOAD delta")
        if store.scheme == "s3":
            connection.execute("LOAD httpfs")
            env = os.environ
            connection.execute(
                f"CREATE SECRET (TYPE s3, KEY_ID '{env['AWS_ACCESS_KEY_ID']}', "
                f"SECRET '{env['AWS_SECRET_ACCESS_KEY']}', REGION '{env['AWS_REGION']}', URL_STYLE 'path', "
                f"ENDPOINT '{env['AWS_ENDPOINT_URL'].removeprefix('http://')}', USE_SSL false)"
            )
        return connection.execute(sql).fetchall()


def test_adding_rows_twice_keeps_one_of_each(lake: str) -> None:
    tables = Tables(Store(lake))
    assert tables.committed_item_ids("c0ffee") == set()
    assert tables.add_stems([stem(1), stem(2)]) == 2
    assert tables.add_stems([stem(2, run_id="run-2"), stem(3), stem(3)]) == 1
    assert tables.add_stems([]) == 0
    assert tables.committed_item_ids("c0ffee") == {f"{i:032x}" for i in (1, 2, 3)}
    assert tables.committed_item_ids("another") == set()
    runs = {row["item_id"][-1]: row["run_id"] for row in tables.read("stems").to_pylist()}
    assert runs == {"1": "run-1", "2": "run-1", "3": "run-1"}


def test_a_failure_has_one_row_an_item_and_run(lake: str) -> None:
    tables = Tables(Store(lake))
    assert tables.add_failures([failure(1), failure(1, cause="later"), failure(2)]) == 2
    assert tables.add_failures([failure(1, cause="again"), failure(1, run_id="run-2")]) == 1
    found = tables.read("failures", ["run_id", "asset_id", "cause"]).to_pylist()
    assert sorted(tuple(row.values()) for row in found) == [
        ("run-1", "1", "truncated"),
        ("run-1", "2", "truncated"),
        ("run-2", "1", "truncated"),
    ]


def test_a_run_has_one_row_that_its_end_replaces(lake: str) -> None:
    tables = Tables(Store(lake))
    run = RunRow(
        run_id="run-1",
        job="dialogue_extract",
        status="running",
        started_at=utc_now(),
        config_hash="c0ffee",
        config_json="{}",
        model="tiny",
        model_version="v1",
    )
    tables.put_run(run)
    tables.put_run(run.model_copy(update={"run_id": "run-2"}))
    tables.put_run(run.model_copy(update={"status": "done", "items_committed": 7, "finished_at": utc_now()}))
    rows = {row["run_id"]: row for row in tables.read("runs").to_pylist()}
    assert rows["run-1"]["status"] == "done"
    assert rows["run-1"]["items_committed"] == 7
    assert rows["run-2"]["status"] == "running"


def test_drivers_adding_the_same_rows_at_once_leave_each_row_once(lake: str) -> None:
    store = Store(lake)
    rows = [stem(i) for i in range(12)]
    with ThreadPoolExecutor(4) as pool:
        inserted = list(pool.map(lambda k: Tables(store).add_stems(rows[k : k + 6]), (0, 3, 6, 0)))
    ids = Tables(store).read("stems", ["item_id"]).column("item_id").to_pylist()
    assert sorted(ids) == [row.item_id for row in rows]
    assert sum(inserted) == 12


def test_rows_committed_by_a_run_that_died_are_caught_up(lake: str) -> None:
    store, tables = Store(lake), Tables(Store(lake))
    for i in range(5):
        commit(store, stem(i))
    commit(store, stem(9, config_hash="another"))
    tables.add_stems([stem(0), stem(1)])
    assert tables.catch_up("c0ffee") == 3
    assert tables.catch_up("c0ffee") == 0
    assert tables.committed_item_ids("c0ffee") == {f"{i:032x}" for i in range(5)}


def test_a_rebuilt_table_equals_the_one_it_replaces(lake: str, capsys: pytest.CaptureFixture[str]) -> None:
    store, tables = Store(lake), Tables(Store(lake))
    rows = [stem(i, config_hash=f"config{i % 2}", anchors_json="[]" if i else None) for i in range(6)]
    for row in rows:
        commit(store, row)
        tables.add_stems([row])
    before = tables.read("stems").sort_by("item_id")
    tables.add_stems([stem(77)])  # a row that no marker backs
    assert rebuild(store) == 6
    assert tables.read("stems").sort_by("item_id").equals(before)
    assert rebuild_tables.main(["--lake", lake]) == 0
    assert capsys.readouterr().out.startswith(f"6 rows in {store.root}/tables/stems")
    assert tables.read("stems").sort_by("item_id").equals(before)


def test_rebuild_of_an_empty_lake_makes_empty_tables(lake: str) -> None:
    store = Store(lake)
    assert rebuild(store) == 0
    for name in ("stems", "failures", "runs"):
        assert Tables(store).read(name).num_rows == 0
        assert query(store, f"SELECT count(*) FROM delta_scan('{Tables(store).url(name)}')") == [(0,)]


def test_rebuild_names_a_marker_that_is_no_row(lake: str) -> None:
    store = Store(lake)
    store.put_if_absent("commits/c0ffee/bad.json", b'{"item_id": 3}')
    with pytest.raises(StorageError, match=r"commits/c0ffee/bad\.json"):
        rebuild(store)
    assert rebuild_tables.main(["--lake", lake]) == 1


def test_duckdb_reads_the_tables_as_they_lie(lake: str) -> None:
    store = Store(lake)
    Tables(store).add_stems([stem(1), stem(2), stem(3, config_hash="another")])
    found = query(
        store,
        "SELECT asset_id, duration_seconds, committed_at AT TIME ZONE 'UTC', metadata_json->>'title' "
        f"FROM delta_scan('{Tables(store).url('stems')}') WHERE config_hash = 'c0ffee' ORDER BY item_id",
    )
    when = datetime(2026, 1, 2, 3, 4, 5, 678901)
    assert found == [(f"film/{i}'s début.wav", 12.5, when, "début") for i in (1, 2)]


def test_pandas_reads_the_tables_with_plain_types(lake: str) -> None:
    tables = Tables(Store(lake))
    tables.add_stems([stem(1)])
    frame: pd.DataFrame = tables.read("stems").to_pandas()
    assert str(frame["committed_at"].dtype) == "datetime64[us, UTC]"
    assert json.loads(frame["metadata_json"][0]) == {"title": "début"}


def test_table_columns_carry_their_descriptions(lake: str) -> None:
    from deltalake import DeltaTable

    from pipeline.tables import storage_options

    store = Store(lake)
    Tables(store).create_missing()
    schema = DeltaTable(Tables(store).url("stems"), storage_options=storage_options(store)).schema()
    comments = {field.name: field.metadata.get("comment") for field in schema.fields}
    assert all(comments.values())
    assert comments["sample_rate"] == "Sample rate of both stems, Hz"


def test_compaction_keeps_every_row(lake: str) -> None:
    tables = Tables(Store(lake))
    for i in range(5):
        tables.add_stems([stem(i)])
    assert not tables.compact("stems", min_files=64)
    assert tables.compact("stems", min_files=5)
    assert len(tables.committed_item_ids("c0ffee")) == 5
    assert isinstance(tables.read("stems"), pa.Table)


def test_an_unreachable_lake_is_reported_without_secrets(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-right-secret")
    with pytest.raises(StorageError) as caught:
        Tables(Store("s3://lake/wrong-secret")).add_stems([stem(1)])
    assert "table stems" in str(caught.value)
    assert "not-the-right-secret" not in str(caught.value)


def test_a_table_of_an_older_version_gets_the_new_columns(lake: str) -> None:
    tables = Tables(Store(lake))
    tables.create_missing()
    old = pa.Table.from_pylist([stem(1).record()], schema=STEMS_SCHEMA)
    newer = {"judge_overall", "gain_db", "candidates", "windows", "windows_skipped", "predicted_spans_json"}
    write_deltalake(
        tables.url("stems"), old.drop_columns(sorted(newer)), mode="overwrite", schema_mode="overwrite",
        storage_options=storage_options(tables.store),
    )  # fmt: skip
    assert tables.add_stems([stem(2, judge_overall=3.5, candidates=4)]) == 1
    rows = {row["item_id"][-1]: row for row in Tables(Store(lake)).read("stems").to_pylist()}
    assert (rows["2"]["judge_overall"], rows["2"]["candidates"]) == (3.5, 4)
    assert rows["1"]["judge_overall"] is None
