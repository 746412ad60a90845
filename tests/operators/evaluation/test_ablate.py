"""Tables of changed recipes and of a run as it goes, on a few real recordings and models that learn next to nothing."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from packs import write_pack

from operators.evaluation import ablate, learning
from operators.sam_audio.training.train import Trainer, tiny_config

# The others differ in numbers only.
BUILT_OTHERWISE = ["without the skip from the mixture", "velocity, all times, eight midpoint steps"]


@pytest.mark.parametrize("name", [*BUILT_OTHERWISE, "with the alignment loss (cepstra, weight 0.1)"])
def test_a_variant_is_a_recipe_that_trains(name: str, tmp_path: Path, small: Path) -> None:
    figures = ablate.trained(name, ablate.VARIANTS[name], small, tmp_path, 1, "cpu")
    assert figures["parameters"] > 0
    assert (tmp_path / "best" / "model.safetensors").exists()


@pytest.fixture
def small(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Real recordings; every variant is shrunk to a layer."""
    shrunk = {name: replace(variant, size=(32, 1)) for name, variant in ablate.VARIANTS.items()}
    monkeypatch.setattr(ablate, "VARIANTS", shrunk)
    monkeypatch.setattr(ablate, "Recipe", partial(ablate.Recipe, batch=2))
    monkeypatch.setattr(ablate, "Trainer", partial(Trainer, fast=False))
    return write_pack(tmp_path_factory.mktemp("pack"), "both")


def test_the_table_compares_with_the_shipped_recipe(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = [ablate.SHIPPED_RECIPE, "all examples at t = 0"]
    words = [str(small), "--steps", "1", "--mixes", "2", "--out", str(tmp_path / "a"), "--only", *chosen]
    monkeypatch.setattr("sys.argv", ["ablate", *words])
    ablate.main()
    found = json.loads((tmp_path / "a.json").read_text())
    assert list(found) == chosen and len(found[chosen[1]]["against_first"]) == 3
    assert "against the first" in capsys.readouterr().out
    ablate.main()  # goes on where it was: nothing is left to train
    assert "1 of 1 steps done" in capsys.readouterr().out


def test_the_curve_has_the_losses_and_held_out_improvement_of_every_validation(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(learning, "Trainer", partial(Trainer, fast=False))
    monkeypatch.setattr(learning, "tiny_config", partial(tiny_config, dim=32, layers=1, heads=1))
    words = [str(small), "--steps", "4", "--every", "2", "--mixes", "1", "--out", str(tmp_path / "curve")]
    monkeypatch.setattr("sys.argv", ["learning", *words])
    learning.main()
    rows = json.loads((tmp_path / "curve.json").read_text())
    assert [row["step"] for row in rows] == [2, 4]
    low, high = rows[1]["interval_db"]
    assert low <= rows[1]["mean_db"] <= high and rows[0]["latent"] > 0 and rows[0]["gain"] > 0
    assert "SI-SDR improvement on held-out mixes" in capsys.readouterr().out
