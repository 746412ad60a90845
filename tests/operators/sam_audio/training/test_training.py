"""The recipe on a few real recordings: enough to see that every part works and that it learns."""

from pathlib import Path

import numpy as np
import pytest
import torch
from packs import write_pack

from operators.sam_audio import SAMAudio
from operators.sam_audio.band_codec import BandCodec
from operators.sam_audio.config import BandCodecConfig
from operators.sam_audio.training import prompts
from operators.sam_audio.training.engine import DataEngine
from operators.sam_audio.training.fetch import catalogue
from operators.sam_audio.training.muon import orthogonalise
from operators.sam_audio.training.train import Recipe, Trainer, tiny_config


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    return write_pack(tmp_path_factory.mktemp("pack"), "train")


@pytest.fixture(scope="module")
def engine(data_dir) -> DataEngine:
    return DataEngine(data_dir, BandCodec(BandCodecConfig()), frames=50)


def test_batch_holds_every_mixture_with_either_half_as_target(engine):
    batch = engine.batch(8, np.random.default_rng(0))
    assert batch.mixture.shape == (8, 128, 50)
    torch.testing.assert_close(batch.mixture[0::2], batch.mixture[1::2])
    torch.testing.assert_close(batch.target[0::2], batch.residual[1::2])
    torch.testing.assert_close(batch.gain[0::2] + batch.gain[1::2], torch.ones(4, 128, 50))


def test_same_generator_draws_the_same_batch(engine):
    a, b = (engine.batch(4, np.random.default_rng(7)) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))


def test_eval_recordings_are_never_drawn_in_training():
    splits = {row["split"] for row in catalogue()}
    assert splits == {"train", "eval"}


def test_every_label_of_the_catalogue_has_a_phrase():
    labels = {row["label"] or "" for row in catalogue() if row["kind"] == "sfx"}
    known = set(prompts.vocabulary(sorted(labels)))
    assert all(set(prompts.label_phrases(label)) <= known for label in labels)


def test_orthogonalise_gives_singular_values_near_one():
    values = torch.linalg.svdvals(orthogonalise(torch.randn(3, 48, 16)))
    assert values.min() > 0.5 and values.max() < 1.5


def test_training_learns_resumes_and_saves_a_loadable_model(data_dir, tmp_path):
    config, recipe = tiny_config(dim=32, layers=1, heads=2), Recipe(batch=4, warmup_steps=5)
    trainer = Trainer(data_dir, tmp_path, config, recipe, "cpu", fast=False)
    before = trainer.validate()
    trainer.train(steps=100)
    assert trainer.validate() < before - 0.5  # dB of relative error energy
    resumed = Trainer(data_dir, tmp_path, config, recipe, "cpu", fast=False)
    assert resumed.step == trainer.step > 0
    model = SAMAudio.from_pretrained(tmp_path / "best")
    assert model.config == config
    # Another run may begin with it, and then is where this one was.
    other = Trainer(data_dir, tmp_path / "other", config, recipe, "cpu", fast=False, start=model)
    assert other.step == 0 and other.validate() == pytest.approx(resumed.best, abs=1e-3)


def test_an_interrupted_training_ends_as_one_that_was_left_alone(data_dir, tmp_path, monkeypatch):
    config, recipe = tiny_config(dim=32, layers=1, heads=2), Recipe(batch=2, warmup_steps=2, alignment_weight=0.1)

    def trainer(name: str) -> Trainer:
        return Trainer(data_dir, tmp_path / name, config, recipe, "cpu", fast=False)

    whole = trainer("whole")
    whole.train(steps=4, validate_every=2)
    assert whole.log[-1]["alignment"] > 0

    broken = trainer("broken")
    step = broken.learner.step

    def break_off(*args):
        if broken.step == 3:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(broken.learner, "step", break_off)
    with pytest.raises(KeyboardInterrupt):
        broken.train(steps=4, validate_every=2)
    resumed = trainer("broken")
    assert resumed.step == 2
    resumed.train(steps=4, validate_every=2)
    for (name, a), (_, b) in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert [row["validation_db"] for row in resumed.log] == [row["validation_db"] for row in whole.log]
