"""The masks job on real videos with small random models: manifest in, masks and manifest out, failures in a table."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from media_files import ffmpeg
from sam_models import small_sam2, small_sam3, small_tokenizer

from jobs.make_masks import main, object_prompt
from operators.errors import AssetError
from operators.masklets import ObjectPrompt
from operators.video import masked_frames
from pipeline.filesystems import filesystem
from pipeline.manifest import read_manifest
from pipeline.schema import FAILURES_SCHEMA, ManifestRow
from pipeline.storage import Store


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    steady = {"hotstart_delay": 2, "hotstart_unmatch_thresh": 2, "hotstart_dup_thresh": 2}
    small_sam3(**steady, assoc_iou_thresh=0.0, trk_assoc_iou_thresh=0.0).save_pretrained(folder / "sam3")
    small_tokenizer().save_pretrained(folder / "sam3")
    small_sam2().save_pretrained(folder / "sam2")
    return {"phrase": folder / "sam3", "point": folder / "sam2"}


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=64x48:rate=10", "-t", "0.8", "-c:v", "mpeg4", folder / "a.mp4")
    ffmpeg("-f", "lavfi", "-i", "sine=440", "-t", "0.5", folder / "tone.wav")
    (folder / "broken.mp4").write_bytes((folder / "a.mp4").read_bytes()[:3000])
    rows = [
        {"asset_id": "phrase", "uri": "a.mp4", "object_phrase": "dog", "station": "north"},
        {"asset_id": "box", "uri": "a.mp4", "object_box": [4.0, 4.0, 40.0, 40.0], "object_seconds": 0.2},
        {"asset_id": "points", "uri": "a.mp4", "object_points": [[20.0, 20.0], [60.0, 40.0, 0.0]]},
        {"asset_id": "words", "uri": "a.mp4", "description": "drum"},
        {"asset_id": "done", "uri": "a.mp4", "object_phrase": "dog", "mask_uri": str(folder / "other.npz")},
        {"asset_id": "sound", "uri": "tone.wav", "description": "drum"},
        {"asset_id": "nothing", "uri": "a.mp4"},
        {"asset_id": "outside", "uri": "a.mp4", "object_points": [[900.0, 20.0]]},
        {"asset_id": "broken", "uri": "broken.mp4", "object_phrase": "dog"},
        {"asset_id": "gone", "uri": "gone.mp4", "object_phrase": "dog"},
        {"asset_id": "elsewhere", "uri": "/etc/hostname", "object_phrase": "dog"},
    ]
    for row in rows:
        row["uri"] = str(folder / str(row["uri"]))
    names = sorted({name for row in rows for name in row})
    table = pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows])
    pq.write_table(table, folder / "m.parquet")
    return folder


def run(media: Path, out: Path, models: dict[str, Path], *more: str) -> int:
    options = {
        "manifest": media / "m.parquet",
        "out": out,
        "phrase-model": models["phrase"],
        "point-model": models["point"],
    }
    return main([text for name, value in options.items() for text in (f"--{name}", str(value))] + list(more))


@pytest.fixture(scope="module")
def out(media: Path, models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    assert run(media, folder, models) == 0
    return folder


def test_each_object_has_a_mask_file_and_the_manifest_names_it(out: Path) -> None:
    rows = {row["asset_id"]: row for row in pq.read_table(out / "manifest.parquet").to_pylist()}
    for name in ("phrase", "box", "points", "words"):
        with np.load(rows[name]["mask_uri"]) as stored:
            assert stored["masks"].shape == (8, 48, 64) and stored["masks"].any()
            assert stored["timestamps_seconds"] == pytest.approx(np.arange(8) / 10)
    with np.load(rows["box"]["mask_uri"]) as stored:
        assert not stored["masks"][:2].any()


def test_rows_without_a_task_pass_as_they_are(out: Path, media: Path) -> None:
    rows = {row["asset_id"]: row for row in pq.read_table(out / "manifest.parquet").to_pylist()}
    assert list(rows) == [row["asset_id"] for row in pq.read_table(media / "m.parquet").to_pylist()]
    assert rows["done"]["mask_uri"].endswith("other.npz")
    assert rows["sound"]["mask_uri"] is None and rows["nothing"]["mask_uri"] is None
    assert rows["phrase"]["station"] == "north"
    assert ManifestRow.from_record(rows["phrase"]).mask_uri == rows["phrase"]["mask_uri"]


def test_failures_are_rows_that_say_why(out: Path) -> None:
    table = pq.read_table(out / "failures.parquet")
    assert table.schema.names == FAILURES_SCHEMA.names
    causes = {row["asset_id"]: (row["stage"], row["cause"]) for row in table.to_pylist()}
    assert causes.pop("elsewhere")[1] == "forbidden_uri"
    assert causes.pop("broken")[1] in ("truncated", "corrupt")
    assert causes == {"outside": ("mask", "bad_prompt"), "gone": ("mask", "not_found")}


def test_a_second_run_makes_nothing_anew(
    out: Path, media: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.npz")}
    assert run(media, out, models) == 0
    assert "4 there before" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.npz")} == before


def test_the_jobs_phrase_is_for_rows_that_name_no_object(
    media: Path, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(media, tmp_path, models, "--phrase", "drum", "--limit", "7", "--max-rate", "5", "--max-side", "32") == 0
    assert "5 made" in capsys.readouterr().out
    rows = {row["asset_id"]: row for row in pq.read_table(tmp_path / "manifest.parquet").to_pylist()}
    with np.load(rows["nothing"]["mask_uri"]) as stored:
        assert stored["masks"].shape == (4, 24, 32)


def test_masks_on_s3_show_the_object_to_the_separator(media: Path, models: dict[str, Path], s3_server: str) -> None:
    with (media / "a.mp4").open("rb") as file:
        filesystem("s3").pipe_file("media/masks/a.mp4", file.read())
    table = pa.Table.from_pylist(
        [{"asset_id": "box", "uri": "s3://media/masks/a.mp4", "object_box": [4.0, 4.0, 40.0, 40.0]}]
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    filesystem("s3").pipe_file("media/masks/m.parquet", buffer.getvalue())
    names = ["--phrase-model", str(models["phrase"]), "--point-model", str(models["point"]), "--device", "cpu"]
    assert main(["--manifest", "s3://media/masks/m.parquet", "--out", "s3://lake/masks", *names]) == 0

    store = Store("s3://lake", ["s3://media/masks", "s3://lake/masks"])
    (row,) = read_manifest("s3://lake/masks/manifest.parquet")
    options = {"start": 0, "end": 15, "hop_length": 1920, "sample_rate": 48_000, "image_size": 48}
    with store.open_media(row["uri"]) as video, store.open_media(row["mask_uri"]) as mask:
        whole = torch.cat(list(masked_frames(video, "a", None, "", **options, interpolation="BICUBIC")))
        shown = torch.cat(list(masked_frames(video, "a", mask, "m", **options, interpolation="BICUBIC", masked="kept")))
    assert shown.shape == whole.shape == (15, 3, 48, 48)
    assert 0 < shown.sum() < whole.sum()


def test_a_model_that_cannot_be_loaded_ends_the_job(
    media: Path, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = {"phrase": tmp_path / "nowhere", "point": tmp_path / "nowhere"}
    assert run(media, tmp_path / "out", nowhere) == 1
    assert "nowhere" in capsys.readouterr().err


def test_a_manifest_that_is_not_there_is_a_wrong_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--manifest", str(tmp_path / "m.parquet"), "--out", str(tmp_path)]) == 2
    assert "m.parquet" in capsys.readouterr().err


def test_objects_are_read_from_columns_in_any_form() -> None:
    assert object_prompt({"object_box": "[1, 2, 3, 4]"}, None) == ObjectPrompt(box=(1, 2, 3, 4))
    points = np.array([[1, 2, 1], [3, 4, 0]])
    assert object_prompt({"object_points": points}, None) == ObjectPrompt(points=((1, 2, True), (3, 4, False)))
    assert object_prompt({"object_seconds": float("nan"), "description": "dog"}, None) == ObjectPrompt(phrase="dog")
    assert object_prompt({"description": "dog"}, "cat") == ObjectPrompt(phrase="cat")
    assert object_prompt({}, None) is None


@pytest.mark.parametrize("record", [{"object_box": [1, 2]}, {"object_points": [1, 2]}, {"object_seconds": "soon"}])
def test_an_object_that_cannot_be_read_names_its_column(record: dict) -> None:
    with pytest.raises(AssetError, match=next(iter(record))):
        object_prompt(record, "dog")
