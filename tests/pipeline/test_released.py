"""The whole pipeline on tiny random checkpoints in the released layout, into a lake on S3 and a local one.

DAC-VAE, T5, vision tower, span predictor and judge are all there, each as small as it goes.
"""

import json
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf
from archive import MEDIA, mixture, read_stems
from released_layout import RATE as MODEL_RATE
from released_layout import Released, write_released

from pipeline.config import JobConfig
from pipeline.run import run
from pipeline.schema import ManifestRow
from pipeline.storage import Store
from pipeline.tables import Tables

pytestmark = pytest.mark.usefixtures("cluster")
SECONDS = 13.0


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Released:
    return write_released(tmp_path_factory.mktemp("released"), long_form={"window": 50, "stride": 40})


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    (folder / "film.mp4").write_bytes((MEDIA / "demo.mp4").read_bytes())
    sf.write(folder / "tape.wav", mixture(SECONDS), 48_000, subtype="PCM_24")
    masks = np.zeros((10, 36, 64), np.uint8)
    masks[:, 10:26, 20:50] = 1
    np.savez_compressed(folder / "mask.npz", masks=masks, timestamps_seconds=np.arange(10) * 1.0)
    return folder


def manifest(folder: Path, rows: list[dict], path: Path) -> Path:
    rows = [{"uri": str(folder / row["asset_id"]), **row} for row in rows]
    fields = [f for f in ManifestRow.arrow_schema() if any(f.name in row for row in rows)]
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(fields)), path)
    return path


def open_lake(url: str, mode: str):
    return fsspec.open(url, mode).open()


def job(path: Path, lake: str, media: Path, released: Released, **settings) -> JobConfig:
    values = {
        "model": str(released.sam_audio),
        "segment_seconds": 4.8,
        "solver_method": "euler",
        "solver_steps": 1,
        "separators": 1,
        "progress": False,
        "allowed_read_prefixes": (str(media),),
    }
    return JobConfig(manifest=str(path), lake=lake, **(values | settings))


def test_text_span_and_visual_prompts_with_spans_scores_and_candidates(released, media, s3_server, tmp_path):
    lake = f"s3://lake/{tmp_path.name}"
    rows = [
        {
            "asset_id": "film.mp4",
            "prompts": [
                {"name": "dog", "description": "dog barking"},
                {"name": "seen", "mask_uri": str(media / "mask.npz")},
                {"name": "both", "description": "a man speaking", "mask_uri": str(media / "mask.npz")},
            ],
        },
        {
            "asset_id": "tape.wav",
            "prompts": [
                {"name": "voice", "residual_name": "rest", "description": "a man speaking"},
                {"name": "there", "anchors": [{"token": "+", "start": 1.0, "end": 3.0}]},
            ],
        },
    ]
    path = manifest(media, rows, tmp_path / "m.parquet")
    settings = {
        "predict_spans": True,
        "skip_inactive": True,
        "judge": str(released.judge),
        "candidates": 2,
        "rerank_below": 1e9,
    }
    config = job(path, lake, media, released, **settings)

    assert run(config, "test") == 0

    tables = Tables(Store(lake))
    assert tables.read("failures").to_pylist() == []
    stems = {row["target_label"]: row for row in tables.read("stems").to_pylist()}
    assert sorted(stems) == ["both", "dog", "seen", "there", "voice"]
    assert stems["voice"]["residual_label"] == "rest" and stems["dog"]["residual_label"] == "dog_residual"
    for name, row in stems.items():
        assert row["segment_count"] > 1 and row["channels"] == 2 and row["sample_rate"] == MODEL_RATE
        assert all(np.isfinite(row[f"judge_{score}"]) for score in ("overall", "recall", "precision", "faithfulness"))
        target, residual = read_stems(row, open_lake)
        assert len(target) == pytest.approx(row["duration_seconds"] * MODEL_RATE, abs=1)
        # Only words can be predicted from, and only where no span was given.
        predicted = row["predicted_spans_json"]
        assert (predicted is None) == (name in ("seen", "there"))
        for start, end in json.loads(predicted or "[]"):
            assert 0 <= start < end <= row["duration_seconds"] + 0.04
    assert stems["seen"]["mask_uri"].endswith("mask.npz") and stems["seen"]["description"] == ""
    assert stems["there"]["candidates"] == 2
    source, _ = sf.read(media / "tape.wav", dtype="float32")
    target, residual = read_stems(stems["voice"], open_lake)
    # Wiener stems add up to the recording at the model's rate, and most of its energy lies below 4 kHz.
    together = (target + residual) * 10 ** (-stems["voice"]["gain_db"] / 20)
    assert together.std() == pytest.approx(source.std(), rel=0.2)

    assert run(config, "test") == 0  # again: nothing is left to do
    last = max(tables.read("runs").to_pylist(), key=lambda row: row["started_at"])
    assert (last["items_committed"], last["items_skipped"]) == (0, 5)
    assert Store(lake).list("parts") == [] and Store(lake).list("attempts") == []


def test_masks_that_cannot_be_read_fail_their_own_prompt(released, media, tmp_path):
    (media / "torn.npz").write_bytes((media / "mask.npz").read_bytes()[:100])
    prompts = [
        {"name": "seen", "mask_uri": str(media / "mask.npz")},
        {"name": "torn", "mask_uri": str(media / "torn.npz")},
    ]
    rows = [{"asset_id": "film.mp4", "prompts": prompts}]
    lake = str(tmp_path / "lake")
    assert run(job(manifest(media, rows, tmp_path / "m.parquet"), lake, media, released), "test") == 0
    tables = Tables(Store(lake))
    assert [row["target_label"] for row in tables.read("stems").to_pylist()] == ["seen"]
    (failure,) = tables.read("failures").to_pylist()
    assert failure["asset_id"] == "film.mp4" and "torn.npz" in failure["message"]
