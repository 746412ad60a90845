"""A run with the shipped model that predicts spans: they stand in the table, and silent windows cost nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from archive import MEDIA, write_manifest

from pipeline.config import JobConfig
from pipeline.run import run
from pipeline.storage import Store
from pipeline.tables import Tables

pytestmark = pytest.mark.usefixtures("cluster")
RATE, SECONDS = 48_000, 40
TALK = (28, 36)  # seconds


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """40 s of quiet music; somebody speaks near the end."""
    folder = tmp_path / "media"
    folder.mkdir()
    music, _ = sf.read(MEDIA / "music.flac", dtype="float32")
    speech, _ = sf.read(MEDIA / "speech.flac", dtype="float32")
    wave = np.tile(music, (2, 1))[: SECONDS * RATE] * 0.6
    first, last = (t * RATE for t in TALK)
    wave[first:last] += speech[: last - first]
    sf.write(folder / "tape.wav", wave, RATE, subtype="PCM_16")
    return folder


def test_the_shipped_model_predicts_spans_and_skips_what_is_silent(media: Path, tmp_path: Path) -> None:
    manifest, lake = write_manifest(media, ["tape.wav"], tmp_path / "m.parquet"), str(tmp_path / "lake")
    config = JobConfig(
        manifest=str(manifest),
        lake=lake,
        descriptions=("speech",),
        predict_spans=True,
        skip_inactive=True,
        separators=1,
        progress=False,
        allowed_read_prefixes=(str(media),),
    )
    assert run(config, "test") == 0
    tables = Tables(Store(lake))
    assert tables.read("failures").to_pylist() == []
    (row,) = tables.read("stems").to_pylist()
    spans = json.loads(row["predicted_spans_json"])
    inside = sum(max(0.0, min(end, TALK[1]) - max(start, TALK[0])) for start, end in spans)
    outside = sum(end - start for start, end in spans) - inside
    assert inside > 5 and outside < 5
    assert row["windows_skipped"] > 0
    # The shipped judge is asked without being named.
    assert all(1 <= row[f"judge_{name}"] <= 5 for name in ("overall", "recall", "precision", "faithfulness"))
