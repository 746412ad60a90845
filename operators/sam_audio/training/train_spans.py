"""Train the small span predictor: where in a mixture a description is heard, 25 times a second.

    python -m operators.sam_audio.training.train_spans DATA_DIR --out out/train-spans --steps 4000

Resumes from `--out/last.pt`; `--out/best/` is what `PEAFrame.from_pretrained` reads: averaged weights in float16, the
logits shifted so that the usual threshold (0.3) is the best one on the validation mixtures.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ..band_codec import BandCodec
from ..config import BandCodecConfig
from ..pe_av import PEAVConfig
from ..spans import THRESHOLD, PEAFrame, PEAFrameConfig
from ..state_files import write_file
from .averaging import Average
from .band_bank import BandBank
from .muon import Muon
from .sound_concepts import Concept, concepts
from .span_data import SpanBatch, SpanEngine

TEXT_MODEL = {"kind": "minilm", "name": "all-MiniLM-L6-v2", "max_length": 64, "dim": 384}


def transformer_config(width: int, layers: int, heads: int) -> PEAVConfig:
    return PEAVConfig(
        hidden_size=width,
        intermediate_size=64 * max(1, round(width * 2.5 / 64)),
        num_hidden_layers=layers,
        num_attention_heads=heads,
    )


def spans_config(width: int = 128, layers: int = 3, heads: int = 4) -> PEAFrameConfig:
    transformer = transformer_config(width, layers, heads)
    return PEAFrameConfig(transformer, TEXT_MODEL, BandCodecConfig().n_bands, output_dim=width, nth_text_layer=None)


@dataclass(frozen=True)
class Recipe:
    batch: int = 8
    muon_lr: float = 4e-3
    adam_lr: float = 2e-3
    warmup_steps: int = 50
    # Share of the steps after which the rate falls, linearly to 2 %.
    constant: float = 0.4
    # Frames of a step's mixtures, drawn from these: 4 to 8 s.
    frames: tuple[int, ...] = (100, 150, 200)
    # Weight of the concepts that a mixture does not hold, against 1 for those that it does.
    absent_weight: float = 1.5
    # Share of draws that take the plain name: "speech" lies next to "no speech" in the text encoder's space, and
    # drawn as seldom as its other wordings it was found in music.
    plain_share: float = 0.3
    ema: float = 0.995


def loss(logits: Tensor, batch: SpanBatch, absent_weight: float) -> Tensor:
    """Binary cross-entropy of logits [B, T, K]; present and absent concepts count by these weights, however many."""
    errors = F.binary_cross_entropy_with_logits(logits, batch.active, reduction="none") * batch.known
    present = batch.active.amax(1, keepdim=True).expand_as(errors) * batch.known
    absent = batch.known * (1 - present)
    return (errors * present).sum() / present.sum().clamp_min(1) + absent_weight * (
        (errors * absent).sum() / absent.sum().clamp_min(1)
    )


def frame_logits(model: PEAFrame, latents: Tensor, text: Tensor) -> Tensor:
    """Latents [B, T, C] and K sentence vectors [K, 384] -> [B, T, K]: every description on every mixture, with grad."""
    audio = model.audio_model
    frames = model.audio_head(audio.audio_transformer(audio.data_proj(latents)).frames)
    scores = frames.float() @ model.text_head(text).float().T
    return scores * model.logit_scale + model.logit_bias


def initialise(model: PEAFrame) -> None:
    """Open the logits, which start at zero in a model that a checkpoint is to fill; most sounds are absent."""
    with torch.no_grad():
        model.logit_scale.fill_(0.3)
        model.logit_bias.fill_(-2.0)
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_(0.3)


def optimizers(model: PEAFrame, recipe: Recipe) -> list[torch.optim.Optimizer]:
    hidden = [p for n, p in model.named_parameters() if ".layers." in n and p.ndim == 2]
    matrices = {id(p) for p in hidden}
    others = [p for p in model.parameters() if id(p) not in matrices]
    return [
        Muon(hidden, lr=recipe.muon_lr),
        torch.optim.AdamW(others, lr=recipe.adam_lr, betas=(0.9, 0.99), weight_decay=0.01),
    ]


def drawn(count: int, plain_share: float, rng: np.random.Generator) -> int:
    """Index of one of a concept's wordings; the first is its plain name."""
    return 0 if rng.random() < plain_share else int(rng.integers(count))


class SpanTrainer:
    """A run in the folder `out`; continues the one whose `last.pt` lies there. CPU or one GPU (`device`)."""

    def __init__(self, data_dir: Path, out: Path, config: PEAFrameConfig, recipe: Recipe, device: str = "cpu") -> None:
        self.out, self.recipe, self.device = out, recipe, torch.device(device)
        out.mkdir(parents=True, exist_ok=True)
        codec = BandCodec(BandCodecConfig())
        bank = BandBank(data_dir, codec)
        self.concepts = concepts(sorted({p.group for p in bank.pieces if p.kind == "sfx"}))
        self.engine = SpanEngine(bank, codec, self.concepts)
        self.validation = SpanEngine(BandBank(data_dir, codec, part="validation"), codec, self.concepts)
        torch.manual_seed(0)
        self.model = PEAFrame(config).to(self.device).train()
        initialise(self.model)
        self.average = Average(self.model.named_parameters(), recipe.ema)
        self.optimizers = optimizers(self.model, recipe)
        vectors = [self.model.descriptions(list(c.wordings)) for c in self.concepts]
        self.text = [v.to(self.device) for v in vectors]
        self.step, self.seconds, self.log = 0, 0.0, list[dict[str, float]]()
        if (out / "last.pt").exists():
            state = torch.load(out / "last.pt", weights_only=True, map_location=self.device)
            self.model.load_state_dict(state["model"])
            self.average.values, self.step, self.seconds = state["average"], state["step"], state["seconds"]
            self.log = state["log"]
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)

    def train(self, steps: int, *, save_every: int = 50, stop: int | None = None) -> None:
        """Go on to `steps` in all, or to `stop`. Batches depend on the step alone, so a resumed run draws the same."""
        recipe, running, end = self.recipe, 0.0, steps if stop is None else min(stop, steps)
        for step in tqdm(range(self.step, end), initial=self.step, total=end, unit="step", mininterval=10):
            started = time.monotonic()
            rng = np.random.default_rng([1, step])
            batch = self.engine.batch(recipe.batch, int(rng.choice(recipe.frames)), rng)
            batch = SpanBatch(*(t.to(self.device) for t in vars(batch).values()))
            text = torch.stack([v[drawn(len(v), recipe.plain_share, rng)] for v in self.text])
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                logits = frame_logits(self.model, batch.latents, text)
            value = loss(logits.float(), batch, recipe.absent_weight)
            value.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            factor = min(1.0, (step + 1) / recipe.warmup_steps)
            factor *= min(1.0, max(0.02, (1 - step / steps) / (1 - recipe.constant)))
            for optimizer, base in zip(self.optimizers, (recipe.muon_lr, recipe.adam_lr), strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = base * factor
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            self.average.update(step)
            running = float(value.detach()) if not running else 0.97 * running + 0.03 * float(value.detach())
            self.step, self.seconds = step + 1, self.seconds + time.monotonic() - started
            if self.step % save_every == 0 or self.step == end:
                self.log.append({"step": self.step, "seconds": round(self.seconds), "loss": round(running, 4)})
                tqdm.write(json.dumps(self.log[-1]))
                self._save()

    def _save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "average": self.average.values,
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
            "log": self.log,
        }
        torch.save(state, self.out / "last.partial")
        (self.out / "last.partial").replace(self.out / "last.pt")

    def finish(self, mixtures: int = 96) -> dict[str, Any]:
        """Calibrate on validation mixtures, write `best/`, and return what the model card says of the training."""
        averaged = PEAFrame(self.model.config).to(self.device).eval()
        averaged.load_state_dict(self.average.values)
        figures = calibrate(averaged, self.validation, self.concepts, mixtures)
        save_pretrained(averaged, self.out / "best")
        return figures | {
            "steps": self.step,
            "mixtures": self.step * self.recipe.batch,
            "minutes": round(self.seconds / 60, 1),
            "parameters": sum(p.numel() for p in averaged.parameters()),
            "concepts": len(self.concepts),
            "recipe": asdict(self.recipe),
        }


@torch.no_grad()
def calibrate(model: PEAFrame, engine: SpanEngine, known: list[Concept], mixtures: int) -> dict[str, float]:
    """Shift the logits' bias so that THRESHOLD gives the best frame F1 on mixtures of `engine`.

    Descriptions: for every mixture all concepts that it holds, and as many that it does not.
    """
    device = model.logit_bias.device
    rng = np.random.default_rng(5)
    scores, truth = [], []
    text = model.descriptions([c.wordings[0] for c in known]).to(device)
    for _ in range(max(mixtures // 16, 1)):
        batch = engine.batch(16, 150, rng)
        logits = frame_logits(model, batch.latents.to(device), text).cpu()
        certain = batch.known.bool().all(1)
        present = batch.active.bool().any(1) & certain
        for row in range(len(logits)):
            absent = torch.nonzero(certain[row] & ~present[row]).flatten().numpy()
            here = torch.nonzero(present[row]).flatten().numpy()
            chosen = [*here, *rng.permutation(absent)[: max(len(here), 1)]]
            scores.append(logits[row][:, chosen].flatten())
            truth.append(batch.active[row][:, chosen].flatten().bool())
    score, active = torch.cat(scores), torch.cat(truth)
    candidates = torch.quantile(
        score[torch.from_numpy(rng.integers(len(score), size=20_000))], torch.linspace(0, 1, 101)
    )
    f1 = [frame_f1(score > cut, active) for cut in candidates]
    best = int(np.argmax(f1))
    wanted = float(np.log(THRESHOLD / (1 - THRESHOLD)))
    shift = wanted - float(candidates[best])
    model.logit_bias.add_(shift)
    return {"validation_frame_f1": round(f1[best], 4), "logit_shift": round(shift, 2)}


def frame_f1(found: Tensor, truth: Tensor) -> float:
    """F1 of boolean frames, all of one table; 1 where nothing is to be found and nothing was."""
    hits = int((found & truth).sum())
    total = int(found.sum()) + int(truth.sum())
    return 2 * hits / total if total else 1.0


def save_pretrained(model: PEAFrame, folder: Path) -> None:
    """Write `config.json` and `model.safetensors` (float16), which `PEAFrame.from_pretrained` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config
    values = {
        "audio_model": {
            "audio_transformer": asdict(config.audio_transformer),
            "dac_vae_encoder": {"codebook_dim": config.codec_channels},
        },
        "text_model": dict(config.text_model),
        "output_dim": config.output_dim,
        "nth_text_layer": config.nth_text_layer,
    }
    (folder / "config.json").write_text(json.dumps(values, indent=1) + "\n")
    write_file({k: v.half() for k, v in model.state_dict().items()}, folder / "model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out/train-spans"))
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    trainer = SpanTrainer(args.data_dir, args.out, spans_config(args.width, args.layers), Recipe(), args.device)
    trainer.train(args.steps)
    figures = trainer.finish()
    for path in (args.out.with_suffix(".json"), args.out / "best" / "training.json"):
        path.write_text(json.dumps(figures, indent=1) + "\n")
    for name, value in figures.items():
        print(f"{name:20} {value}")
    print(f"weights in {args.out / 'best'}; to ship them, copy config.json and model.safetensors to weights/spans")
    print('and name "tiny" as span_predictor in weights/config.json')


if __name__ == "__main__":
    main()
