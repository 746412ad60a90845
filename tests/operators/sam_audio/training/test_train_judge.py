"""Judge training on small made-up shards: it learns, goes on where it stopped, and writes what a judge loads."""

from pathlib import Path

import numpy as np
import pytest
import torch
from packs import write_pack

from operators.judge_scores import SCORES
from operators.sam_audio.band_codec import BandCodec
from operators.sam_audio.config import BandCodecConfig
from operators.sam_audio.judge import SAMAudioJudgeModel
from operators.sam_audio.spans import PEAFrame
from operators.sam_audio.training.band_bank import BandBank
from operators.sam_audio.training.band_sources import BandSources
from operators.sam_audio.training.eval_judge import evaluate, table
from operators.sam_audio.training.judge_data import Shard, Sound
from operators.sam_audio.training.judge_examples import ASKED, FLOOR, Remixed, Separated, varied
from operators.sam_audio.training.judge_truth import scores_of_gain
from operators.sam_audio.training.train_judge import JudgeTrainer, Recipe, judge_config, pearson, take_ears
from operators.sam_audio.training.train_spans import spans_config

BANDS, FRAMES, MIXTURES = 128, 20, 12
SMALL = judge_config(width=16, layers=1, finetune_layers=1, heads=2)


def latents(power: torch.Tensor) -> torch.Tensor:
    return ((10 * torch.log10(power.clamp_min(1e-9)) + 50) / 20).mT


def shard(seed: int, systems: list[str]) -> Shard:
    """Mixtures of a low and a high sound, and gains between one and the other in place of systems."""
    generator = torch.Generator().manual_seed(seed)
    ramp = torch.linspace(1, 0, BANDS) ** 3
    a, b = (1e-4 * side * (0.5 + torch.rand(MIXTURES, FRAMES, 1, generator=generator)) for side in (ramp, ramp.flip(0)))
    outputs, scores = [], []
    for _ in systems:
        trust = torch.rand(MIXTURES, 1, 1, generator=generator)
        gain = trust * a / (a + b) + (1 - trust) * b / (a + b)
        outputs.append(latents(gain.square() * (a + b)))
        scores.append(scores_of_gain(gain, a, b))
    return Shard(
        latents(a + b),
        torch.stack(outputs, 1),
        torch.stack(scores, 1),
        [[Sound("speech"), Sound("music"), Sound("sfx", "dog")] for _ in range(MIXTURES - 2)]
        + [[Sound("sfx", "cat"), Sound("music"), Sound("speech")] for _ in range(2)],
        systems,
        torch.zeros(MIXTURES, len(systems), dtype=torch.int64),
    )


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for part, systems in (("train", ["stage", "oracle", "remix"]), ("eval", ["oracle", "tiny"])):
        (folder / part).mkdir()
        shard(len(part), systems).save(folder / part / "00000.safetensors")
    (folder / "validation").mkdir()
    shard(3, ["stage", "oracle", "remix", "gate"]).save(folder / "validation" / "00000.safetensors")
    return folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> BandSources:
    codec = BandCodec(BandCodecConfig())
    return BandSources(BandBank(write_pack(tmp_path_factory.mktemp("pack"), "train"), codec), codec)


def test_shard_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    made = shard(0, ["stage", "oracle"])
    made.save(tmp_path / "s.safetensors")
    back = Shard.load(tmp_path / "s.safetensors")
    assert (back.sounds, back.systems) == (made.sounds, made.systems)
    assert torch.equal(back.scores, made.scores)
    torch.testing.assert_close(back.outputs.float(), made.outputs, atol=2e-3, rtol=0)


def test_examples_are_the_same_for_the_same_generator(shards: Path, sources: BandSources) -> None:
    for draw in (Separated(shards / "train").draw, Remixed(sources, FRAMES).draw):
        first, second = (draw(4, 2, np.random.default_rng(5)) for _ in range(2))
        assert first.phrases == second.phrases
        assert len(first.phrases) == len(first.scores) == ASKED * len(first.outputs) == 16
        assert torch.equal(first.outputs, second.outputs) and torch.equal(first.scores, second.scores)
        assert first.outputs.min() >= FLOOR and first.scores.min() >= 1 and first.scores.max() <= 5


def test_an_absent_effect_is_never_asked_for_in_general_words() -> None:
    assert set(Sound("effect", "dog").phrases).isdisjoint(Sound("sfx").phrases)


def test_the_error_falls_on_fixed_examples(
    shards: Path, sources: BandSources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = JudgeTrainer(shards, sources, tmp_path, SMALL, Recipe(mixtures=3, outputs=3, warmup_steps=3))
    fixed = trainer.examples()
    monkeypatch.setattr(trainer, "examples", lambda: fixed)
    errors = [trainer.train_step(0.0) for _ in range(60)]
    assert errors[-1] < 0.5 * errors[0]


def test_resumed_training_is_as_if_it_had_never_stopped(shards: Path, sources: BandSources, tmp_path: Path) -> None:
    recipe = Recipe(mixtures=4, outputs=3, warmup_steps=3)
    trainer = JudgeTrainer(shards, sources, tmp_path, SMALL, recipe)
    for _ in range(4):
        trainer.train_step(0.0)
    trainer.save()
    resumed = JudgeTrainer(shards, sources, tmp_path, SMALL, recipe)
    assert resumed.step == 4
    for other in (trainer, resumed):
        for _ in range(3):
            other.train_step(0.5)
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


def test_what_is_shipped_loads_and_is_evaluated(shards: Path, sources: BandSources, tmp_path: Path) -> None:
    trainer = JudgeTrainer(shards, sources, tmp_path, SMALL, Recipe(mixtures=2, outputs=2))
    trainer.train_step(0.0)
    assert trainer.validate().shape == (4,)
    judge = SAMAudioJudgeModel.from_pretrained(tmp_path / "best")
    assert judge.config == SMALL
    report = evaluate(judge, shards / "eval")
    assert set(report["all descriptions"]["systems held out"]["correlation"]) == set(SCORES)
    assert report["all descriptions"]["  tiny"]["rows"] == 3 * MIXTURES
    assert report["own description"]["  tiny"]["rows"] == MIXTURES
    assert "systems held out" in table(report)


def test_no_shards_is_said_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="judge_data"):
        Separated(tmp_path)


def test_pearson_is_one_for_a_rescaled_copy() -> None:
    x = torch.rand(50, 4)
    torch.testing.assert_close(pearson(x, 3 * x - 1), torch.ones(4))


def test_a_judge_hears_and_reads_like_the_span_predictor_that_it_starts_from(
    shards: Path, sources: BandSources, tmp_path: Path
) -> None:
    ears = PEAFrame(spans_config(16, 1, 2))
    judge = JudgeTrainer(shards, sources, tmp_path, SMALL, Recipe(), ears).model
    latents = torch.randn(2, FRAMES, BANDS)
    torch.testing.assert_close(
        judge.hear(latents), ears.audio_model.audio_transformer(ears.audio_model.data_proj(latents)).frames
    )
    sentences = ears.descriptions(["speech", "a dog barking"])
    torch.testing.assert_close(judge.text_proj1(sentences), ears.text_head(sentences), atol=0.05, rtol=0.05)
    with pytest.raises(ValueError, match="the judge's is"):
        take_ears(judge, PEAFrame(spans_config(32, 1, 2)))


def test_variation_treats_an_output_as_its_mixture_and_changes_no_score(sources: BandSources) -> None:
    drawn = Remixed(sources, FRAMES).draw(4, 2, np.random.default_rng(3))
    drawn.outputs = drawn.mixture[drawn.source]
    heard = varied(drawn, np.random.default_rng(5))
    assert torch.equal(heard.outputs, heard.mixture[heard.source])
    assert not torch.equal(heard.mixture[0, :5], drawn.mixture[0, :5])
    assert heard.mixture.min() >= FLOOR and heard.mixture.shape[1] != FRAMES
    assert heard.phrases == drawn.phrases and torch.equal(heard.scores, drawn.scores)
