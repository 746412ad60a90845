"""Folders of very many keys are listed whole, in pieces."""

import pytest

from pipeline.storage import Store


@pytest.mark.parametrize("many", [False, True])
def test_scan_finds_every_id_once_and_nothing_else(lake: str, many: bool) -> None:
    store = Store(lake)
    keys = {f"commits/c0ffee/{i * 7:02x}{i:030x}.json" for i in range(30)}
    for key in keys:
        store.write_bytes(key, b"{}")
    store.write_bytes("commits/c0ffee2/00ff.json", b"{}")
    store.write_bytes("commits/other/00ff.json", b"{}")
    found = list(store.scan("commits/c0ffee", many))
    assert len(found) == len(set(found))
    assert set(found) == keys


@pytest.mark.parametrize("many", [False, True])
def test_scan_of_a_folder_that_is_not_there_finds_nothing(lake: str, many: bool) -> None:
    assert list(Store(lake).scan("commits/none", many)) == []
