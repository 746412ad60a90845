"""Train the small judge on what judge_data.py made: mean squared error of four scores whose truth is known.

    python -m operators.sam_audio.training.train_judge DATA_DIR SHARDS --out out/train-judge --steps 3000

Half of every step's mixtures are the shards' own, with real systems' outputs; half are mixed anew (judge_examples.py).
It starts from the ears of a span predictor, which knows what descriptions sound like, as the released judge starts from
PE-AV.
Resumes from `--out/last.pt`; `--out/best/` is what `SAMAudioJudgeModel.from_pretrained` reads: averaged weights with
the best correlation on the validation shards, in float16.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ...judge_scores import SCORES
from ..band_codec import BandCodec
from ..checkpoint import CONFIG_NAME
from ..config import BandCodecConfig
from ..judge import SAMAudioJudgeModel
from ..judge_config import SAMAudioJudgeConfig
from ..spans import PEAFrame
from ..state_files import WEIGHT_NAMES, write_file
from .averaging import Average
from .band_bank import BandBank
from .band_sources import BandSources
from .judge_examples import ASKED, Examples, Remixed, Separated, joined, varied
from .muon import Muon
from .train_spans import TEXT_MODEL, transformer_config


def judge_config(width: int = 128, layers: int = 3, finetune_layers: int = 2, heads: int = 4) -> SAMAudioJudgeConfig:
    return SAMAudioJudgeConfig(
        BandCodecConfig(),
        transformer_config(width, layers, heads),
        TEXT_MODEL,
        transformer_config(width, finetune_layers, heads),
        nth_text_layer=None,
        bottleneck_dim=width,
        clip_seconds=6.0,
    )


@dataclass(frozen=True)
class Recipe:
    # Mixtures a step of either sort; outputs of each.
    mixtures: int = 4
    outputs: int = 3
    # Five times as much unlearns what the ears knew: correlations of 0.2 instead of 0.5 after 200 steps.
    muon_lr: float = 1e-3
    adam_lr: float = 6e-4
    warmup_steps: int = 30
    # Share of the steps after which the rate falls, linearly to 2 %.
    constant: float = 0.4
    ema: float = 0.999


def predict(model: SAMAudioJudgeModel, examples: Examples) -> Tensor:
    """Scores [O * ASKED, 4] of examples, with gradients. Every mixture and output is heard once."""
    heard = model.hear(torch.cat([examples.mixture, examples.outputs]))
    given, separated = heard[: len(examples.mixture)], heard[len(examples.mixture) :]
    given, separated = (x.repeat_interleave(ASKED, dim=0) for x in (given[examples.source], separated))
    return model.rate(given, separated, model.descriptions(examples.phrases), None)


def pearson(x: Tensor, y: Tensor) -> Tensor:
    """Correlation of the columns of [R, 4] with those of another -> [4]."""
    x, y = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    return ((x * y).sum(0) / (x.square().sum(0) * y.square().sum(0)).sqrt().clamp_min(1e-12)).float()


def initialise(model: SAMAudioJudgeModel) -> None:
    """Start from the difference of the two sounds: what was taken away says more than either."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_(0.3)
        separated, given = model.cat_audio_proj.weight.chunk(2, dim=1)  # views [b, H]
        half = len(separated) // 2
        given[:half] = -separated[:half]
        given[half:] = separated[half:]


def take_ears(model: SAMAudioJudgeModel, ears: PEAFrame) -> None:
    """Copy what hears, and what reads, from a span predictor of the same width and depth. Raises ValueError."""
    audio, head = ears.audio_model, ears.text_head
    if audio.audio_transformer.config != model.transformer.config:
        raise ValueError(
            f"the span predictor's transformer is {audio.audio_transformer.config}, the judge's is "
            f"{model.transformer.config}"
        )
    model.data_proj.load_state_dict(audio.data_proj.state_dict())
    model.transformer.load_state_dict(audio.audio_transformer.state_dict())
    with torch.no_grad():
        # Sentences are unit vectors of mean nearly zero: the head's layer norm is a factor a column.
        width = head.proj.in_features
        model.text_proj1.weight.copy_(head.proj.weight * head.layer_norm.weight * width**0.5)


def optimizers(model: SAMAudioJudgeModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the transformers' matrices, AdamW for the rest."""
    hidden = [p for n, p in model.named_parameters() if ".layers." in n and p.ndim == 2]
    matrices = {id(p) for p in hidden}
    others = [p for p in model.parameters() if id(p) not in matrices and p.requires_grad]
    return [
        Muon(hidden, lr=recipe.muon_lr),
        torch.optim.AdamW(others, lr=recipe.adam_lr, betas=(0.9, 0.99), weight_decay=0.01),
    ]


class JudgeTrainer:
    """A run in the folder `out`; continues the one whose `last.pt` lies there."""

    def __init__(
        self,
        shards: Path,
        sources: BandSources,
        out: Path,
        config: SAMAudioJudgeConfig,
        recipe: Recipe,
        ears: PEAFrame | None = None,
    ) -> None:
        self.out, self.recipe = out, recipe
        out.mkdir(parents=True, exist_ok=True)
        self.separated = Separated(shards / "train")
        self.remixed = Remixed(sources, self.separated.mixture.shape[-1])
        rng = np.random.default_rng(1)
        validation = Separated(shards / "validation")
        self.validation = [validation.draw(8, 4, rng) for _ in range(6)]
        torch.manual_seed(0)
        self.model = SAMAudioJudgeModel(config).train()
        scores = self.separated.scores.flatten(0, 2)
        self.model.mean.data, self.model.std.data = scores.mean(0), scores.std(0)
        initialise(self.model)
        if ears is not None:
            take_ears(self.model, ears)
        trained = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
        self.average = Average(trained, recipe.ema)
        self.optimizers = optimizers(self.model, recipe)
        self.rng = np.random.default_rng(2)
        self.step, self.seconds, self.best = 0, 0.0, -1.0
        self.log: list[dict[str, Any]] = []
        if (out / "last.pt").exists():
            self._resume()

    def _resume(self) -> None:
        state = torch.load(self.out / "last.pt", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.rng.bit_generator.state = json.loads(state["rng"])
        self.step, self.seconds, self.best, self.log = (state[k] for k in ("step", "seconds", "best", "log"))

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "rng": json.dumps(self.rng.bit_generator.state),
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "log": self.log,
        }
        torch.save(state, self.out / "last.partial")
        (self.out / "last.partial").replace(self.out / "last.pt")

    def examples(self) -> Examples:
        recipe = self.recipe
        real = self.separated.draw(recipe.mixtures, recipe.outputs, self.rng)
        return varied(joined(real, self.remixed.draw(recipe.mixtures, recipe.outputs, self.rng)), self.rng)

    @torch.no_grad()
    def validate(self) -> Tensor:
        """Correlations [4] with the truth on the validation shards, with averaged weights; keeps the best ones."""
        with self.average.applied():
            predicted = torch.cat([predict(self.model, examples) for examples in self.validation])
            found = pearson(predicted, torch.cat([examples.scores for examples in self.validation]))
            if float(found.mean()) > self.best:
                self.best = float(found.mean())
                self.ship(self.out / "best")
        return found

    def ship(self, folder: Path) -> None:
        """Configuration and weights in float16, of which two decimals of a score do not depend."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_NAME).write_text(json.dumps(self.model.config.to_dict(), indent=1) + "\n")
        state = {name: t if name in ("mean", "std") else t.half() for name, t in self.model.state_dict().items()}
        write_file(state, folder / WEIGHT_NAMES[0])

    def train_step(self, progress: float) -> float:
        """One update; the mean squared error in units of the scores' deviation."""
        recipe = self.recipe
        factor = min(1.0, (self.step + 1) / recipe.warmup_steps)
        factor *= min(1.0, max(0.02, (1 - progress) / (1 - recipe.constant)))
        for optimizer, base in zip(self.optimizers, (recipe.muon_lr, recipe.adam_lr), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = base * factor
        examples = self.examples()
        loss = ((predict(self.model, examples) - examples.scores) / self.model.std).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.average.update(self.step)
        self.step += 1
        return float(loss.detach())

    def train(self, steps: int, validate_every: int = 50) -> None:
        """Up to `steps` steps in all, those of earlier runs included."""
        started, before, running = time.monotonic(), self.seconds, 0.0
        with tqdm(unit="step", total=steps, initial=self.step, mininterval=10) as bar:
            while self.step < steps:
                loss = self.train_step(self.step / steps)
                self.seconds = before + time.monotonic() - started
                running = loss if running == 0 else 0.95 * running + 0.05 * loss
                bar.update()
                bar.set_postfix_str(f"error {running:.3f}, best correlation {self.best:.3f}")
                if self.step % validate_every == 0:
                    self._note(running)
        self._note(running)

    def _note(self, loss: float) -> None:
        found = dict(zip(SCORES, (round(float(r), 3) for r in self.validate()), strict=True))
        self.log.append({"step": self.step, "seconds": round(self.seconds), "error": round(loss, 4), **found})
        (self.out / "log.json").write_text(json.dumps(self.log, indent=1) + "\n")
        self.save()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("shards", type=Path, help="what judge_data wrote: folders train and validation")
    parser.add_argument("--out", type=Path, default=Path("out/train-judge"))
    parser.add_argument("--steps", type=int, default=3000, help="in all, those of resumed runs included")
    parser.add_argument("--ears", default="tiny", help="span predictor to start from, or none")
    args = parser.parse_args()
    codec = BandCodec(BandCodecConfig())
    ears = None if args.ears == "none" else PEAFrame.from_pretrained(args.ears)
    sources = BandSources(BandBank(args.data_dir, codec), codec)
    trainer = JudgeTrainer(args.shards, sources, args.out, judge_config(), Recipe(), ears)
    trainer.train(args.steps)
    figures = {
        "steps": trainer.step,
        "minutes": round(trainer.seconds / 60, 1),
        "mixtures": len(trainer.separated.mixture),
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "best_validation_correlation": round(trainer.best, 3),
        "recipe": vars(trainer.recipe),
    }
    args.out.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
    for name, value in figures.items():
        print(f"{name:28} {value}")
    print(f"weights in {args.out / 'best'}; ship them by copying both files to sam_audio/weights/judge")


if __name__ == "__main__":
    main()
