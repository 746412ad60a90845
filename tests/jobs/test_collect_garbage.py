"""The job deletes nothing unless told to, says what it found, and writes the same as JSON."""

import json
import time
from pathlib import Path

from lake_rows import commit, stem_row

from jobs.collect_garbage import main
from pipeline.keys import part_key
from pipeline.lease import Lease
from pipeline.storage import Store


def collected(lake: str, tmp_path: Path, *more: str) -> dict:
    out = tmp_path / "garbage.json"
    assert main(["--lake", lake, "--json", str(out), *more]) == 0
    return json.loads(out.read_text())


def test_nothing_is_deleted_without_being_told(lake: str, tmp_path: Path, capsys) -> None:
    store = Store(lake)
    commit(store, stem_row(store, "kept"))
    store.write_bytes(part_key("c" * 16, "1" * 32, 0, 2, "target", "wav"), b"0123456789")
    time.sleep(1.1)  # S3 dates objects to the second
    report = collected(lake, tmp_path, "--grace-hours", "0")
    assert report["kinds"]["parts that no run continued"]["objects"] == 1 and not report["deleted"]
    assert "nothing was deleted" in capsys.readouterr().out
    assert len(store.list("parts")) == 1 and not store.list("leases")
    report = collected(lake, tmp_path, "--delete")  # all of it is younger than a week
    assert report["deleted"] and report["objects"] == [] and len(store.list("parts")) == 1
    report = collected(lake, tmp_path, "--delete", "--grace-hours", "0")
    assert [one["key"] for one in report["objects"]] == [part_key("c" * 16, "1" * 32, 0, 2, "target", "wav")]
    assert not store.list("parts") and len(store.list("stems")) == 2
    assert "deleted 1 objects" in capsys.readouterr().out


def test_two_collectors_do_not_work_at_once(tmp_path: Path, capsys) -> None:
    lake = str(tmp_path / "lake")
    lease = Lease(Store(lake), "collect_garbage", 2)
    assert lease.acquire()
    with lease:
        assert main(["--lake", lake, "--delete", "--json", str(tmp_path / "g.json")]) == 0
    assert "another one is at work" in capsys.readouterr().err and not (tmp_path / "g.json").exists()


def test_what_wants_a_person_is_shown(tmp_path: Path, capsys) -> None:
    store = Store(str(tmp_path / "lake"))
    commit(store, stem_row(store, "lost"), stems=False)
    commit(store, stem_row(store, "unmarked"), marker=False)
    time.sleep(0.05)
    collected(store.root, tmp_path, "--grace-hours", "0")
    said = capsys.readouterr().out
    assert "its stems are gone" in said and "has a row and no marker" in said


def test_lake_that_may_not_be_named_is_refused(tmp_path: Path, capsys) -> None:
    assert main(["--lake", "http://x/y", "--json", str(tmp_path / "g.json")]) == 2
    assert "forbidden_uri" in capsys.readouterr().err
