"""Dropped items leave the table at once and their stems later; a drop that was cut short can be finished."""

from __future__ import annotations

from pathlib import Path

import duckdb
import duckdb_ext
import pytest
from lake_rows import NOON, commit, stem_row

from pipeline.keys import commit_key
from pipeline.lease import LeaseLost
from pipeline.schema import StemRow
from pipeline.stale import Made
from pipeline.storage import StorageError, Store
from pipeline.superseded import Tombstone, drop, finish
from pipeline.tables import Tables, rebuild

NEW = "d" * 16


def made(row: StemRow) -> Made:
    return Made(row.item_id, row.config_hash, row.model_version, row.source_etag, row.source_size_bytes)


def nothing() -> None:
    pass


def test_dropped_item_leaves_table_and_markers_and_its_stems_stay(lake: str) -> None:
    store = Store(lake)
    tables = Tables(store)
    old, new, other = (commit(store, stem_row(store, *a)) for a in (["a"], ["b"], ["c"]))
    new = commit(store, stem_row(store, "a", config_hash=NEW))
    assert drop(store, tables, [(made(old), new.item_id)], NEW, 7, nothing) == 1
    left = {row["item_id"] for row in tables.read("stems").to_pylist()}
    assert old.item_id not in left and {new.item_id, other.item_id} <= left
    assert not store.exists(commit_key(old.config_hash, old.item_id))
    assert store.exists(store.key_of(old.target_uri))  # who has just read its URL can open it
    (key,) = store.list("tombstones")
    stone = Tombstone.from_json(key, store.read_bytes(key))
    assert (stone.item_id, stone.superseded_by, stone.token) == (old.item_id, new.item_id, 7)
    assert rebuild(store) == 3  # the markers agree with the table


def test_item_whose_successor_is_not_committed_is_kept(lake: str) -> None:
    store = Store(lake)
    old = commit(store, stem_row(store, "a"))
    unmarked = commit(store, stem_row(store, "a", config_hash=NEW), marker=False)
    assert drop(store, Tables(store), [(made(old), unmarked.item_id)], NEW, 1, nothing) == 0
    assert store.exists(commit_key(old.config_hash, old.item_id)) and not store.list("tombstones")


def test_driver_that_lost_its_lease_drops_nothing(tmp_path) -> None:
    store = Store(str(tmp_path))
    old = commit(store, stem_row(store, "a"))
    new = commit(store, stem_row(store, "a", config_hash=NEW))

    def lost() -> None:
        raise LeaseLost("taken over")

    with pytest.raises(LeaseLost):
        drop(store, Tables(store), [(made(old), new.item_id)], NEW, 1, lost)
    assert Tables(store).read("stems").num_rows == 2


@pytest.mark.parametrize("marker_left", [True, False])
def test_drop_that_was_cut_short_is_finished_and_again_does_no_harm(tmp_path, marker_left) -> None:
    store = Store(str(tmp_path))
    old = commit(store, stem_row(store, "a"), marker=marker_left)
    new = commit(store, stem_row(store, "a", config_hash=NEW))
    stone = Tombstone(old.config_hash, old.item_id, new.item_id, NEW, 1)
    for _ in range(2):
        finish(store, Tables(store), [stone])
        assert Tables(store).read("stems", ["item_id"]).to_pylist() == [{"item_id": new.item_id}]
        assert len(store.list("commits")) == 1


def test_query_of_the_readme_reads_the_newest_stems_of_each_prompt(tmp_path) -> None:
    store = Store(str(tmp_path))
    for hour, (asset, config) in enumerate([("a", "c"), ("a", "d"), ("b", "c")]):
        row = stem_row(store, asset, config_hash=config * 16, committed_at=NOON.replace(hour=hour))
        commit(store, row)
    text = (Path(__file__).parents[2] / "README.md").read_text()
    (sql,) = (block.split("```")[0] for block in text.split("```sql\n")[1:] if "QUALIFY" in block)
    settings = {"extension_directory": f"{duckdb_ext.__path__[0]}/extensions", "autoinstall_known_extensions": "false"}
    with duckdb.connect(config=settings) as connection:
        connection.execute("LOAD delta")
        columns = "SELECT asset_id, config_hash"
        sql = sql.replace("SELECT *", columns).replace("lake/tables", f"{tmp_path}/tables")
        assert sorted(connection.execute(sql).fetchall()) == [("a", "d" * 16), ("b", "c" * 16)]


def test_tombstone_that_is_none_is_named(tmp_path) -> None:
    with pytest.raises(StorageError, match=r"tombstones/c/x\.json is not a tombstone"):
        Tombstone.from_json("tombstones/c/x.json", b"{}")
