"""What each fault of the proxy does to a lake on S3: what is tried again gets done, and no object is halved."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from lake_rows import stem_row
from proxy import Fault, Proxy, segfault

from pipeline.attempts import Attempts
from pipeline.items import Item
from pipeline.storage import StorageError, Store
from pipeline.tables import Tables

CONTENT = b"0123456789abcdef" * 20_000


@pytest.fixture(scope="module")
def proxy(s3_server: str) -> Iterator[Proxy]:
    proxy = Proxy(int(s3_server.rpartition(":")[2]))
    yield proxy
    proxy.close()


@pytest.fixture
def store(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    yield Store(f"s3://lake/{uuid.uuid4().hex}")
    proxy.faults = []


@pytest.mark.parametrize("kind", ["slow_down", "reset", "lost_answer", "half_request"])
def test_write_that_the_network_disturbs_is_done_in_the_end(proxy: Proxy, store: Store, kind) -> None:
    proxy.faults = [fault := Fault("PUT ", kind, times=2)]
    store.write_bytes("parts/c/i/one", CONTENT)
    assert len(fault.hits) == 2 and store.read_bytes("parts/c/i/one") == CONTENT


@pytest.mark.parametrize("kind", ["slow_down", "reset", "half_answer"])
def test_read_that_the_network_disturbs_is_done_in_the_end(proxy: Proxy, store: Store, kind) -> None:
    store.write_bytes("parts/c/i/one", CONTENT)
    proxy.faults = [fault := Fault("GET .*/one", kind, times=2)]
    assert store.read_bytes("parts/c/i/one") == CONTENT and len(fault.hits) == 2


def test_half_a_request_leaves_no_object(proxy: Proxy, store: Store) -> None:
    proxy.faults = [Fault("PUT ", "half_request", times=None)]
    with pytest.raises(StorageError):
        store.write_bytes("parts/c/i/one", CONTENT)
    proxy.faults = []
    assert store.list("parts") == []


def test_marker_whose_answer_was_lost_is_there_and_stays(proxy: Proxy, store: Store) -> None:
    proxy.faults = [Fault("PUT ", "lost_answer")]
    store.put_if_absent("commits/c/i.json", b"first")
    assert not store.put_if_absent("commits/c/i.json", b"second")
    assert store.read_bytes("commits/c/i.json") == b"first"


@pytest.mark.parametrize("kind", ["slow_down", "reset", "lost_answer", "half_request"])
def test_table_commit_that_the_network_disturbs_is_done_once(proxy: Proxy, store: Store, kind) -> None:
    rows = [stem_row(store, name) for name in ("one", "two")]
    tables = Tables(store)
    tables.add_stems(rows[:1])
    proxy.faults = [fault := Fault("PUT .*/_delta_log/", kind, times=2)]
    tables.add_stems(rows)
    assert fault.hits
    assert sorted(Tables(store).read("stems", ["item_id"])["item_id"].to_pylist()) == sorted(r.item_id for r in rows)


def test_note_that_cannot_be_deleted_stays_and_is_no_error(proxy: Proxy, store: Store) -> None:
    item = Item("i" * 32, "a", "a.wav", "v1", 1, 1.0, "speech", (), None, 1, "speech", "rest")
    proxy.faults = [Fault(r"(DELETE|POST) ", "reset", times=None)]
    with Attempts(store, item, 0, "separate", limit=2):
        pass
    proxy.faults = []
    assert len(store.list("attempts")) == 1
    with Attempts(store, item, 0, "separate", limit=2):
        pass
    assert store.list("attempts") == []


@pytest.mark.parametrize(("kind", "stored"), [("kill_before", False), ("kill_after", True)])
def test_who_asks_is_killed_before_or_after_the_store_has_done_it(
    proxy: Proxy, store: Store, kind, stored: bool
) -> None:
    proxy.faults = [Fault("PUT ", kind, act=segfault)]
    program = f"from pipeline.storage import Store; Store({store.root!r}).write_bytes('parts/c/i/one', b'done')"
    died = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], env=dict(os.environ), timeout=60
    )
    assert died.returncode == -11
    proxy.faults = []
    assert store.exists("parts/c/i/one") is stored
