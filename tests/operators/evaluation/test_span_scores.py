"""How spans are scored, and the mixes they are scored on."""

import math

import numpy as np
import pytest
import torch

from operators.evaluation.eval_spans import absent
from operators.evaluation.items import Item
from operators.evaluation.spans import Counts, Gated, gate, segments, true_activity
from operators.sam_audio.band_codec import BandCodec
from operators.sam_audio.config import BandCodecConfig

RATE = 48_000


def frames(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.bool)


def test_f1_counts_hits_false_alarms_and_misses_over_all_recordings() -> None:
    counts = Counts()
    counts.add(frames(1, 1, 0, 0), frames(1, 0, 1, 0))
    counts.add(frames(1, 1), frames(1, 1))
    assert (counts.hits, counts.false_alarms, counts.misses, counts.total) == (3, 1, 1, 6)
    assert counts.f1 == pytest.approx(0.75) and counts.precision == counts.recall == 0.75
    assert counts.false_alarm_rate == pytest.approx(0.5)


def test_an_absent_sound_has_a_false_alarm_rate_and_no_recall() -> None:
    counts = Counts()
    counts.add(frames(0, 0, 1, 0), frames(0, 0, 0, 0))
    assert counts.false_alarm_rate == 0.25 and math.isnan(counts.recall)
    assert Counts().f1 == 1.0


def test_a_second_is_active_when_any_of_its_frames_is() -> None:
    active = torch.zeros(60, dtype=torch.bool)
    active[[30, 55]] = True
    assert segments(active).tolist() == [False, True, True]


def test_a_gate_opens_and_closes_with_short_fades() -> None:
    for seed in range(20):
        gain = gate(8 * RATE, RATE, np.random.default_rng(seed))
        assert gain.shape == (8 * RATE,) and gain.min() >= 0 and gain.max() == pytest.approx(1, abs=1e-4)
        between = np.mean((gain > 0.001) & (gain < 0.999))
        assert between < 0.1 and np.abs(np.diff(gain)).max() < 0.01


class Tones:
    name, notes = "tones", []

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Item:
        t = np.arange(8 * RATE) / RATE
        a, b = (np.sin(2 * np.pi * hz * t).astype(np.float32) * 0.1 for hz in (440, 3000))
        return Item(f"tones/{index}", "speech in music", a + b, RATE, "speech", target=a, other=b)


def test_gated_sources_still_add_up_and_are_the_same_at_every_call() -> None:
    gated = Gated(Tones())
    first, again, other = gated[0], gated[0], gated[1]
    assert first.target is not None and first.other is not None and other.target is not None
    np.testing.assert_array_equal(first.mixture, first.target + first.other)
    np.testing.assert_array_equal(first.mixture, again.mixture)
    assert not np.array_equal(first.target, other.target)
    assert first.setting == "speech in music, gated"


def test_truth_is_where_the_target_sounds() -> None:
    wave = np.zeros(4 * RATE, np.float32)
    wave[RATE : 2 * RATE] = 0.1 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    heard = torch.nonzero(true_activity(wave, BandCodec(BandCodecConfig()))).flatten().tolist()
    assert heard[0] == pytest.approx(25, abs=1) and heard[-1] == pytest.approx(49, abs=1)
    assert len(heard) == heard[-1] - heard[0] + 1


def item(setting: str, description: str) -> Item:
    silence = np.zeros(10, np.float32)
    return Item("x", setting, silence, RATE, description, target=silence, other=silence)


def test_absent_descriptions_name_nothing_that_might_be_there() -> None:
    labels = ["dog", "rain", "water"]
    assert absent(item("speech in music", "speech"), labels, 0) == ["sound effects", "dog barking"]
    assert absent(item("speech in sfx, gated", "speech"), labels, 0) == ["music"]
    assert absent(item("sfx in music", "rain"), labels, 1) == ["speech", "dog barking"]  # water sounds like rain
    assert absent(item("sfx in music", "sound effects"), labels, 0) == ["speech"]
