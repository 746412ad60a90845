"""The scores that a judge is to learn: what they say about outputs whose faults are known."""

import pytest
import torch
from torch import Tensor

from operators.judge_scores import SCORES
from operators.sam_audio.band_codec import BandCodec
from operators.sam_audio.config import BandCodecConfig
from operators.sam_audio.training.judge_truth import Truth, scores_of_gain, si_sdr

CODEC = BandCodec(BandCodecConfig())
SAMPLES = 2 * 48_000


def noise(seed: int, low: int, high: int) -> Tensor:
    """Noise between two frequencies in Hz, RMS 0.05, [1, n]."""
    spectrum = torch.fft.rfft(torch.randn(SAMPLES, generator=torch.Generator().manual_seed(seed)))
    hz = torch.fft.rfftfreq(SAMPLES, 1 / 48_000)
    wave = torch.fft.irfft(torch.where((hz > low) & (hz < high), spectrum, 0), SAMPLES)
    return (wave / wave.std() * 0.05)[None]


A, B = noise(0, 100, 4000), noise(1, 1000, 12_000)


@pytest.fixture(scope="module")
def truth() -> Truth:
    return Truth(CODEC, A, B)


def scores(truth: Truth, output: Tensor, asked: int = 0) -> dict[str, float]:
    return dict(zip(SCORES, truth.scores(output)[0, asked].tolist(), strict=True))


def test_the_target_itself_scores_five(truth: Truth) -> None:
    assert scores(truth, A) == pytest.approx(dict.fromkeys(SCORES, 5.0), abs=0.01)


def test_the_mixture_misses_nothing_and_is_not_precise(truth: Truth) -> None:
    found = scores(truth, A + B)
    assert (found["recall"], found["faithfulness"]) == pytest.approx((5, 5), abs=0.05)
    assert found["precision"] == pytest.approx(2.0, abs=0.1)  # 0 dB, of -10 to 30
    assert found["overall"] == pytest.approx(1 + 4 * 10 / 30, abs=0.1)  # SI-SDR 0 dB, of -10 to 20


def test_the_wrong_half_scores_low_where_it_counts(truth: Truth) -> None:
    found = scores(truth, B)
    assert max(found["overall"], found["recall"], found["precision"]) < 1.5
    assert scores(truth, B, asked=1) == pytest.approx(dict.fromkeys(SCORES, 5.0), abs=0.01)


def test_silence_scores_one_unless_nothing_was_there_to_find(truth: Truth) -> None:
    silence = torch.zeros_like(A)
    assert scores(truth, silence) == dict.fromkeys(SCORES, 1.0)
    assert scores(truth, silence, asked=2) == dict.fromkeys(SCORES, 5.0)
    assert scores(truth, A + B, asked=2) == {"overall": 1, "recall": 5, "precision": 1, "faithfulness": 5}


def test_a_quieter_target_lacks_recall_only(truth: Truth) -> None:
    found = scores(truth, 0.5 * A)
    assert found["recall"] == pytest.approx(1 + 4 * 6.02 / 20, abs=0.1)
    assert min(found["overall"], found["precision"], found["faithfulness"]) > 4.9


def test_a_louder_target_misses_nothing(truth: Truth) -> None:
    assert scores(truth, 1.5 * A)["recall"] == pytest.approx(5, abs=0.05)


@pytest.mark.parametrize("score", ["overall", "precision"])
def test_scores_fall_as_more_of_the_other_leaks(truth: Truth, score: str) -> None:
    found = [scores(truth, A + leak * B)[score] for leak in (0.05, 0.2, 0.5, 1.0)]
    assert found == sorted(found, reverse=True) and found[0] - found[-1] > 1


def test_added_noise_is_a_lack_of_faithfulness(truth: Truth) -> None:
    found = [scores(truth, A + level * noise(2, 100, 4000)) for level in (0.1, 0.5, 1.0)]
    assert [row["faithfulness"] for row in found] == sorted((row["faithfulness"] for row in found), reverse=True)
    assert found[-1]["faithfulness"] < 2.5 and found[-1]["recall"] > 3.5


def test_band_gains_get_the_scores_of_the_sound_that_they_make(truth: Truth) -> None:
    a, b = (CODEC.band_power(CODEC.stft(wave)) for wave in (A, B))
    gain = (a / (a + b).clamp_min(1e-14)).clamp(0.02, 1)
    sound = CODEC.istft(CODEC.stft(A + B) * (gain @ CODEC.bands.T), SAMPLES)
    assert (truth.scores(sound) - scores_of_gain(gain, a, b)).abs().max() < 0.8


def test_si_sdr_ignores_scale() -> None:
    assert si_sdr(3 * (A + 0.1 * B), A).item() == pytest.approx(20, abs=0.2)
