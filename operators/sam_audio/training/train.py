"""Train the small model: conditional flow matching on band latents, x-prediction with a skip from the mixture.

    python -m operators.sam_audio.training.train DATA_DIR --out out/tiny --minutes 90

Resumes from `--out/last.pt` when it is there; `--out/best/` holds the averaged weights with the best validation score,
in the layout that `SAMAudio.from_pretrained` reads. Runs on the CPU or on one GPU (`--device cuda`).
"""

from __future__ import annotations

import argparse
import json
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..band_codec import BandCodec
from ..config import (
    BandCodecConfig,
    LongFormConfig,
    SAMAudioConfig,
    SolverConfig,
    TextEncoderConfig,
    TransformerConfig,
)
from ..model import SAMAudio
from .engine import DataEngine, TrainingBatch
from .muon import Muon


def tiny_config(dim: int = 128, layers: int = 6, heads: int = 4) -> SAMAudioConfig:
    codec = BandCodecConfig()
    return SAMAudioConfig(
        in_channels=6 * codec.n_bands,
        audio_codec=codec,
        text_encoder=TextEncoderConfig(kind="minilm", name="all-MiniLM-L6-v2", max_length=64, dim=384),
        vision_encoder=None,
        transformer=TransformerConfig(
            dim=dim,
            n_heads=heads,
            n_layers=layers,
            dropout=0.0,
            context_dim=dim,
            out_channels=2 * codec.n_bands,
        ),
        anchor_embedding_dim=64,
        span_predictor=None,
        prediction="x",
        mixture_skip=True,
        # Trained mostly at t = 0, so one evaluation gives the conditional mean, which measures best.
        solver=SolverConfig(method="euler", step_size=1.0),
        # 6 s windows are what it was trained on; a third of overlap.
        long_form=LongFormConfig(window=150, stride=100),
    )


@dataclass(frozen=True)
class Recipe:
    batch: int = 32
    muon_lr: float = 4e-3
    adam_lr: float = 1.5e-3
    warmup_steps: int = 100
    # Share of examples at t = 0, where a one-step solver evaluates; the rest has t uniform in 0..1.
    t0_share: float = 0.9
    latent_weight: float = 0.3
    gain_weight: float = 6.0
    ema: float = 0.999


def initialise(model: SAMAudio) -> None:
    """Start as the identity: no noise, no output beyond the mixture skip, closed residual branches."""
    for name, p in model.named_parameters():
        if name.endswith(("scale_shift_table",)):
            nn.init.zeros_(p)
        elif name in ("embed_anchors.gate",):
            nn.init.constant_(p, 0.5)
    with torch.no_grad():
        for layer in model.transformer.blocks:
            layer.scale_shift_table[2].fill_(0.5)
            layer.scale_shift_table[5].fill_(0.5)
            layer.cross_attention.wo.weight.mul_(0.5)
        model.transformer.t_block.weight.mul_(0.1)
        model.transformer.output.weight.mul_(0.05)
        # At t = 0 the noisy third of the input says nothing; let it start silent.
        stems = model.config.transformer.out_channels
        model.proj.weight[:, : 2 * stems].zero_()


def optimizers(model: SAMAudio, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the transformer's matrices (fewer steps to the same loss at this size), AdamW for the rest."""
    hidden = [p for n, p in model.named_parameters() if n.startswith("transformer.layers.") and p.ndim == 2]
    hidden = [p for p in hidden if min(p.shape) > 6]
    matrices = {id(p) for p in hidden}
    others = [p for p in model.parameters() if id(p) not in matrices]
    return [
        Muon(hidden, lr=recipe.muon_lr),
        torch.optim.AdamW(others, lr=recipe.adam_lr, betas=(0.9, 0.99), weight_decay=0.01),
    ]


def losses(model: SAMAudio, batch: TrainingBatch, texts: tuple[Tensor, Tensor], z: Tensor, t: Tensor, recipe: Recipe):
    """(total, relative error energy [B]): squared error of the clean latents, and energy-weighted error of the gain.

    The gain's error, weighted by the mixture's energy per band and frame, is the error energy that the decoded stem
    will have (bands taken as orthogonal), so it follows the signal-to-distortion ratio.
    """
    size = len(batch.prompt)
    features, mask = texts[0][batch.prompt], texts[1][batch.prompt]
    longest = int(mask.sum(1).max())
    mixture = batch.mixture.transpose(1, 2)
    clean = torch.cat([batch.target, batch.residual], dim=1).transpose(1, 2)  # [B, T, 2C]
    time_ = t[:, None, None]
    noisy = (1 - time_) * z + time_ * clean
    conditions = model.condition(
        torch.cat([mixture, mixture], dim=-1),
        text_features=features[:, :longest],
        text_mask=mask[:, :longest],
        # Ids [null, pad, +]: alignment 2 points to "+".
        anchor_ids=torch.tensor([[0, 3, 1]], device=z.device).expand(size, -1),
        anchor_alignment=2 * batch.anchor,
    )
    x = model.evaluate(noisy, t, conditions) * (1 - time_).clamp_min(1e-6) + noisy
    latent_error = (x - clean).square().mean()
    target, residual = x.transpose(1, 2).chunk(2, dim=1)
    gain = BandCodec.target_gain(target, residual)
    squared = (gain - batch.gain).square()
    power = batch.power / batch.power.sum((1, 2), keepdim=True).clamp_min(1e-12)
    # A compressed weight beside the true one: quiet bands carry what the ear follows, and steadier gradients.
    soft = batch.power.clamp_min(0).pow(0.3)
    soft = soft / soft.sum((1, 2), keepdim=True).clamp_min(1e-12)
    error = (squared * power).sum((1, 2))
    gain_error = error.mean() + 0.5 * (squared * soft).sum((1, 2)).mean()
    return recipe.latent_weight * latent_error + recipe.gain_weight * gain_error, error.detach()


def prefetch(
    engine: DataEngine, size: int, seed: int, device: torch.device, threads: int = 1
) -> Iterator[TrainingBatch]:
    """Batches drawn in background threads (the FFTs and copies release the interpreter lock)."""
    ready: queue.Queue[TrainingBatch] = queue.Queue(4)

    def work(rng: np.random.Generator) -> None:
        while True:
            ready.put(engine.batch(size, rng))

    for child in np.random.SeedSequence(seed).spawn(threads):
        threading.Thread(target=work, args=(np.random.default_rng(child),), daemon=True).start()
    while True:
        batch = ready.get()
        yield TrainingBatch(**{k: v.to(device) for k, v in vars(batch).items()})


def learning_rate(progress: float, step: int, recipe: Recipe) -> float:
    """Factor on the base rate: warm-up, constant, then linear to 2 % over the last 60 % of the budget."""
    warm = min(1.0, (step + 1) / recipe.warmup_steps)
    return warm * min(1.0, max(0.02, (1 - progress) / 0.6))


class Trainer:
    """A run in the folder `out`; continues the one whose `last.pt` lies there. `fast`: compiled, in bfloat16."""

    def __init__(
        self,
        data_dir: Path,
        out: Path,
        config: SAMAudioConfig,
        recipe: Recipe,
        device: str,
        *,
        fast: bool = True,
    ) -> None:
        self.out, self.recipe, self.device = out, recipe, torch.device(device)
        out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        self.model = SAMAudio(config).to(self.device).train()
        initialise(self.model)
        self.model.transformer.set_heads_first(True)
        self.fast = fast
        if fast:
            self.model.transformer.compile()
        self.average = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.optimizers = optimizers(self.model, recipe)
        codec = self.model.audio_codec
        self.engine = DataEngine(data_dir, codec)
        self.texts = self.model.encode_text(self.engine.vocabulary)
        rng = np.random.default_rng(1)
        validation = DataEngine(data_dir, codec, part="validation")
        self.validation = [validation.batch(recipe.batch, rng) for _ in range(6)]
        self.step, self.seconds, self.best = 0, 0.0, float("inf")
        self.log: list[dict] = []
        if (out / "last.pt").exists():
            self._resume()

    def precision(self) -> torch.autocast:
        """bfloat16 matrix products over float32 weights: compiled, 1.3 times the steps on a CPU that has them."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.fast)

    def _resume(self) -> None:
        state = torch.load(self.out / "last.pt", weights_only=True, map_location=self.device)
        self.model.load_state_dict(state["model"])
        self.average = state["average"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds, self.best = state["step"], state["seconds"], state["best"]
        self.log = state["log"]

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "log": self.log,
        }
        torch.save(state, self.out / "last.partial")
        (self.out / "last.partial").replace(self.out / "last.pt")

    @torch.no_grad()
    def validate(self) -> float:
        """Mean over validation clips of 10 log10 of the relative error energy at t = 0, with averaged weights (dB)."""
        trained = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.average)
        errors = []
        generator = torch.Generator().manual_seed(2)
        for batch in self.validation:
            b, c, t = batch.mixture.shape
            z = torch.randn(b, t, 2 * c, generator=generator).to(self.device)
            with self.precision():
                _, error = losses(self.model, batch, self.texts, z, torch.zeros(b, device=self.device), self.recipe)
            errors.append(10 * torch.log10(error.float().clamp_min(1e-4)))
        score = float(torch.cat(errors).mean())
        if score < self.best:
            self.best = score
            # In the checkpoint's head layout, whatever the one used in training.
            self.model.transformer.set_heads_first(False)
            self.model.save_pretrained(self.out / "best")
            self.model.transformer.set_heads_first(True)
        self.model.load_state_dict(trained)
        return score

    def train(self, minutes: float, validate_every: int = 250) -> None:
        recipe, started, before = self.recipe, time.monotonic(), self.seconds
        batches = prefetch(self.engine, recipe.batch, 1000 + self.step, self.device)
        running = 0.0
        with tqdm(unit="clip", unit_scale=recipe.batch, initial=self.step, mininterval=10) as bar:
            while self.seconds < minutes * 60:
                factor = learning_rate(self.seconds / (minutes * 60), self.step, recipe)
                for optimizer, base in zip(self.optimizers, (recipe.muon_lr, recipe.adam_lr), strict=True):
                    for group in optimizer.param_groups:
                        group["lr"] = base * factor
                batch = next(batches)
                b, c, t = batch.mixture.shape
                z = torch.randn(b, t, 2 * c, device=self.device)
                later = torch.rand(b, device=self.device) > recipe.t0_share
                times = torch.rand(b, device=self.device) * 0.95 * later
                with self.precision():
                    loss, error = losses(self.model, batch, self.texts, z, times, recipe)
                loss.backward()
                nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                for optimizer in self.optimizers:
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                decay = min(recipe.ema, (1 + self.step) / (10 + self.step))
                with torch.no_grad():
                    for k, v in self.model.state_dict().items():
                        self.average[k].lerp_(v, 1 - decay)
                self.step += 1
                self.seconds = before + time.monotonic() - started
                db = float(10 * torch.log10(error.float().clamp_min(1e-4)).mean())
                running = db if running == 0 else 0.98 * running + 0.02 * db
                bar.update()
                bar.set_postfix_str(f"loss {float(loss.detach()):.3f} error {running:.2f} dB best {self.best:.2f} dB")
                if self.step % validate_every == 0:
                    score = self.validate()
                    self.log.append(
                        {
                            "step": self.step,
                            "seconds": self.seconds,
                            "train_db": running,
                            "validation_db": score,
                        }
                    )
                    (self.out / "log.json").write_text(json.dumps(self.log, indent=1))
                    self.save()
        self.validate()
        self.save()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out/tiny"))
    parser.add_argument("--minutes", type=float, default=90, help="training time in all, resumed runs included")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batch", type=int, default=Recipe.batch)
    args = parser.parse_args()
    config = tiny_config(args.dim, args.layers)
    trainer = Trainer(args.data_dir, args.out, config, Recipe(batch=args.batch), args.device)
    trainer.train(args.minutes)
    report(trainer, args.out)


def report(trainer: Trainer, out: Path) -> None:
    """Print what was trained, and write it to `<out>.json` and beside the weights for their card."""
    clips = trainer.step * trainer.recipe.batch
    figures = {
        "steps": trainer.step,
        "clips": clips,
        "minutes": round(trainer.seconds / 60, 1),
        "clips_per_second": round(clips / max(trainer.seconds, 1e-9), 1),
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "best_validation_db": round(trainer.best, 2),
        "hours": {kind: round(hours, 2) for kind, hours in trainer.engine.hours.items()},
        "device": str(trainer.device),
        "recipe": vars(trainer.recipe),
    }
    for path in (out.with_suffix(".json"), out / "best" / "training.json"):
        path.write_text(json.dumps(figures, indent=1) + "\n")
    for name, value in figures.items():
        print(f"{name:20} {value}")
    print(f"weights in {out / 'best'}; ship them by copying config.json and model.safetensors to sam_audio/weights")


if __name__ == "__main__":
    main()
