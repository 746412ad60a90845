"""The whole line on real Ray, into a local lake and into one on S3."""

from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pytest
import soundfile as sf
from archive import MEDIA, RATE, mixture, read_stems, write_broken, write_good, write_manifest
from line import Line

from pipeline import graph
from pipeline.config import JobConfig
from pipeline.run import main, run
from pipeline.storage import Store
from pipeline.tables import Tables

pytestmark = pytest.mark.usefixtures("cluster")
PRESET = {"descriptions": ("speech",), "target_label": "dialogue", "residual_label": "music_and_effects"}


def job(manifest: Path, lake: str, **settings) -> JobConfig:
    # 12 s cores: the 26 s recording becomes three segments. One model actor: each that starts imports torch.
    fixed = {"segment_seconds": 12, "separators": 1, "progress": False}
    return JobConfig(manifest=str(manifest), lake=lake, **fixed, **(PRESET | settings))


def open_lake(url: str, mode: str):
    return fsspec.open(url, mode).open() if "://" not in url else _s3(url, mode)


def _s3(url: str, mode: str):
    import s3fs

    return s3fs.S3FileSystem().open(url, mode)


@pytest.fixture
def media(tmp_path: Path) -> Path:
    return tmp_path / "media"


def test_run_commits_every_good_asset_and_records_every_broken_one(media, lake, tmp_path):
    good = write_good(media)
    causes = write_broken(media)
    names = good + sorted(causes)
    place = str(media)
    if "://" in lake:  # then media lie in an object store as well
        import s3fs

        place = f"s3://media/{tmp_path.name}"
        s3fs.S3FileSystem().put(f"{media}/", f"{place}/", recursive=True)
    manifest = write_manifest(place, names, tmp_path / "m.parquet", shelf=[f"shelf {n}" for n in names])
    config = job(manifest, lake, allowed_read_prefixes=(place,))

    assert run(config, "test") == 0

    tables = Tables(Store(lake))
    stems = {row["asset_id"]: row for row in tables.read("stems").to_pylist()}
    assert sorted(stems) == good
    assert {row["asset_id"]: row["cause"] for row in tables.read("failures").to_pylist()} == causes
    assert all(row["remedy"] for row in tables.read("failures").to_pylist())
    assert stems["long.flac"]["segment_count"] == 3 and stems["long.flac"]["channels"] == 1
    assert stems["short.wav"]["channels"] == 2
    assert stems["short.wav"]["metadata_json"] == '{"shelf": "shelf short.wav"}'
    target, residual = read_stems(stems["short.wav"], open_lake)
    # 24-bit stems of a 16-bit recording: each is rounded once.
    np.testing.assert_allclose(target + residual, sf.read(media / "short.wav", dtype="float32")[0], atol=3e-7)
    assert Store(lake).list("parts") == [] and Store(lake).list("attempts") == []

    assert run(config, "test") == 0  # again: broken files are tried again, the rest is left alone
    last = max(tables.read("runs").to_pylist(), key=lambda row: row["started_at"])
    assert (last["items_committed"], last["items_skipped"], last["items_failed"]) == (0, 3, 5)
    assert last["status"] == "done"
    assert tables.read("stems").num_rows == 3


def test_stems_are_the_same_whatever_the_segments_replicas_batches_and_executions(media, tmp_path, monkeypatch):
    write_good(media)
    manifest = write_manifest(media, ["long.flac", "short.wav"], tmp_path / "m.parquet")
    prefixes = (str(media),)
    cut = {"segment_seconds": 8, "separators": 2, "segments_per_batch": 1, "windows_per_batch": 3}
    config = job(manifest, str(tmp_path / "cut"), allowed_read_prefixes=prefixes).model_copy(update=cut)
    monkeypatch.setattr(graph, "results", partial(graph.results, segments_per_execution=3))  # two executions of three
    assert run(config, "test") == 0
    whole = config.model_copy(update={"lake": str(tmp_path / "whole"), "segment_seconds": 120})
    expected = {row.asset_id: read_stems(row.model_dump(), open_lake)[0] for row in Line(whole).committed()}
    rows = Tables(Store(config.lake)).read("stems").to_pylist()
    assert sorted(row["asset_id"] for row in rows) == sorted(expected) == ["long.flac", "short.wav"]
    for row in rows:
        error = read_stems(row, open_lake)[0] - expected[row["asset_id"]]
        # -80 dB of the stem: below its 16-bit noise floor.
        assert np.square(error).mean() < 1e-8 * np.square(expected[row["asset_id"]]).mean()


def test_each_prompt_of_an_asset_is_an_item_and_its_target_nearer_to_it_than_the_mixture(media, tmp_path):
    media.mkdir()
    sf.write(media / "a.wav", mixture(12), RATE)
    manifest = write_manifest(media, ["a.wav"], tmp_path / "m.parquet")
    lake = str(tmp_path / "lake")
    config = job(manifest, lake, allowed_read_prefixes=(str(media),), descriptions=("speech", "music"))
    assert run(config, "test") == 0
    rows = {row["description"]: row for row in Tables(Store(lake)).read("stems").to_pylist()}
    assert sorted(rows) == ["music", "speech"]
    assert len({row["target_uri"] for row in rows.values()}) == 2
    target, _ = read_stems(rows["speech"], open_lake)
    speech = sf.read(MEDIA / "speech.flac", frames=12 * RATE, dtype="float32")[0]

    def error_db(wave: np.ndarray) -> float:
        return float(10 * np.log10(np.square(wave - speech).mean() / np.square(speech).mean()))

    assert error_db(target) < error_db(mixture(12)) - 3


def test_limit_takes_the_first_rows_and_dry_run_writes_nothing(media, tmp_path):
    good = write_good(media)
    manifest = write_manifest(media, good, tmp_path / "m.parquet")
    lake = tmp_path / "lake"
    assert run(job(manifest, str(lake), allowed_read_prefixes=(str(media),), dry_run=True), "test") == 0
    assert not lake.exists()
    assert run(job(manifest, str(lake), allowed_read_prefixes=(str(media),), limit=1), "test") == 0
    assert Tables(Store(str(lake))).read("stems").column("asset_id").to_pylist() == good[:1]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--manifest", "m.parquet"], "lake"),
        (["--manifest", "/nowhere/m.parquet", "--lake", "/tmp/x", "--descriptions", "speech"], "/nowhere/m.parquet"),
        (["--manifest", "m.parquet", "--lake", "l", "--modle", "tiny"], "model"),
        (["--manifest", "m.parquet", "--lake", "/tmp/x", "--descriptions", "speech", "--halo-seconds", "500"], "halo"),
        (["--manifest", "m.parquet", "--lake", "l", "--descriptions", "speech", "--model", "/no/such"], "/no/such"),
    ],
)
def test_wrong_settings_end_with_code_2_and_say_what_is_wrong(argv, said, capsys):
    assert main("test", argv) == 2
    assert said in capsys.readouterr().err
