"""What each part of the small separator's recipe is worth: trained without it, on the same clips, all else kept.

    python -m operators.evaluation.ablate DATA_DIR [--steps 300] [--mixes 25] [--out out/ablate-tiny]

Every variant is trained from scratch on the same clips in the same order, and measured on mixes of the eval split. The
budget is a fraction of the shipped model's, so the table ranks changes; it does not say what they are worth at the end.
Interrupted, it goes on where it was. Prints the table and writes `<out>.json`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..sam_audio import SAMAudio
from ..sam_audio.config import SAMAudioConfig, SolverConfig
from ..sam_audio.training.train import Recipe, Trainer, tiny_config
from .bootstrap import mean_interval, paired_interval
from .eval_split import PAIRS, EvalSplit
from .metrics import SiSdr
from .run import evaluate
from .systems import Separator

SHIPPED_RECIPE = "recipe of the shipped model"


def _same(config: SAMAudioConfig) -> SAMAudioConfig:
    return config


@dataclass(frozen=True)
class Variant:
    """One change of the shipped recipe: of its loss and optimisation, or of the model's configuration."""

    recipe: dict[str, Any]
    config: Callable[[SAMAudioConfig], SAMAudioConfig] = _same
    size: tuple[int, int] = (128, 6)


def _velocity(config: SAMAudioConfig) -> SAMAudioConfig:
    return replace(
        config, prediction="velocity", mixture_skip=False, solver=SolverConfig(method="midpoint", step_size=1 / 8)
    )


VARIANTS: dict[str, Variant] = {
    SHIPPED_RECIPE: Variant({}),
    "all examples at t = 0": Variant({"t0_share": 1.0}),
    "half of the examples at t = 0": Variant({"t0_share": 0.5}),
    "latent error alone, no gain error": Variant({"gain_weight": 0.0, "latent_weight": 1.0}),
    "gain error alone, no latent error": Variant({"latent_weight": 0.0}),
    "with the alignment loss (cepstra, weight 0.1)": Variant({"alignment_weight": 0.1}),
    "without averaging of the weights": Variant({"ema": 0.0}),
    "half the learning rates": Variant({"muon_lr": Recipe.muon_lr / 2, "adam_lr": Recipe.adam_lr / 2}),
    "without the skip from the mixture": Variant({}, lambda config: replace(config, mixture_skip=False)),
    # The paper's objective: uniform times, eight midpoint steps at inference.
    "velocity, all times, eight midpoint steps": Variant(
        {"t0_share": 0.0, "max_time": 1.0, "gain_weight": 0.0, "latent_weight": 1.0}, _velocity
    ),
    "width 96, 4 layers": Variant({}, size=(96, 4)),
}


def short_recipe(steps: int, **changes: Any) -> Recipe:
    """The shipped recipe, whose warm-up would be most of a short run, changed."""
    return replace(Recipe(), warmup_steps=max(1, min(Recipe().warmup_steps, steps // 4)), **changes)


def trained(name: str, variant: Variant, data_dir: Path, folder: Path, steps: int, device: str) -> dict[str, Any]:
    """Train a variant, or go on; figures of its training. Its weights are in `folder / "best"`."""
    # Heads are multiples of 32 wide, as in the shipped model.
    config = variant.config(tiny_config(*variant.size, heads=variant.size[0] // 32))
    trainer = Trainer(data_dir, folder, config, short_recipe(steps, **variant.recipe), device)
    print(f"{name}: {trainer.step} of {steps} steps done", flush=True)
    trainer.train(steps=steps, validate_every=max(steps // 4, 1))
    return {
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "minutes": round(trainer.seconds / 60, 1),
        # Of the kind that a solver of one step needs; for a velocity it says nothing.
        "validation_db": round(trainer.best, 2),
    }


def measured(weights: Path, items: EvalSplit) -> list[float]:
    """SI-SDR improvement of every mix by the model in the folder `weights`, in dB."""
    system = Separator(SAMAudio.from_pretrained(weights), name="variant")
    rows = [row for of_item in evaluate(items, [system], [SiSdr()]) for row in of_item]
    return [float(row["si_sdri_db"]) for row in rows]


def pair_means(values: list[float]) -> dict[str, float]:
    """Mean of each pair of kinds, of the values of all mixes in the split's order."""
    mixes = len(values) // len(PAIRS)
    return {pair: mean_interval(values[k * mixes : (k + 1) * mixes]).mean for k, pair in enumerate(PAIRS)}


def table(found: dict[str, dict[str, Any]]) -> str:
    lines = [
        f"{'SI-SDR improvement, dB':46}" + "".join(f"{pair:>17}" for pair in PAIRS) + f"{'mean':>7}   against the first"
    ]
    for name, row in found.items():
        cells = "".join(f"{row['si_sdri_db'][pair]:17.2f}" for pair in PAIRS)
        against = row.get("against_first")
        change = f"{against[0]:+.2f} ({against[1]:+.2f} to {against[2]:+.2f})" if against else ""
        lines.append(f"{name:46}{cells}{row['mean_db']:7.2f}   {change}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--steps", type=int, default=300, help="of 32 clips, a variant")
    parser.add_argument("--mixes", type=int, default=25, help="mixes a pair")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--out", type=Path, default=Path("out/ablate-tiny"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    items = EvalSplit(args.data_dir, count=args.mixes)
    found: dict[str, dict[str, Any]] = {}
    scores: dict[str, list[float]] = {}
    for name in args.only:
        folder = args.out / f"{list(VARIANTS).index(name):02d}"
        figures = trained(name, VARIANTS[name], args.data_dir, folder, args.steps, args.device)
        scores[name] = measured(folder / "best", items)
        found[name] = {
            **figures,
            "steps": args.steps,
            "mixes_per_pair": args.mixes,
            "si_sdri_db": pair_means(scores[name]),
            "mean_db": mean_interval(scores[name]).mean,
        }
        if SHIPPED_RECIPE in scores and name != SHIPPED_RECIPE:
            change = paired_interval(scores[name], scores[SHIPPED_RECIPE])
            found[name]["against_first"] = [change.mean, change.low, change.high]
        args.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    print(f"\n{table(found)}\n\nin brackets: 95 % bootstrap interval over mixes; one seed a variant")


if __name__ == "__main__":
    main()
