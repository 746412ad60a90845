"""The dry run: what would be done, what it would cost and why the rest is left out, as a table and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile as sf
from archive import RATE, mixture, write_broken, write_good, write_manifest
from lake_rows import commit, stem_row

from jobs.plan import main
from pipeline.storage import Store


@pytest.fixture
def media(tmp_path: Path) -> Path:
    folder = tmp_path / "media"
    write_good(folder)
    return folder


def planned(tmp_path: Path, lake: str, *more: str) -> dict:
    argv = ["--manifest", str(tmp_path / "m.parquet"), "--lake", lake, "--description", "speech"]
    argv += ["--allowed-read-prefixes", str(tmp_path / "media"), "--segment-seconds", "12"]
    argv += ["--json", str(tmp_path / "plan.json"), *more]
    assert main(argv) == 0
    return json.loads((tmp_path / "plan.json").read_text())


def test_plan_counts_what_a_run_would_do_and_prices_it(media, lake, tmp_path, capsys):
    names = ["film.mp4", "long.flac", "short.wav", *sorted(write_broken(media))]
    write_manifest(media, names, tmp_path / "m.parquet")
    report = planned(
        tmp_path, lake, "--audio-hours-per-gpu-hour", "10", "--price-per-gpu-hour", "3", "--currency", "EUR"
    )
    todo = report["todo"]
    # cut.wav and nan.wav look well until they are decoded.
    assert (todo["assets"], todo["items"], todo["segments"]) == (5, 5, 7)
    seconds = 10 + 26 * 48 / 44.1 + 9 + 9 + 3  # long.flac plays 48 kHz sound at 44.1
    assert todo["audio_hours"] == pytest.approx(seconds / 3600, rel=0.01)
    listed = [media / name for name in ("film.mp4", "long.flac", "short.wav", "cut.wav", "nan.wav")]
    assert todo["source_bytes"] == sum(path.stat().st_size for path in listed)
    assert report["rejected"]["causes"] == {"empty_file": 1, "mislabelled": 1, "not_found": 1}
    assert report["estimate"]["gpu_hours"] == pytest.approx(todo["audio_hours"] / 10)
    assert report["estimate"]["money"] == pytest.approx(todo["audio_hours"] / 10 * 3)
    assert report["largest"][0]["asset_id"] == "long.flac"
    said = capsys.readouterr().out
    assert "5 assets, 5 items, 7 segments" in said and "EUR expected" in said and "not_found" in said
    assert not Store(lake).list("tables") and not Store(lake).list("leases")


def test_plan_without_a_measured_run_says_how_to_get_one(media, tmp_path, capsys):
    write_manifest(media, ["short.wav"], tmp_path / "m.parquet")
    report = planned(tmp_path, str(tmp_path / "lake"), "--price-per-gpu-hour", "3")
    assert report["estimate"] is None
    assert "--limit 20" in capsys.readouterr().out


def test_plan_of_a_reprocess_says_what_is_left_out_and_why(media, lake, tmp_path, capsys):
    store = Store(lake, [str(media)])
    write_manifest(media, ["film.mp4", "long.flac", "short.wav"], tmp_path / "m.parquet")
    for name, etag in (("long.flac", "older"), ("short.wav", store.stat_media(str(media / "short.wav")).etag)):
        commit(store, stem_row(store, name, source_etag=etag, residual_label="speech_residual"))
    report = planned(tmp_path, lake, "--of", "archive_reprocess")
    assert report["todo"]["why"] == {"new": 1, "changed": 1}
    assert report["skipped"] == {"made by an older model": 1}
    assert report["todo"]["items"] == 2 and report["rejected"]["items"] == 0
    assert "--stale older-than-model makes them again" in capsys.readouterr().out
    report = planned(tmp_path, lake, "--of", "archive_reprocess", "--stale", "older-than-model")
    assert report["todo"]["why"] == {"new": 1, "changed": 1, "older model": 1} and report["skipped"] == {}


def test_file_that_is_no_good_is_counted_as_rejected_and_not_as_new(media, tmp_path):
    store = Store(str(tmp_path / "lake"), [str(media)])
    write_broken(media)
    etag = store.stat_media(str(media / "text.wav")).etag
    write_manifest(media, ["text.wav"], tmp_path / "m.parquet", etag=[etag])
    report = planned(tmp_path, store.root, "--of", "archive_reprocess")
    assert report["rejected"]["causes"] == {"mislabelled": 1} and not any(report["todo"]["why"].values())


def test_plan_of_dialogue_extract_uses_its_prompts(media, tmp_path):
    write_manifest(media, ["short.wav"], tmp_path / "m.parquet")
    out = tmp_path / "plan.json"
    argv = ["--of", "dialogue_extract", "--manifest", str(tmp_path / "m.parquet"), "--lake", str(tmp_path / "lake")]
    assert main([*argv, "--allowed-read-prefixes", str(media), "--json", str(out)]) == 0
    assert json.loads(out.read_text())["todo"]["items"] == 1


def test_names_of_assets_cannot_break_the_table(media, tmp_path, capsys):
    sf.write(media / "x.wav", mixture(0.2), RATE)
    write_manifest(media, ["x.wav"], tmp_path / "m.parquet", description=["speech"])
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = {"asset_id": ["evil\nskip 99\x1b[2J"], "uri": [str(media / "x.wav")]}
    pq.write_table(pa.table(rows), tmp_path / "m.parquet")
    report = planned(tmp_path, str(tmp_path / "lake"))
    assert report["rejected"]["causes"] == {"invalid_row": 1}
    said = capsys.readouterr().out
    assert "\x1b" not in said and "\nskip 99" not in said


@pytest.mark.parametrize(
    ("more", "said"), [(["--price-per-gpu-hour", "-1"], "price_per_gpu_hour"), (["--modle", "x"], "model")]
)
def test_wrong_settings_end_with_code_2(tmp_path, more, said, capsys):
    assert main(["--manifest", "m.parquet", "--lake", str(tmp_path), *more]) == 2
    assert said in capsys.readouterr().err
