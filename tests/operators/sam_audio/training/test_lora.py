"""Adapters on a checkpoint of the released layout: they learn, save, load and merge into a plain checkpoint."""

from pathlib import Path

import pytest
import torch
from released_layout import CHANNELS, RATE, write_released

from operators.sam_audio import SAMAudio
from operators.sam_audio.config import ConfigError
from operators.sam_audio.sources import CheckpointError
from operators.sam_audio.training import lora
from operators.sam_audio.training.batches import WaveBatch, encode_batch
from operators.sam_audio.training.learner import Learner, adamw, trained
from operators.sam_audio.training.objective import Objective, ObjectiveConfig, draw


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    return write_released(tmp_path_factory.mktemp("released")).sam_audio


def one_mixture(numbers: range) -> WaveBatch:
    """The same mixture of a low and a high tone, with different noise for every number."""
    t = torch.arange(RATE * 2) / RATE
    low, high = 0.3 * torch.sin(2 * torch.pi * 220 * t), 0.3 * torch.sin(2 * torch.pi * 1800 * t) * (t > 1)
    size = len(numbers)
    return WaveBatch(
        high.expand(size, -1), low.expand(size, -1), ["birds chirping"] * size, [[("+", 1.0, 2.0)]] * size, numbers
    )


def held_out_loss(objective: Objective, numbers: range = range(10_000, 10_004)) -> float:
    """Of noise that training has not seen."""
    objective.eval()
    with torch.no_grad():
        batch = encode_batch(objective.model, one_mixture(numbers))
        noise, time = draw(objective.config, 1, numbers, batch.mixture.shape[2], 2 * CHANNELS, "cpu")
        return float(objective(batch, noise, time)["loss"])


def test_adapters_overfit_one_mixture_and_merge_into_a_loadable_checkpoint(released, tmp_path):
    torch.manual_seed(0)
    model = SAMAudio.from_pretrained(released)
    names = lora.inject(model, config := lora.LoRAConfig(rank=8, alpha=32))
    assert len(names) == 2 * (4 + 4 + 3) == len(list(lora.adapters(model)))
    assert all("lora_" in name for name, _ in trained(model))
    # At t near 1 a random network says little: this is about whether the adapters can learn.
    objective = Objective(model, ObjectiveConfig(t0_share=0.5, max_time=0.6))
    before = held_out_loss(objective)
    learner = Learner(objective, adamw(objective, lr=1e-2), ema=0.9)
    for step in range(40):
        learner.step([encode_batch(model, one_mixture(range(4 * step, 4 * step + 4)))])
    learned = held_out_loss(objective)
    assert learned < 0.6 * before

    lora.save_adapters(model, config, tmp_path / "adapters", str(released))
    lora.merge(model)
    assert not list(lora.adapters(model))
    assert held_out_loss(objective) == pytest.approx(learned, rel=1e-3)
    model.save_pretrained(tmp_path / "merged")
    merged = SAMAudio.from_pretrained(tmp_path / "merged")
    assert held_out_loss(Objective(merged, objective.config)) == pytest.approx(learned, rel=1e-3)

    again = SAMAudio.from_pretrained(released)
    assert lora.load_adapters(again, tmp_path / "adapters") == config
    assert held_out_loss(Objective(again, objective.config)) == pytest.approx(learned, rel=1e-3)


def test_new_adapters_change_nothing(released):
    model = SAMAudio.from_pretrained(released)
    objective = Objective(model, ObjectiveConfig())
    before = held_out_loss(objective)
    lora.inject(model, lora.LoRAConfig())
    assert held_out_loss(objective) == before
    with pytest.raises(ValueError, match="merge them first"):
        lora.inject(model, lora.LoRAConfig())


def test_adapters_belong_to_the_released_layout(released):
    """A copy with its heads rearranged for speed takes the same adapters."""
    plain, fast = SAMAudio.from_pretrained(released), SAMAudio.from_pretrained(released)
    fast.transformer.set_heads_first(True)
    for model in (plain, fast):
        torch.manual_seed(3)
        lora.inject(model, lora.LoRAConfig(rank=2))
        for _, module in lora.adapters(model):
            torch.nn.init.normal_(module.lora_b, std=0.1)
        lora.merge(model)
    for (name, a), (_, b) in zip(plain.named_parameters(), fast.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_adapters_of_another_size_are_refused(released, tmp_path):
    model = SAMAudio.from_pretrained(released)
    lora.inject(model, config := lora.LoRAConfig(targets=("wq", "wv")))
    lora.save_adapters(model, config, tmp_path, "a")
    (tmp_path / lora.CONFIG_NAME).write_text((tmp_path / lora.CONFIG_NAME).read_text().replace("16", "4"))
    with pytest.raises(CheckpointError, match="does not fit this model"):
        lora.load_adapters(SAMAudio.from_pretrained(released), tmp_path)
    with pytest.raises(CheckpointError, match="describes no adapters"):
        lora.load_adapters(SAMAudio.from_pretrained(released), tmp_path / "nowhere")


def test_settings_that_make_no_adapter_are_refused():
    with pytest.raises(ConfigError, match="targets must be some of"):
        lora.LoRAConfig(targets=("everything",))
    with pytest.raises(ConfigError, match="rank must be at least 1"):
        lora.LoRAConfig(rank=0)
