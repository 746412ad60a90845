"""A schedule over a living archive: each run does what is new, changed or may be retried, and only one works.

That a killed run is replaced: tests/faults/test_kill.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile as sf
from archive import RATE, mixture, write_manifest

from jobs.archive_reprocess import main
from pipeline.config import JobConfig
from pipeline.lease import Lease, LeaseLost
from pipeline.run import run
from pipeline.settings import load_config
from pipeline.storage import Store
from pipeline.tables import Tables


@pytest.fixture(scope="module")
def ray_here(s3_server: str) -> Iterator[None]:
    """Ray in this process for all runs; started after the S3 server, whose address the workers then know."""
    import ray

    from pipeline import graph

    started = not ray.is_initialized()
    graph.connect(JobConfig(manifest="none", lake="none"))
    yield
    if started:
        ray.shutdown()


@pytest.fixture
def media(tmp_path: Path) -> Path:
    folder = tmp_path / "media"
    folder.mkdir()
    for i, name in enumerate(("a.wav", "b.wav")):
        sf.write(folder / name, mixture(3, offset=i).mean(1), RATE, subtype="PCM_16")
    return folder


def arguments(media: Path, lake: str, *more: str) -> list[str]:
    manifest = str(media.parent / "m.parquet")
    places = {"manifest": manifest, "lake": lake, "description": "speech", "allowed-read-prefixes": str(media)}
    return [part for name, value in places.items() for part in (f"--{name}", value)] + [
        "--no-progress",
        "--separators",
        "1",
        *more,
    ]


def listed(media: Path, *names: str) -> None:
    """A manifest as jobs/build_manifest.py writes it: with the versions of the files of now."""
    store = Store(str(media), [str(media)])
    stats = [store.stat_media(str(media / name)) for name in names]
    columns = {"etag": [s.etag for s in stats], "size_bytes": [s.size_bytes for s in stats]}
    write_manifest(media, list(names), media.parent / "m.parquet", **columns)


def test_each_run_does_what_is_needed_and_only_that(ray_here, media, tmp_path, capsys):
    lake = str(tmp_path / "lake")

    def reprocess(*more: str) -> str:
        assert main(arguments(media, lake, *more)) == 0
        return capsys.readouterr().err

    tables = Tables(Store(lake))
    listed(media, "a.wav", "b.wav")
    assert "make          2  new" in reprocess("--dry-run") and not tables.read("runs").num_rows
    said = reprocess()
    assert "make          2  new" in said and "token 1" in said
    assert "skip          2  committed" in reprocess()

    # One file is replaced after it was listed, one is broken, and one is added.
    sf.write(media / "a.wav", mixture(2).mean(1), RATE, subtype="PCM_16")
    sf.write(media / "c.wav", mixture(3).mean(1), RATE, subtype="PCM_16")
    (media / "broken.wav").write_bytes((media / "c.wav").read_bytes()[:100_000])
    manifest = write_manifest(media, ["a.wav", "b.wav", "c.wav", "broken.wav", "later.wav"], media.parent / "m.parquet")
    said = reprocess()
    assert "make          1  changed" in said and "skip          1  committed" in said
    stems = tables.read("stems").to_pylist()
    assert sorted(row["asset_id"] for row in stems) == ["a.wav", "a.wav", "b.wav", "c.wav"]
    assert sorted(row["cause"] for row in tables.read("failures").to_pylist()) == ["not_found", "truncated"]

    # What was missing is there; what is broken stays so and is not tried again.
    sf.write(media / "later.wav", mixture(3).mean(1), RATE, subtype="PCM_16")
    said = reprocess("--dry-run")
    assert "make          1  new" in said and "skip          1  failed for good" in said

    # Other settings: nothing is made again unless it is asked for. Then earlier stems go, as those of the old a.wav.
    assert "skip          3  made with other settings" in reprocess("--dry-run", "--bit-depth", "16")
    assert tables.read("stems").num_rows == 4 and tables.read("failures").num_rows == 2
    said = reprocess("--bit-depth", "16", "--stale", "older-than-config", "--superseded", "drop")
    # With other settings a broken file is another item, so it is tried once more.
    assert "make          3  older config" in said and "make          2  new" in said
    assert "dropped 4 superseded" in said
    stems = tables.read("stems").to_pylist()
    assert sorted(row["asset_id"] for row in stems) == ["a.wav", "b.wav", "c.wav", "later.wav"]
    assert [row["bit_depth"] for row in stems] == [16] * 4 and len(Store(lake).list("commits")) == 4
    last = max(tables.read("runs").to_pylist(), key=lambda row: row["started_at"])
    assert (last["status"], last["items_committed"], last["gpus"]) == ("done", 4, 1.0)
    assert manifest.exists()


def test_lake_on_s3_is_brought_up_to_date_and_old_stems_are_dropped(ray_here, media, tmp_path):
    listed(media, "a.wav")
    lake = f"s3://lake/{tmp_path.name}"
    assert main(arguments(media, lake)) == 0
    old = Tables(Store(lake)).read("stems").to_pylist()
    sf.write(media / "a.wav", mixture(2).mean(1), RATE, subtype="PCM_16")
    assert main(arguments(media, lake, "--superseded", "drop")) == 0
    (new,) = Tables(Store(lake)).read("stems").to_pylist()
    assert new["duration_seconds"] == pytest.approx(2) and new["item_id"] != old[0]["item_id"]
    assert len(Store(lake).list("tombstones")) == 1 and len(Store(lake).list("commits")) == 1


def test_run_that_lost_its_lease_stops_and_says_so(ray_here, media, tmp_path, capsys):
    listed(media, "a.wav")
    lake = str(tmp_path / "lake")

    def lost() -> None:
        raise LeaseLost("another driver took over with token 2")

    assert run(load_config(arguments(media, lake)), "archive_reprocess", still_ours=lost) == 1
    (row,) = Tables(Store(lake)).read("runs").to_pylist()
    assert row["status"] == "broken" and "took over with token 2" in row["error"]


def test_missing_file_is_tried_in_a_bounded_number_of_runs(media, tmp_path, capsys):
    """Nothing is decoded here, so Ray is not needed."""
    write_manifest(media, ["gone.wav"], tmp_path / "m.parquet")
    lake = str(tmp_path / "lake")
    for _ in range(4):
        assert main(arguments(media, lake, "--retry-limit", "2")) == 0
    assert "gave up" in capsys.readouterr().err
    failures = Tables(Store(lake)).read("failures").sort_by("failed_at").to_pylist()
    assert [row["attempt"] for row in failures] == [1, 2]


def test_second_run_ends_at_once_while_the_first_is_at_work(media, tmp_path, capsys):
    listed(media, "a.wav")
    lake = str(tmp_path / "lake")
    with_name = arguments(media, lake, "--lease", "nightly", "--lease-seconds", "2")
    lease = Lease(Store(lake), "nightly", 2, "the other")
    assert lease.acquire()
    with lease:
        assert main(with_name) == 0
        said = capsys.readouterr().err
        assert "nothing done, another one is at work: the other@" in said and "(token 1" in said
    assert not Tables(Store(lake)).read("runs").num_rows


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--stale", "older"], "stale"),
        (["--superseded", "delete"], "superseded"),
        (["--retry-limit", "0"], "retry_limit"),
        (["--lease-seconds", "0"], "lease_seconds"),
        (["--model", "/no/such"], "/no/such"),
    ],
)
def test_wrong_settings_end_with_code_2_and_name_the_setting(media, tmp_path, more, said, capsys):
    write_manifest(media, ["a.wav"], tmp_path / "m.parquet")
    assert main(arguments(media, str(tmp_path / "lake"), *more)) == 2
    assert said in capsys.readouterr().err
