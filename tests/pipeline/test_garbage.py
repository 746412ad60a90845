"""What is garbage and what is not, and that collecting it never takes a stem that is committed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from lake_rows import commit, failure_row, stem_row

from pipeline.collector import collect
from pipeline.filesystems import TEMPORARY, filesystem
from pipeline.garbage import Findings, Kind, Scan
from pipeline.keys import attempt_key, commit_key, part_key, stem_key, tombstone_key
from pipeline.lease import LeaseLost
from pipeline.stale import Made
from pipeline.storage import Store
from pipeline.superseded import Tombstone, drop
from pipeline.tables import Tables
from pipeline.uploads import unfinished

CONFIG = "c" * 16
DAY = 86_400.0
OPEN, KILLER = "1" * 32, "2" * 32


def scan(store: Store, days_later: float = 8, grace_days: float = 7) -> Findings:
    return Scan(store, Tables(store), time.time() + days_later * DAY, grace_days * DAY).run()


def kinds(findings: Findings) -> dict[Kind, list[str]]:
    found: dict[Kind, list[str]] = {}
    for one in findings.garbage:
        found.setdefault(one.kind, []).append(one.key)
    return found


def confirm() -> None:
    pass


def dropped(store: Store, asset: str = "old"):
    """An item that was dropped: its row, its stems still there."""
    old = commit(store, stem_row(store, asset))
    new = commit(store, stem_row(store, asset, config_hash="d" * 16))
    made = Made(old.item_id, CONFIG, "m1", "v1", 100)
    assert drop(store, Tables(store), [(made, new.item_id)], new.config_hash, 1, confirm) == 1
    return old, new


@pytest.fixture
def littered(lake: str) -> tuple[Store, dict[Kind, list[str]]]:
    """A lake with one of everything, and the keys that are garbage once they are old."""
    store = Store(lake)
    kept = commit(store, stem_row(store, "kept"))
    old, _ = dropped(store)
    garbage: dict[Kind, list[str]] = {
        Kind.PARTS_OF_COMMITTED: [part_key(CONFIG, kept.item_id, 0, 2, "target", "wav")],
        Kind.ABANDONED_PARTS: [part_key(CONFIG, OPEN, i, 2, "target", "wav") for i in (0, 1)],
        Kind.UNCOMMITTED_STEMS: [stem_key(CONFIG, "x/ü", OPEN, label, "flac") for label in ("rest", "speech")],
        Kind.ATTEMPTS: [attempt_key(OPEN, 0, "decode"), attempt_key(kept.item_id, 1, "decode")],
    }
    for keys in garbage.values():
        for key in keys:
            store.write_bytes(key, b"0123456789")
    garbage[Kind.DROPPED_STEMS] = [store.key_of(url) for url in (old.residual_uri, old.target_uri)]
    garbage[Kind.TOMBSTONES] = [tombstone_key(CONFIG, old.item_id)]
    # Not garbage at any age: what keeps an item from killing its worker again.
    store.write_bytes(attempt_key(KILLER, 0, "decode"), b"")
    Tables(store).add_failures([failure_row(KILLER, "worker_died")])
    return store, {kind: sorted(keys) for kind, keys in garbage.items()}


def test_every_kind_of_garbage_is_found_and_nothing_else(littered) -> None:
    store, expected = littered
    assert kinds(scan(store)) == expected
    assert scan(store).kept_bytes > 0


def test_nothing_within_the_grace_time_is_garbage(littered) -> None:
    assert scan(littered[0], days_later=6.9).garbage == []


def test_collecting_deletes_the_garbage_and_only_that(littered) -> None:
    store, expected = littered
    before = {entry.key for entry in store.entries() if not entry.key.startswith("tables/")}
    collected = collect(store, Tables(store), scan(store), confirm)
    after = {entry.key for entry in store.entries() if not entry.key.startswith("tables/")}
    assert before - after == {key for keys in expected.values() for key in keys}
    assert collected.objects == sum(map(len, expected.values())) and not collected.spared and not collected.withdrawn
    assert scan(store).garbage == [] and scan(store, days_later=99).without_stems == []
    for row in Tables(store).read("stems").to_pylist():
        assert store.exists(store.key_of(row["target_uri"]))


def test_item_with_one_young_part_keeps_all_of_them(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    keys = [part_key(CONFIG, OPEN, i, 3, "target", "wav") for i in range(3)]
    for key in keys:
        store.write_bytes(key, b"part")
    for key in keys[:2]:
        os.utime(tmp_path / key, (1, 1))
    assert scan(store, days_later=0).garbage == []  # a run continues it
    os.utime(tmp_path / keys[2], (1, 1))
    assert kinds(scan(store, days_later=0)) == {Kind.ABANDONED_PARTS: keys}


def test_stems_of_a_row_without_marker_are_kept_and_reported(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    row = commit(store, stem_row(store, "a"), marker=False)
    findings = scan(store)
    assert findings.garbage == [] and findings.without_marker == [(CONFIG, row.item_id)]


def test_marker_without_stems_is_reported_and_left(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    row = commit(store, stem_row(store, "a"), stems=False)
    findings = scan(store)
    assert findings.garbage == [] and findings.without_stems == [commit_key(CONFIG, row.item_id)]


def test_dropped_stems_get_the_grace_time_from_their_drop_on(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    old, _ = dropped(store)
    for url in (old.target_uri, old.residual_uri):
        os.utime(url, (1, 1))  # made in 1970, dropped now
    assert scan(store, days_later=6).garbage == []
    assert set(kinds(scan(store))) == {Kind.DROPPED_STEMS, Kind.TOMBSTONES}


def test_drop_that_was_cut_short_is_finished_before_its_stems_go(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    old = commit(store, stem_row(store, "old"))
    new = commit(store, stem_row(store, "old", config_hash="d" * 16))
    stone = Tombstone(CONFIG, old.item_id, new.item_id, new.config_hash, 1)
    time.sleep(0.01)
    store.write_bytes(stone.key, stone.to_json())  # and then the driver was killed
    findings = scan(store)
    assert findings.unfinished_drops == [stone]
    collect(store, Tables(store), findings, confirm)
    assert Tables(store).read("stems", ["item_id"]).to_pylist() == [{"item_id": new.item_id}]
    assert [row.split("/")[1] for row in store.list("stems")] == ["d" * 16] * 2 and not store.list("tombstones")


def test_item_that_was_made_again_after_its_drop_is_kept(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    old, _ = dropped(store)
    time.sleep(0.01)
    commit(store, old)
    findings = scan(store)
    assert findings.unfinished_drops == [] and set(kinds(findings)) == {Kind.TOMBSTONES}
    collect(store, Tables(store), findings, confirm)
    assert Tables(store).read("stems").num_rows == 2 and len(store.list("stems")) == 4


def test_item_that_is_committed_between_scan_and_deletion_is_spared(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    row = commit(store, stem_row(store, "a"), marker=False, table=False)
    findings = scan(store)
    assert set(kinds(findings)) == {Kind.UNCOMMITTED_STEMS}
    commit(store, row)
    collected = collect(store, Tables(store), findings, confirm)
    assert (collected.objects, collected.spared) == (0, 2)
    assert len(store.list("stems")) == 2


class Commits(Store):
    """A lake in which another driver commits the item just when its first stem has been deleted."""

    def delete(self, key: str) -> None:
        super().delete(key)
        if key.startswith("stems/") and not self.list("commits"):
            commit(Store(self.root), stem_row(Store(self.root), "a"), stems=False)


def test_item_that_is_committed_during_the_deletion_is_taken_back(tmp_path: Path) -> None:
    store = Commits(str(tmp_path))
    row = commit(store, stem_row(store, "a"), marker=False, table=False)
    collected = collect(store, Tables(store), scan(store), confirm, settle_seconds=0)
    assert collected.withdrawn == (row.item_id,)  # the next run makes it again
    assert Tables(store).read("stems").num_rows == 0 and not store.list("commits")


class Repairs(Commits):
    """The same, and the writer stores its stems again, as writers do when their marker is put."""

    def read_bytes(self, key: str) -> bytes:
        row = stem_row(self, "a")
        for url in (row.target_uri, row.residual_uri):
            self.write_bytes(self.key_of(url), b"stem")
        return super().read_bytes(key)


def test_item_whose_writer_stores_its_stems_again_stays_committed(tmp_path: Path) -> None:
    store = Repairs(str(tmp_path))
    commit(store, stem_row(store, "a"), marker=False, table=False)
    assert collect(store, Tables(store), scan(store), confirm, settle_seconds=5).withdrawn == ()
    assert Tables(store).read("stems").num_rows == 1 and len(store.list("stems")) == 2


def test_collector_that_lost_its_lease_deletes_nothing(littered) -> None:
    store, _ = littered

    def lost() -> None:
        raise LeaseLost("taken over")

    before = [entry.key for entry in store.entries()]
    with pytest.raises(LeaseLost):
        collect(store, Tables(store), scan(store), lost)
    assert [entry.key for entry in store.entries()] == before


def test_unfinished_files_of_killed_local_writers_are_found(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    commit(store, stem_row(store, "a"))
    folder = tmp_path / "stems" / CONFIG / "a" / "0123"
    folder.mkdir(parents=True)
    (folder / f"{TEMPORARY}4711-1-abcdef").write_bytes(b"half a stem")
    (tmp_path / "notes.txt").write_text("not ours")
    findings = scan(store)
    assert {kind: len(keys) for kind, keys in kinds(findings).items()} == {Kind.TEMPORARY_FILES: 1}
    collect(store, Tables(store), findings, confirm)
    assert not list(folder.iterdir()) and (tmp_path / "notes.txt").exists()


def test_unfinished_uploads_are_found_and_aborted(s3_server: str) -> None:
    store, neighbour = Store("s3://lake/uploads"), "uploads-of-another-lake/stems/x"
    fs = filesystem("s3")
    ids = {}
    for key in ("uploads/stems/c/a/1/speech.flac", neighbour):
        ids[key] = fs.call_s3("create_multipart_upload", Bucket="lake", Key=key)["UploadId"]
    assert [found.key for found in unfinished(store)] == ["stems/c/a/1/speech.flac"]
    findings = scan(store)
    assert [found.kind for found in findings.garbage] == [Kind.UPLOADS]
    collect(store, Tables(store), findings, confirm)
    assert unfinished(store) == []
    assert [found.key for found in unfinished(Store("s3://lake/uploads-of-another-lake"))] == ["stems/x"]


def test_lake_that_does_not_exist_has_no_garbage(lake: str) -> None:
    assert scan(Store(lake)) == Findings()
