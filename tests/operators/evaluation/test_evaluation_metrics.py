"""Metrics on real audio, against known answers and a second implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluation_sets import RATE, recording

from operators.evaluation.items import Item
from operators.evaluation.metrics import Sdr, SiSdr, sdr, si_sdr
from operators.evaluation.reference_free import METRICS, DnsmosMetric, open_metrics

SPEECH, MUSIC = recording("speech", 10)[:, 0], recording("music", 10)[:, 0]


def item(**changes) -> Item:
    known = {"target": SPEECH, "other": MUSIC, "kind": "speech"} | changes
    return Item("a/b", "speech in music", SPEECH + MUSIC, RATE, "speech", **known)


def test_si_sdr_agrees_with_torchmetrics():
    torchmetrics = pytest.importorskip("torchmetrics.functional.audio", reason="torchmetrics is not installed")
    mixture = SPEECH + 0.3 * MUSIC
    expected = torchmetrics.scale_invariant_signal_distortion_ratio(
        torch.from_numpy(mixture).double(), torch.from_numpy(SPEECH).double(), zero_mean=True
    )
    assert si_sdr(mixture, SPEECH) == pytest.approx(float(expected), abs=1e-4)


def test_si_sdr_ignores_scale_and_sdr_ignores_a_short_filter():
    pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
    quiet = 0.1 * (SPEECH + 0.3 * MUSIC)
    assert si_sdr(quiet, SPEECH) == pytest.approx(si_sdr(10 * quiet, SPEECH), abs=1e-3)
    delayed = np.roll(SPEECH, 40)
    assert si_sdr(delayed, SPEECH) < 10 < sdr(delayed, SPEECH)


def test_silence_scores_lowest_and_a_perfect_copy_highest():
    assert si_sdr(np.zeros_like(SPEECH), SPEECH) == -60
    assert si_sdr(SPEECH, SPEECH) == 60
    assert SiSdr()(item(), np.zeros_like(SPEECH))["obeyed"] == 0


def test_improvement_of_the_untouched_mixture_is_zero():
    pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
    found = SiSdr()(item(), SPEECH + MUSIC) | Sdr()(item(), SPEECH + MUSIC)
    assert found["si_sdri_db"] == found["sdri_db"] == 0


def test_prompt_is_obeyed_by_the_target_and_not_by_the_other_sound():
    assert SiSdr()(item(), SPEECH)["obeyed"] == 1
    assert SiSdr()(item(), MUSIC)["obeyed"] == 0
    assert "obeyed" not in SiSdr()(item(other=None), SPEECH)


def test_without_truth_there_is_no_si_sdr():
    assert SiSdr()(item(target=None, other=None), SPEECH) == {}


def test_dnsmos_prefers_speech_alone_to_speech_under_music():
    pytest.importorskip("speechmos", reason="speechmos is not installed")
    metric = DnsmosMetric()
    clean, noisy = metric(item(), SPEECH), metric(item(), SPEECH + MUSIC)
    assert set(clean) == set(metric.columns)
    assert clean["dnsmos_bak"] > noisy["dnsmos_bak"] + 0.5
    assert metric(item(kind=""), SPEECH) == {}


def test_metrics_that_cannot_be_had_are_named_with_the_reason(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    metrics, missing = open_metrics(("si_sdr", "imagebind", "judge"), judge="/no/such/judge")
    assert [m.name for m in metrics] == ["si_sdr"]
    assert "imagebind" in missing["imagebind"] and "non-commercial" in missing["imagebind"]
    assert "/no/such/judge" in missing["judge"]


def test_an_unknown_metric_is_an_error():
    with pytest.raises(ValueError, match="unknown metric 'pesq'"):
        open_metrics((*METRICS[:1], "pesq"))
