"""The shipped judge: on real recordings it tells good from bad, right from wrong, and how good the shipped model is."""

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from torch import Tensor

from operators.sam_audio import SAMAudio, SAMAudioProcessor
from operators.sam_audio.judge import SAMAudioJudgeModel
from operators.sam_audio.sources import SHIPPED

MEDIA = Path(__file__).parents[3] / "jobs" / "demo_media"
RATE, SECONDS = 48_000, 12
OVERALL, RECALL, PRECISION = range(3)


def read(name: str) -> Tensor:
    wave, rate = sf.read(MEDIA / f"{name}.flac", dtype="float32", frames=SECONDS * RATE)
    assert rate == RATE
    return torch.from_numpy(0.08 * wave[:, 0] / np.sqrt(np.mean(wave**2)))


@pytest.fixture(scope="module")
def judge() -> SAMAudioJudgeModel:
    return SAMAudioJudgeModel.from_pretrained("tiny")


@pytest.fixture(scope="module")
def halves() -> tuple[Tensor, Tensor]:
    """Speech and music at the same level."""
    return read("speech"), read("music")


def scores(judge: SAMAudioJudgeModel, mixture: Tensor, target: Tensor, description: str) -> list[float]:
    return [float(score) for score in judge.score([mixture], [target], [description])[0]]


def test_the_sound_itself_is_better_than_the_mixture_and_that_than_the_other_sound(
    judge: SAMAudioJudgeModel, halves: tuple[Tensor, Tensor]
) -> None:
    speech, music = halves
    for description, right, wrong in [("speech", speech, music), ("music", music, speech)]:
        answers = [scores(judge, speech + music, output, description) for output in (right, speech + music, wrong)]
        good, untouched, bad = (answer[OVERALL] for answer in answers)
        assert good > untouched + 0.5 and untouched > bad
        assert answers[0][PRECISION] > answers[1][PRECISION] > answers[2][PRECISION]


def test_the_shipped_model_is_judged_better_than_the_mixture(
    judge: SAMAudioJudgeModel, halves: tuple[Tensor, Tensor]
) -> None:
    mixture = sum(halves, start=torch.zeros(()))
    processor = SAMAudioProcessor.from_pretrained("tiny")
    result = SAMAudio.from_pretrained("tiny").separate(processor(audios=[mixture[None]], descriptions=["speech"]))
    separated = scores(judge, mixture, result.target[0][: len(mixture)], "speech")
    untouched = scores(judge, mixture, mixture, "speech")
    assert separated[OVERALL] > untouched[OVERALL] + 0.3
    assert separated[PRECISION] > untouched[PRECISION]
    assert separated[RECALL] < untouched[RECALL]  # nothing is missing from what was left alone


def test_a_muffled_sound_is_not_all_of_it(judge: SAMAudioJudgeModel, halves: tuple[Tensor, Tensor]) -> None:
    speech, music = halves
    spectrum = torch.fft.rfft(speech)
    spectrum[len(spectrum) // 24 :] = 0  # nothing above 1 kHz
    muffled = torch.fft.irfft(spectrum, len(speech))
    whole, less = (scores(judge, speech + music, output, "speech") for output in (speech, muffled))
    assert less[RECALL] < whole[RECALL]


def test_it_is_a_judge_of_a_few_megabytes(judge: SAMAudioJudgeModel) -> None:
    assert sum(p.numel() for p in judge.parameters()) < 4e6
    assert sum(f.stat().st_size for f in (SHIPPED["tiny"] / "judge").iterdir()) < 5e6
