"""The evaluation job: results on disk and on S3's kin, other systems' stems, and the same figures over Ray."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile as sf
from evaluation_sets import write_bench, write_musdb
from packs import write_pack

from jobs.evaluate import main


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pack(tmp_path_factory.mktemp("pack"))


def arguments(pack: Path, out: Path, *more: str) -> list[str]:
    settings = ["--settings", "speech in music,music in speech", "--limit", "2", "--device", "cpu"]
    return ["--set", "eval-split", "--data", str(pack), "--out", str(out), *settings, *more]


def test_a_run_leaves_rows_figures_and_a_page(pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    more = ("--baseline", "mixture", "--baseline", "oracle", "--metrics", "si_sdr,imagebind", "--model", "tiny")
    assert main(arguments(pack, out, *more)) == 0
    rows = pq.read_table(out / "items.parquet").to_pylist()
    assert len(rows) == 3 * 4 and {r["system"] for r in rows} == {"tiny", "mixture", "codec oracle"}
    summary = json.loads((out / "summary.json").read_text())
    cell = summary["settings"]["speech in music"]["tiny"]["si_sdri_db"]
    values = [r["si_sdri_db"] for r in rows if r["system"] == "tiny" and r["setting"] == "speech in music"]
    assert cell["mean"] == pytest.approx(np.mean(values)) and cell["low"] < cell["mean"] < cell["high"]
    assert "imagebind" in summary["missing_metrics"] and not summary["failed"]
    assert (out / "report.html").read_text().count("<audio") > 10
    said = capsys.readouterr().out
    assert "without imagebind: " in said and "SI-SDR improvement, dB" in said


def test_another_systems_stems_come_from_a_folder(pack: Path, tmp_path: Path) -> None:
    """Export the mixtures, let "another system" write stems beside their names, evaluate these."""
    mixtures, stems, out = tmp_path / "mixtures", tmp_path / "stems", tmp_path / "out"
    assert main(arguments(pack, out, "--export", str(mixtures))) == 0
    items = pq.read_table(mixtures / "items.parquet").to_pylist()
    assert len(items) == 4 and {i["description"] for i in items} == {"speech", "music"}
    for item in items[1:]:  # one is forgotten
        wave, rate = sf.read(mixtures / f"{item['item_id']}.wav", dtype="float32")
        path = stems / f"{item['item_id']}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        sf.write(path, 0.5 * wave, rate)
    assert main(arguments(pack, out, "--stems", f"theirs={stems}", "--metrics", "si_sdr")) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["settings"]["music in speech"]["theirs"]["si_sdri_db"]["mean"] == pytest.approx(0, abs=0.05)
    (failed,) = summary["failed"]
    assert failed["item_id"] == items[0]["item_id"] and "not_found" in failed["error"]


def test_results_go_to_an_object_store(pack: Path, s3_server: str) -> None:
    import s3fs

    out = "s3://lake/evaluation"
    assert main([*arguments(pack, Path("unused"), "--baseline", "oracle", "--metrics", "si_sdr"), "--out", out]) == 0
    client = s3fs.S3FileSystem(endpoint_url=s3_server, skip_instance_cache=True)
    assert {name.rpartition("/")[2] for name in client.ls("lake/evaluation")} == {
        "items.parquet", "summary.json", "report.html"
    }  # fmt: skip
    with fsspec.open(f"{out}/report.html", "rt", endpoint_url=s3_server, skip_instance_cache=True) as file:
        assert file.read().startswith("<!doctype html>")


def test_sets_without_truth_are_judged_by_what_needs_none(tmp_path: Path) -> None:
    out = tmp_path / "out"
    more = ["--settings", "speech,music,sfx", "--metrics", "si_sdr,dnsmos", "--device", "cpu", "--out", str(out)]
    assert main(["--set", "sam-audio-bench", "--data", str(write_bench(tmp_path / "bench")), *more]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert "does not apply" in summary["missing_metrics"]["si_sdr"]
    assert set(summary["settings"]) == {"speech", "music"}
    assert [f["error"].split(":")[1].strip() for f in summary["failed"]] == ["not_found"]  # one recording is missing
    assert "gone.mp4 is missing" in (out / "report.html").read_text()


def test_songs_are_evaluated_stem_by_stem(tmp_path: Path) -> None:
    out = tmp_path / "out"
    more = ["--metrics", "si_sdr", "--baseline", "mixture", "--limit", "1", "--excerpt-seconds", "4", "--out", str(out)]
    assert main(["--set", "musdb18hq", "--data", str(write_musdb(tmp_path / "musdb")), *more]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["settings"]) == {"vocals", "drums", "bass"}
    assert summary["settings"]["bass"]["mixture"]["si_sdri_db"]["mean"] == 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--stems", "nowhere"), "NAME=FOLDER"),
        (("--stems", "a=/no/such/folder"), "is not there"),
        (("--model", "/no/such/model"), "no model at"),
        (("--metrics", "loudness"), "unknown metric"),
        (("--settings", "speech in rain"), "known are speech in music"),
        (("--model", "tiny", "--model", "tiny"), "one name"),
    ],
)
def test_wrong_settings_end_with_a_sentence(
    pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], said: str
) -> None:
    assert main(arguments(pack, tmp_path / "out", *more)) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def ray_here() -> Iterator[None]:
    """The job starts Ray; it is gone afterwards."""
    import ray

    started = not ray.is_initialized()
    yield
    if started:
        ray.shutdown()


def test_ray_gives_the_same_rows(pack: Path, tmp_path: Path, ray_here: None) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    more = ("--metrics", "si_sdr", "--model", "tiny", "--baseline", "mixture")
    assert main(arguments(pack, here, *more)) == 0
    assert main(arguments(pack, there, *more, "--workers", "1")) == 0
    tables = [
        {
            (r["index"], r["system"]): r["si_sdr_db"]
            for r in pq.read_table(folder / "items.parquet", columns=["index", "system", "si_sdr_db"]).to_pylist()
        }
        for folder in (here, there)
    ]
    assert tables[0] == pytest.approx(tables[1], abs=1e-4)
