"""The model of a run: what each mode trains and keeps, and what comes out of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from released_layout import write_released

from operators.sam_audio import SAMAudio
from operators.sam_audio.training import lora
from operators.sam_audio.training.learner import trained
from pipeline.training_config import TrainingConfig, checked
from pipeline.training_model import build_model, build_objective, build_optimizers, parameter_counts, write_model
from pipeline.training_store import TrainingStore


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    return write_released(tmp_path_factory.mktemp("released")).sam_audio


def config(model: Path | str, lake: Path, **values: Any) -> TrainingConfig:
    return checked({"manifest": str(lake / "m.parquet"), "lake": str(lake), "run": "r", "model": str(model), **values})


def test_full_training_leaves_codec_and_image_tower_alone(released, tmp_path):
    model = build_model(config(released, tmp_path, mode="full"), "cpu")
    names = [name for name, _ in trained(model)]
    assert any(name.startswith("transformer.layers.0") for name in names) and "proj.weight" in names
    assert not any(name.startswith(("audio_codec.", "vision_encoder.")) for name in names)
    assert model.training and not model.audio_codec.training and not model.vision_encoder.training


def test_lora_trains_little_and_writes_adapters_and_a_merged_checkpoint(released, tmp_path):
    settings = config(released, tmp_path, lora={"rank": 2})
    model = build_model(settings, "cpu")
    some, all_ = parameter_counts(model)
    assert 0 < some < all_ / 4
    for _, adapter in lora.adapters(model):
        torch.nn.init.normal_(adapter.lora_b, std=0.05)
    store = TrainingStore(settings)
    write_model(settings, store, model)
    merged = SAMAudio.from_pretrained(store.url("model"))
    again = SAMAudio.from_pretrained(released)
    lora.load_adapters(again, Path(store.url("adapters")))
    torch.testing.assert_close(lora.merge(again).state_dict(), merged.state_dict())
    base = SAMAudio.from_pretrained(released).transformer.layers[0].attention.wq.weight
    assert not torch.equal(merged.transformer.layers[0].attention.wq.weight, base)


def test_scratch_keeps_the_codec_and_forgets_the_rest(released, tmp_path):
    model, old = build_model(config(released, tmp_path, mode="scratch"), "cpu"), SAMAudio.from_pretrained(released)
    torch.testing.assert_close(model.audio_codec.state_dict(), old.audio_codec.state_dict())
    assert not torch.equal(model.proj.weight, old.proj.weight)
    assert model.config == old.config
    # The same seed begins with the same weights, on every worker.
    torch.manual_seed(5)
    again = build_model(config(released, tmp_path, mode="scratch"), "cpu")
    torch.testing.assert_close(model.state_dict(), again.state_dict())


def test_the_prediction_of_a_model_from_scratch_can_be_chosen(tmp_path):
    model = build_model(config("tiny", tmp_path, mode="scratch", prediction="velocity"), "cpu")
    assert (model.config.prediction, model.config.mixture_skip) == ("velocity", False)
    assert model.config.solver.method == "midpoint"


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_optimizers_hold_every_trained_weight_once(tmp_path, optimizer):
    settings = config(
        "tiny", tmp_path, mode="full", optimizer=optimizer, alignment="cepstra", objective={"alignment_weight": 0.1}
    )
    objective, embedding = build_objective(settings, build_model(settings, "cpu"))
    assert embedding is not None and objective.config.gain_weight > 0
    held = [id(p) for o in build_optimizers(settings, objective) for group in o.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in objective.parameters() if p.requires_grad)
