"""Steps: accumulation, averages, and a state that continues as if nothing had happened."""

import itertools

import pytest
import torch
from test_objective import batch_for

from operators.sam_audio.model import SAMAudio
from operators.sam_audio.sources import CheckpointError
from operators.sam_audio.training.averaging import Average
from operators.sam_audio.training.learner import Learner, adamw, learning_rate, muon_and_adamw
from operators.sam_audio.training.objective import LatentBatch, Objective, ObjectiveConfig
from operators.sam_audio.training.train import initialise, tiny_config


def learner(optimizer: str = "adamw", ema: float = 0.9) -> Learner:
    torch.manual_seed(0)
    model = SAMAudio(tiny_config(dim=32, layers=1, heads=2))
    initialise(model)
    objective = Objective(model, ObjectiveConfig(t0_share=0.5, max_time=0.9))
    made = adamw(objective, lr=1e-3) if optimizer == "adamw" else muon_and_adamw(objective, muon_lr=4e-3, adam_lr=1e-3)
    return Learner(objective, made, ema=ema, seed=5)


def numbered(first: int, size: int = 2) -> LatentBatch:
    """A batch whose content follows from its number."""
    batch = batch_for(SAMAudio(tiny_config(dim=32, layers=1, heads=2)), size)
    generator = torch.Generator().manual_seed(first)
    batch.target = torch.randn(batch.target.shape, generator=generator)
    batch.numbers = torch.arange(first, first + size)
    return batch


def halves(batch: LatentBatch) -> list[LatentBatch]:
    def cut(rows: slice) -> LatentBatch:
        return LatentBatch(**{k: None if v is None else v[rows] for k, v in vars(batch).items()})

    return [cut(slice(0, 1)), cut(slice(1, 2))]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_equals_an_uninterrupted_one(optimizer, tmp_path):
    whole = learner(optimizer)
    for step in range(4):
        whole.step([numbered(2 * step)])
    before = learner(optimizer)
    for step in range(2):
        before.step([numbered(2 * step)])
    torch.save(before.state_dict(), tmp_path / "state.pt")
    torch.manual_seed(99)  # whatever else the new process has drawn
    after = learner(optimizer)
    after.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for step in range(2, 4):
        after.step([numbered(2 * step)])
    assert after.step_count == whole.step_count == 4
    for (name, a), (_, b) in zip(whole.model.named_parameters(), after.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert all(torch.equal(v, after.average.values[k]) for k, v in whole.average.values.items())


def test_gradients_of_micro_batches_add_up_to_the_whole_batch():
    together, apart = learner(), learner()
    a = together.step([numbered(0)])
    b = apart.step(halves(numbered(0)), count=2)
    torch.testing.assert_close(a["loss"], b["loss"])
    for p, q in zip(together.model.parameters(), apart.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=2e-4, rtol=1e-3)  # Adam divides tiny gradients by themselves


def test_too_few_micro_batches_are_an_error_and_no_smaller_step():
    with pytest.raises(ValueError, match="needs 3 micro batches, got 2"):
        learner().step(halves(numbered(0)), count=3)


def test_a_state_of_another_model_is_refused():
    torch.manual_seed(0)
    other = Objective(SAMAudio(tiny_config(dim=48, layers=1, heads=2)), ObjectiveConfig())
    with pytest.raises(CheckpointError, match="is of another model"):
        Learner(other, adamw(other, lr=1e-3), ema=0.9).load_state_dict(learner().state_dict())


def test_average_follows_the_weights_and_gives_them_back():
    weight = torch.nn.Parameter(torch.zeros(3))
    average = Average([("w", weight)], decay=0.5)
    weight.data.fill_(1)
    average.update(100)
    assert torch.equal(average.values["w"], torch.full((3,), 0.5))
    with average.applied():
        assert torch.equal(weight.data, torch.full((3,), 0.5))
    assert torch.equal(weight.data, torch.ones(3))
    with pytest.raises(KeyError, match="of other weights"):
        average.load_state_dict({"v": weight.data})


def test_first_averages_forget_the_beginning():
    weight = torch.nn.Parameter(torch.zeros(1))
    average = Average([("w", weight)], decay=0.999)
    weight.data.fill_(1)
    for update in itertools.islice(itertools.count(), 20):
        average.update(update)
    assert float(average.values["w"]) > 0.99


def test_learning_rate_warms_up_stays_and_falls():
    rates = [learning_rate(step / 100, step, 10) for step in range(100)]
    assert rates[0] == 0.1 and rates[9] == rates[39] == 1.0
    assert rates[70] < rates[50] < 1.0 and rates[99] >= 0.02


def test_bfloat16_learns_about_the_same():
    exact, fast = learner(), learner()
    fast.precision = torch.bfloat16
    for step in range(3):
        a, b = exact.step([numbered(2 * step)]), fast.step([numbered(2 * step)])
    torch.testing.assert_close(a["loss"], b["loss"].float(), atol=0.03, rtol=0.03)
