"""What a driver remembers of a table stays true whatever others do to the table."""

from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable
from lake_rows import stem_row

from pipeline.compaction import compact
from pipeline.schema import StemRow
from pipeline.storage import Store
from pipeline.tables import TableName, Tables

CONFIG = "c" * 16


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "lake"))


def row(store: Store, number: int) -> StemRow:
    return stem_row(store, f"tape-{number}")


def ids(store: Store, *numbers: int) -> set[str]:
    return {row(store, number).item_id for number in numbers}


def test_rows_that_another_driver_added_meanwhile_are_not_added_again(store):
    ours, theirs = Tables(store), Tables(store)
    ours.add_stems([row(store, 1)])
    theirs.add_stems([row(store, 2)])
    assert ours.add_stems([row(store, 2), row(store, 3)]) == 1
    assert ours.committed_item_ids(CONFIG) == ids(store, 1, 2, 3)
    assert len(ours.read("stems")) == 3


def test_rows_that_another_driver_deleted_can_be_added_again(store):
    ours, theirs = Tables(store), Tables(store)
    ours.add_stems([row(store, 1), row(store, 2)])
    theirs.delete_stems(CONFIG, sorted(ids(store, 2)))
    assert ours.committed_item_ids(CONFIG) == ids(store, 1)
    assert ours.add_stems([row(store, 1), row(store, 2)]) == 1


@pytest.mark.parametrize("by_whom", ["ourselves", "another"])
def test_joining_files_neither_forgets_nor_doubles_a_row(store, by_whom):
    ours = Tables(store)
    for number in range(5):
        ours.add_stems([row(store, number)])
    if by_whom == "ourselves":
        assert ours.compact("stems", min_files=2)
    else:
        compact(Tables(store), "stems", retention_hours=0)
    assert ours.add_stems([row(store, number) for number in range(6)]) == 1
    assert ours.committed_item_ids(CONFIG) == ids(store, *range(6))
    assert len(ours.read("stems")) == 6


class Late(Tables):
    """A driver that looked at the table some time ago and commits now."""

    looked: Any = None

    def _open_or_create(self, name: TableName) -> DeltaTable:
        table, self.looked = self.looked, None
        return table or super()._open_or_create(name)


def test_a_commit_on_an_old_version_of_the_table_is_refused_and_made_on_the_newest(store):
    late, quick = Late(store), Tables(store)
    quick.create_missing()
    late.looked = DeltaTable(late.url("stems"))
    quick.add_stems([row(store, 1)])
    assert late.add_stems([row(store, 1), row(store, 2)]) == 1
    assert len(quick.read("stems")) == 2


def test_configurations_are_known_apart(store):
    tables = Tables(store)
    tables.add_stems([row(store, 1), stem_row(store, "tape-1", config_hash="d" * 16)])
    assert tables.committed_item_ids(CONFIG) == ids(store, 1)
    assert len(tables.committed_item_ids("d" * 16)) == 1
