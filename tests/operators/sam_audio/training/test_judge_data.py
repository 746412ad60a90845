"""Shards of a judge's training data from a few real recordings."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from packs import write_pack

from operators.sam_audio.sources import SHIPPED
from operators.sam_audio.training import judge_data
from operators.sam_audio.training.engine import DataEngine
from operators.sam_audio.training.eval_judge import HELD_OUT
from operators.sam_audio.training.judge_data import Maker
from operators.sam_audio.training.judge_systems import earlier_weights, worn


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Maker]:
    folder = write_pack(tmp_path_factory.mktemp("pack"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge_data, "MIXTURES", 3)
        patch.setattr(judge_data, "FRAMES", 50)
        yield Maker(folder, folder / "work", "eval")


@pytest.fixture(scope="module")
def shard(maker: Maker) -> judge_data.Shard:
    with torch.inference_mode():
        return maker.shard(0)


def test_evaluation_shards_hold_every_system(maker: Maker, shard: judge_data.Shard) -> None:
    assert shard.systems == [*maker.systems.seen, *maker.systems.held_out]
    assert set(maker.systems.seen).isdisjoint(maker.systems.held_out)
    assert set(maker.systems.held_out) == set(HELD_OUT)  # what the evaluation takes for held out
    assert shard.outputs.shape == (3, len(shard.systems), 128, 50)
    assert shard.outputs.isfinite().all() and shard.scores.isfinite().all()
    assert shard.scores.min() >= 1 and shard.scores.max() <= 5


def test_a_shard_depends_on_its_number_only(maker: Maker, shard: judge_data.Shard) -> None:
    with torch.inference_mode():
        again = maker.shard(0)
    assert again.sounds == shard.sounds and torch.equal(again.outputs, shard.outputs)
    assert torch.equal(again.scores, shard.scores)


def test_known_systems_have_the_scores_they_deserve(shard: judge_data.Shard) -> None:
    def mean(system: str) -> torch.Tensor:
        return shard.scores[:, shard.systems.index(system), :2].mean((0, 1))

    overall, recall = mean("mixture")[:2]
    assert recall == pytest.approx(5, abs=0.05)
    silence = shard.scores[:, shard.systems.index("silence"), :2].flatten(0, 1)
    # The dog pauses: where nothing was there to find, silence is right.
    assert {tuple(row) for row in silence.tolist()} <= {(1, 1, 1, 1), (5, 5, 5, 5)} and silence.min() == 1
    rows, k = torch.arange(len(shard.mixture)), shard.systems.index("oracle-bins")
    asked = shard.asked[:, k]
    assert (shard.scores[rows, k, asked][asked < 2, 0] > overall).all()


def test_worn_weights_differ_and_leave_the_model_alone(maker: Maker) -> None:
    model = maker.systems._current
    before = model.transformer.output.weight.clone()
    copy = worn(model, 0.3, np.random.default_rng(0))
    assert torch.equal(model.transformer.output.weight, before)
    assert not torch.equal(copy.transformer.output.weight, before)


def test_earlier_weights_are_none_without_a_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHIPPED, "tiny", tmp_path)
    assert earlier_weights(tmp_path / "out") == []


def test_training_and_evaluation_recordings_are_disjoint() -> None:
    parts = {DataEngine.training_part({"path": f"{i}"}) for i in range(500)}
    assert parts == {"train", "validation"}
