"""Rankers: shapes, choices, configurations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from golden.loader import load
from released_layout import write_judge
from torch import Tensor

from operators.sam_audio.config import ConfigError
from operators.sam_audio.judge import SAMAudioJudgeModel
from operators.sam_audio.ranking import (
    EnsembleRanker,
    JudgeRanker,
    SoundActivityRanker,
    build_ranker,
)
from operators.sam_audio.ranking_clap import ClapRanker
from operators.sam_audio.ranking_imagebind import ImageBindRanker

RATE = 48_000


def tone(start: float, end: float, seconds: float = 2.0) -> Tensor:
    t = torch.arange(round(seconds * RATE)) / RATE
    return 0.3 * torch.sin(2 * math.pi * 330 * t) * ((t >= start) & (t < end))


@dataclass
class LevelJudge:
    """Scores a target by its level, and remembers what it was given."""

    sample_rate: int = RATE
    mixtures: list[Tensor] = field(default_factory=list)
    descriptions: list[str] = field(default_factory=list)

    def score(self, mixture: Sequence[Tensor], target: Sequence[Tensor], descriptions: Sequence[str]) -> Tensor:
        self.mixtures += mixture
        self.descriptions += descriptions
        overall = torch.stack([wave.square().mean() for wave in target])
        return torch.stack([overall, -overall, -overall, -overall], dim=1)


@pytest.mark.parametrize("metric", ["iou", "recall", "precision"])
@pytest.mark.parametrize("index", [0, 2])
def test_sound_activity_scores_equal_the_golden_ones(index: int, metric: str) -> None:
    golden = load("sound_activity")
    signal = golden.values["signals"][index]
    ranker = SoundActivityRanker(metric=metric)
    wav = golden[f"in.wav{index}"]
    spans = [[(start, end) for _, start, end in signal["reference_spans"]]]
    scores = ranker(extracted_audio=[wav.repeat(2, 1)], sample_rate=signal["sample_rate"], spans=spans)
    expected = torch.full((1, 2), signal[f"ranker_{metric}"])
    torch.testing.assert_close(scores, expected, **golden.tolerance)


def test_sound_activity_prefers_the_candidate_that_sounds_when_asked() -> None:
    candidates = torch.stack([tone(0.0, 2.0), tone(0.5, 1.0), tone(1.5, 2.0)])
    scores = SoundActivityRanker()(extracted_audio=[candidates] * 2, spans=[[(0.5, 1.0)], [(1.5, 2.0)]])
    assert scores.shape == (2, 3) and scores.dtype == torch.float32
    assert scores.argmax(1).tolist() == [1, 2]


def test_sound_activity_without_spans_says_what_to_give() -> None:
    with pytest.raises(ValueError, match="predict_spans"):
        SoundActivityRanker()(extracted_audio=[torch.zeros(2, 100)], spans=None)


def test_an_item_without_spans_keeps_its_first_candidate() -> None:
    scores = SoundActivityRanker()(extracted_audio=[torch.stack([tone(0, 1), tone(1, 2)])], spans=[[]])
    assert scores.tolist() == [[0.0, 0.0]] and scores.argmax(1).tolist() == [0]


def test_judge_hears_one_mixture_for_all_candidates_of_an_item() -> None:
    judge = LevelJudge()
    candidates = [torch.stack([tone(0, 1), tone(0, 2)]), torch.stack([tone(0, 2), tone(0, 1)])]
    mixtures = [torch.ones(96_000).expand(2, -1), torch.ones(96_000).repeat(2, 1)]
    scores = JudgeRanker(judge=judge)(
        extracted_audio=candidates, input_audio=mixtures, descriptions=["dog", "cat"], sample_rate=RATE
    )
    assert scores.argmax(1).tolist() == [1, 0]
    assert judge.descriptions == ["dog", "dog", "cat", "cat"]
    assert judge.mixtures[0] is judge.mixtures[1] and judge.mixtures[2] is judge.mixtures[3]


def test_judge_gets_its_own_sample_rate() -> None:
    judge = LevelJudge(sample_rate=16_000)
    JudgeRanker(judge=judge)(
        extracted_audio=[torch.zeros(2, 4_800)],
        input_audio=[torch.zeros(2, 4_800)],
        descriptions=["dog"],
        sample_rate=RATE,
    )
    assert judge.mixtures[0].shape == (1_600,)


def test_judge_is_loaded_at_the_first_call_and_gives_its_overall_score(tmp_path: Path) -> None:
    ranker = build_ranker({"kind": "judge", "checkpoint_or_model_id": str(tmp_path / "judge")})
    (tmp_path / "judge").mkdir()
    write_judge(tmp_path / "judge")
    judge = SAMAudioJudgeModel.from_pretrained(tmp_path / "judge")
    audio = torch.randn(1, 4 * judge.audio_codec.hop_length, generator=torch.Generator().manual_seed(0)) * 0.1
    candidates = torch.cat([audio, -audio, torch.zeros_like(audio)])
    assert ranker is not None
    scores = ranker(
        extracted_audio=[candidates],
        input_audio=[audio.expand(3, -1)],
        descriptions=["dog"],
        videos=None,
        sample_rate=judge.sample_rate,
    )
    expected = judge.score([audio[0]] * 3, list(candidates), ["dog"] * 3)[:, 0]
    torch.testing.assert_close(scores, expected[None])
    assert len(set(scores[0].tolist())) == 3


def test_ensemble_is_the_weighted_sum_of_its_members() -> None:
    judge = JudgeRanker(judge=LevelJudge())
    activity = SoundActivityRanker()
    given = {
        "extracted_audio": [torch.stack([tone(0, 1), tone(0, 2)])],
        "input_audio": [tone(0, 2).expand(2, -1)],
        "descriptions": ["dog"],
        "videos": None,
        "sample_rate": RATE,
        "spans": [[(0.0, 1.0)]],
    }
    together = EnsembleRanker([(judge, 2.0), (activity, 0.5)])(**given)
    torch.testing.assert_close(together, 2.0 * judge(**given) + 0.5 * activity(**given))


def test_candidates_of_unequal_number_are_refused() -> None:
    with pytest.raises(ValueError, match="one K for all items"):
        JudgeRanker(judge=LevelJudge())(
            extracted_audio=[torch.zeros(2, 10), torch.zeros(3, 10)], input_audio=[], descriptions=["a", "b"]
        )


def test_released_configurations_build_without_loading_anything() -> None:
    text = build_ranker(
        {"kind": "ensemble", "rankers": {"clap": [{"kind": "clap"}, 5.0], "judge": [{"kind": "judge"}, 1.0]}}
    )
    assert isinstance(text, EnsembleRanker)
    assert [(type(ranker), weight) for ranker, weight in text.rankers] == [(ClapRanker, 5.0), (JudgeRanker, 1.0)]
    assert isinstance(build_ranker({"kind": "imagebind", "checkpoint": None}), ImageBindRanker)
    assert build_ranker(None) is None


def test_options_reach_the_ranker() -> None:
    judge = build_ranker({"kind": "judge", "checkpoint_or_model_id": "/models/judge"})
    assert isinstance(judge, JudgeRanker) and judge.checkpoint_or_model_id == "/models/judge"
    activity = build_ranker(
        {"kind": "sound_activity", "threshold_mode": "abs", "sil_threshold": -30, "metric": "recall"}
    )
    assert isinstance(activity, SoundActivityRanker)
    assert (activity.threshold_mode, activity.sil_threshold, activity.metric) == ("abs", -30, "recall")


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"kind": "oracle"}, "'oracle'"),
        ({}, "None"),
        ("judge", "'judge'"),
        ({"kind": "judge", "model": "x"}, "model"),
        ({"kind": "sound_activity", "metric": "f1"}, "'f1'"),
        ({"kind": "sound_activity", "threshold_mode": "loud"}, "'loud'"),
        ({"kind": "ensemble"}, "rankers"),
        ({"kind": "ensemble", "rankers": {}}, "empty"),
        ({"kind": "ensemble", "rankers": {"a": {"kind": "judge"}}}, "'a'"),
        ({"kind": "ensemble", "rankers": {"a": [{"kind": "judge"}, "much"]}}, "'a'"),
        ({"kind": "ensemble", "rankers": {"a": [None, 1.0]}}, "'a' is null"),
        ({"kind": "ensemble", "rankers": {"a": [{"kind": "oracle"}, 1.0]}}, "'oracle'"),
    ],
)
def test_a_wrong_configuration_is_refused_by_name(config: object, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        build_ranker(config)  # type: ignore[arg-type]
