"""The checks of a checkpoint: a trained model passes them, a random one does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from released_layout import Released, write_released

from jobs.checkpoint_checks import CHECKS, decibels, envelope_correlation, si_sdr
from jobs.verify_checkpoint import main
from operators.sam_audio import SAMAudio


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Released:
    return write_released(tmp_path_factory.mktemp("released"))


def statuses(path: Path) -> dict[str, str]:
    return {result["check"]: result["status"] for result in json.loads(path.read_text())["checks"]}


def test_trained_model_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "verify.json"
    assert main(["tiny", "--device", "cpu", "--seconds", "5", "--out", str(out)]) == 0
    found = statuses(out)
    assert list(found) == ["load", *CHECKS]
    assert {name for name, status in found.items() if status == "SKIP"} == {"size", "vision", "codec"}
    said = capsys.readouterr().out
    assert "11 PASS, 0 FAIL, 3 SKIP" in said
    report = json.loads(out.read_text())
    assert report["passed"] and report["device"] == "cpu" and report["model"] == "tiny"


def test_random_model_of_the_released_layout_runs_every_check_and_fails_those_it_must(
    released: Released, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "verify.json"
    arguments = [str(released.sam_audio), "--judge", str(released.judge), "--device", "cpu", "--seconds", "4"]
    assert main([*arguments, "--out", str(out)]) == 1
    found = statuses(out)
    assert [name for name, status in found.items() if status == "SKIP"] == ["size"]
    assert {found[name] for name in ("load", "text", "vision", "shapes", "finite", "determinism", "chunking")} == {
        "PASS"
    }
    assert {found[name] for name in ("codec", "separation", "prompting")} == {"FAIL"}
    said = capsys.readouterr().out
    assert "overall" in said and "faithfulness" in said
    assert "frames of speech with 'speech'" in said


def test_size_is_told_by_the_name(released: Released, tmp_path: Path) -> None:
    name = tmp_path / "sam-audio-large"
    name.symlink_to(released.sam_audio)
    out = tmp_path / "verify.json"
    assert main([str(name), "--judge", "none", "--device", "cpu", "--seconds", "2", "--out", str(out)]) == 1
    (size,) = (result for result in json.loads(out.read_text())["checks"] if result["check"] == "size")
    assert size["status"] == "FAIL"
    assert "48 x 2, 4 heads; large is 2816 x 22" in size["detail"]


def test_judge_that_cannot_be_had_is_skipped_with_the_reason(released: Released, tmp_path: Path) -> None:
    out = tmp_path / "verify.json"
    main(["tiny", "--judge", str(tmp_path / "nowhere"), "--device", "cpu", "--seconds", "2", "--out", str(out)])
    judge = json.loads(out.read_text())["checks"][-1]
    assert (judge["check"], judge["status"]) == ("judge", "SKIP")
    assert "no model at" in judge["detail"]


def test_checkpoint_that_cannot_be_loaded_fails_and_is_written_down(tmp_path: Path) -> None:
    SAMAudio.from_pretrained("tiny").save_pretrained(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    out = tmp_path / "verify.json"
    assert main([str(tmp_path / "cut"), "--out", str(out)]) == 1
    report = json.loads(out.read_text())
    assert not report["passed"]
    assert [(r["check"], r["status"]) for r in report["checks"]] == [("load", "FAIL")]
    assert "truncated" in report["checks"][0]["detail"]


def test_length_out_of_range_is_refused() -> None:
    with pytest.raises(SystemExit):
        main(["tiny", "--seconds", "31"])


def test_measures_of_known_signals() -> None:
    t = torch.arange(48_000) / 48_000
    tone, other = torch.sin(2 * torch.pi * 440 * t), torch.cos(2 * torch.pi * 440 * t)
    assert decibels(tone) == pytest.approx(-3.01, abs=0.01)
    assert decibels(torch.zeros(5)) == -200
    assert si_sdr(0.5 * (tone + 0.1 * other), tone) == pytest.approx(20, abs=0.01)
    swell = t * tone
    assert envelope_correlation(swell, 0.1 * swell, 48_000) == pytest.approx(1)
    assert envelope_correlation(swell, swell.flip(0), 48_000) == pytest.approx(-1, abs=0.01)
