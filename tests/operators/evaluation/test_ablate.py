"""The table of changed recipes, on a few real recordings and models that learn next to nothing."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from packs import write_pack

from operators.evaluation import ablate
from operators.sam_audio.training.train import Trainer

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
