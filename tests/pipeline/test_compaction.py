"""Compaction leaves every row, fewer files, and no trace in what drivers commit meanwhile."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from lake_rows import failure_row, stem_row

from pipeline.compaction import compact
from pipeline.storage import StorageError, Store
from pipeline.tables import Tables


def filled(lake: str, commits: int = 12) -> Tables:
    store = Store(lake)
    tables = Tables(store)
    for i in range(commits):
        rows = [stem_row(store, f"a{i}-{j}", config_hash=c * 16) for j in range(3) for c in "cd"]
        tables.add_stems(rows)
    return tables


def test_small_files_become_one_a_configuration_and_every_row_stays(lake: str) -> None:
    tables = filled(lake)
    before = tables.read("stems").sort_by("item_id")
    done = compact(tables, "stems")
    assert done is not None and not done.gave_up
    assert (done.before.files, done.after.files) == (24, 2)
    assert (done.before.rows, done.after.rows) == (72, 72)
    assert tables.read("stems").sort_by("item_id") == before
    again = compact(tables, "stems")
    assert again is not None and again.after.files == 2


def test_files_of_old_versions_stay_for_the_retention_time_and_go_after_it(tmp_path: Path) -> None:
    tables = filled(str(tmp_path))
    folder = tmp_path / "tables" / "stems"

    def files() -> int:
        return len(list(folder.rglob("part-*.parquet")))

    kept = compact(tables, "stems")
    assert kept is not None and (kept.unused_files, files()) == (0, 26)
    dry = compact(tables, "stems", retention_hours=0, delete=False)
    assert dry is not None and (dry.unused_files, files()) == (24, 26)
    done = compact(tables, "stems", retention_hours=0)
    assert done is not None and (done.unused_files, files()) == (24, 2)
    assert tables.read("stems").num_rows == 72
    assert tables.add_stems([stem_row(tables.store, "late")]) == 1


def test_rows_that_are_committed_meanwhile_are_all_there(lake: str) -> None:
    tables = filled(lake, 4)
    ended = threading.Event()
    count = 0

    def drive() -> None:
        nonlocal count
        while not ended.is_set():
            count += Tables(Store(lake)).add_stems([stem_row(tables.store, f"new-{count}")])

    driver = threading.Thread(target=drive)
    driver.start()
    try:
        for _ in range(4):
            assert compact(tables, "stems") is not None
    finally:
        ended.set()
        driver.join()
    assert count and tables.read("stems").num_rows == 24 + count


def test_table_without_rows_and_no_table_need_nothing(tmp_path: Path) -> None:
    tables = Tables(Store(str(tmp_path)))
    assert compact(tables, "failures") is None
    tables.create_missing()
    done = compact(tables, "failures")
    assert done is not None and (done.after.files, done.after.rows) == (0, 0)
    tables.add_failures([failure_row("1" * 32, "truncated")])
    done = compact(tables, "failures")
    assert done is not None and done.after.rows == 1


def test_table_that_is_damaged_is_named(tmp_path: Path) -> None:
    tables = filled(str(tmp_path), 1)
    for path in (tmp_path / "tables" / "stems" / "_delta_log").glob("*.json"):
        path.write_text("not json")
    with pytest.raises(StorageError, match="table stems"):
        compact(tables, "stems")
