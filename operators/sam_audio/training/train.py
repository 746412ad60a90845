"""Train the small model: conditional flow matching on band latents, x-prediction with a skip from the mixture.

    python -m operators.sam_audio.training.train DATA_DIR --out out/tiny --minutes 90
    python -m operators.sam_audio.training.train DATA_DIR --out out/longer --steps 3000 --start-from tiny --seed 7

Resumes from `--out/last.pt` when it is there; `--out/best/` holds the averaged weights with the best validation score,
in the layout that `SAMAudio.from_pretrained` reads. `--start-from` begins with the weights of such a folder, or of the
shipped model, and with a new schedule; another seed then draws other mixtures than those it has seen. Runs on the CPU
or on one GPU (`--device cuda`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..config import (
    BandCodecConfig,
    LongFormConfig,
    SAMAudioConfig,
    SolverConfig,
    TextEncoderConfig,
    TransformerConfig,
)
from ..model import SAMAudio
from .alignment import AlignmentHead, CepstralEmbedding
from .engine import DataEngine, TrainingBatch
from .learner import Learner, learning_rate, muon_and_adamw
from .objective import LatentBatch, Objective, ObjectiveConfig, example_generator

VALIDATION_SEED = 1  # whatever the run's: validation errors of different runs are of the same mixtures


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
        span_predictor="tiny",
        prediction="x",
        mixture_skip=True,
        # Trained mostly at t = 0, so one evaluation gives the conditional mean, which measures best.
        solver=SolverConfig(method="euler", step_size=1.0),
        # 6 s windows are what it was trained on; a third of overlap.
        long_form=LongFormConfig(window=150, stride=100),
    )


@dataclass(frozen=True)
class Recipe(ObjectiveConfig):
    """The objective's weights for the small model, and how it is optimised."""

    max_time: float = 0.95
    t0_share: float = 0.9
    latent_weight: float = 0.3
    gain_weight: float = 6.0
    batch: int = 32
    muon_lr: float = 4e-3
    adam_lr: float = 1.5e-3
    warmup_steps: int = 100
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


def latent_batch(batch: TrainingBatch, texts: tuple[Tensor, Tensor], first: int) -> LatentBatch:
    """A batch of the engine as the objective takes it: texts looked up, examples numbered from `first`."""
    size = len(batch.prompt)
    features, mask = texts[0][batch.prompt], texts[1][batch.prompt]
    longest = int(mask.sum(1).max())
    return LatentBatch(
        batch.mixture,
        batch.target,
        batch.residual,
        features[:, :longest],
        mask[:, :longest],
        # Ids [null, pad, +]: alignment 2 points to "+".
        torch.tensor([[0, 3, 1]], device=batch.mixture.device).expand(size, -1),
        2 * batch.anchor,
        torch.arange(first, first + size),
        batch.gain,
        batch.power,
    )


def prefetch(
    engine: DataEngine, size: int, seed: int, device: torch.device, first: int = 0, threads: int = 1
) -> Generator[TrainingBatch, None, None]:
    """Batches `first`, `first + 1`, ... in this order, drawn ahead in threads (FFTs release the interpreter lock).

    A batch depends on the seed and on its number only: a run that goes on sees what it would have seen.
    """
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[TrainingBatch]] = deque()
        for number in itertools.count(first):
            waiting.append(pool.submit(engine.batch, size, example_generator(seed, number)))
            if len(waiting) > 3 * threads:
                batch = waiting.popleft().result()
                yield TrainingBatch(**{k: v.to(device) for k, v in vars(batch).items()})


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 are quicker than those of float32, 1.3 times on a CPU that has them.

    One that has not emulates them and takes several times as long.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


class Trainer:
    """A run in the folder `out`; continues the one whose `last.pt` lies there.

    fast: compiled, and in bfloat16 where the machine multiplies it. keep: the averaged weights of every validation stay
    in `kept(step)`. start: a model of this configuration to begin with.
    """

    def __init__(
        self,
        data_dir: Path,
        out: Path,
        config: SAMAudioConfig,
        recipe: Recipe,
        device: str,
        *,
        fast: bool = True,
        seed: int = 0,
        keep: bool = False,
        start: SAMAudio | None = None,
    ) -> None:
        self.keep = keep
        self.out, self.recipe, self.device, self.seed = out, recipe, torch.device(device), seed
        out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(seed)
        self.model = SAMAudio(config).to(self.device).train()
        if start is None:
            initialise(self.model)
        else:
            self.model.load_state_dict(start.state_dict())
        self.model.transformer.set_heads_first(True)
        if fast:
            self.model.transformer.compile()
        codec = self.model.audio_codec
        self.engine = DataEngine(data_dir, codec)
        self.texts = self.model.encode_text(self.engine.vocabulary)
        validation = DataEngine(data_dir, codec, part="validation")
        self.validation = list(itertools.islice(prefetch(validation, recipe.batch, VALIDATION_SEED, self.device), 6))
        self.embedding: CepstralEmbedding | None = None
        head = None
        if recipe.alignment_weight:
            assert isinstance(config.audio_codec, BandCodecConfig)
            self.embedding = CepstralEmbedding(config.audio_codec).to(self.device)
            self.embedding.fit(torch.cat([batch.target for batch in self.validation]))
            head = AlignmentHead(config.transformer.dim, self.embedding.dim).to(self.device)
        objective = Objective(self.model, recipe, head)
        self.learner = Learner(
            objective,
            muon_and_adamw(objective, muon_lr=recipe.muon_lr, adam_lr=recipe.adam_lr),
            ema=recipe.ema,
            seed=seed,
            precision=torch.bfloat16 if fast and multiplies_bfloat16(self.device) else None,
        )
        self.seconds, self.best = 0.0, float("inf")
        self.log: list[dict] = []
        if (out / "last.pt").exists():
            self._resume()

    @property
    def step(self) -> int:
        return self.learner.step_count

    def _resume(self) -> None:
        state = torch.load(self.out / "last.pt", weights_only=True, map_location=self.device)
        self.learner.load_state_dict(state, str(self.out / "last.pt"))
        self.seconds, self.best, self.log = state["seconds"], state["best"], state["log"]

    def save(self) -> None:
        state = {**self.learner.state_dict(), "seconds": self.seconds, "best": self.best, "log": self.log}
        torch.save(state, self.out / "last.partial")
        (self.out / "last.partial").replace(self.out / "last.pt")

    @torch.no_grad()
    def validate(self) -> float:
        """Mean over validation clips of 10 log10 of the relative error energy at t = 0, with averaged weights (dB)."""
        errors = []
        generator = torch.Generator().manual_seed(2)
        self.model.eval()
        with self.learner.average.applied():
            for batch in self.validation:
                b, c, t = batch.mixture.shape
                noise = torch.randn(b, t, 2 * c, generator=generator).to(self.device)
                examples = self.examples(batch, 0)
                with self.learner.autocast():
                    error = self.learner.objective(examples, noise, torch.zeros(b, device=self.device))["error"]
                errors.append(10 * torch.log10(error.float().clamp_min(1e-4)))
            score = float(torch.cat(errors).mean())
            if self.keep:
                self._ship(self.kept(self.step))
            if score < self.best:
                self.best = score
                self._ship(self.out / "best")
        self.model.train()
        return score

    def kept(self, step: int) -> Path:
        return self.out / f"step-{step:06d}"

    def _ship(self, folder: Path) -> None:
        # In the checkpoint's head layout, whatever the one used in training.
        self.model.transformer.set_heads_first(False)
        self.model.save_pretrained(folder)
        self.model.transformer.set_heads_first(True)

    def examples(self, batch: TrainingBatch, first: int) -> LatentBatch:
        examples = latent_batch(batch, self.texts, first)
        if self.embedding is not None:
            examples.event = self.embedding(batch.target)
        return examples

    def train(self, minutes: float = float("inf"), steps: int | None = None, validate_every: int = 250) -> None:
        """Until so many minutes of training or so many steps are behind it, those of resumed runs included.

        With `steps` the schedule follows them, and a run that was interrupted ends as one that was not.
        """
        recipe, started, before = self.recipe, time.monotonic(), self.seconds
        batches = prefetch(self.engine, recipe.batch, self.seed, self.device, self.step)
        running = 0.0
        with closing(batches), tqdm(unit="clip", unit_scale=recipe.batch, initial=self.step, mininterval=10) as bar:
            while self.seconds < minutes * 60 and (steps is None or self.step < steps):
                progress = self.seconds / (minutes * 60) if steps is None else self.step / steps
                examples = self.examples(next(batches), self.step * recipe.batch)
                found = self.learner.step([examples], learning_rate(progress, self.step, recipe.warmup_steps))
                self.seconds = before + time.monotonic() - started
                db = float(10 * torch.log10(found["error"].float().clamp_min(1e-4)).mean())
                running = db if running == 0 else 0.98 * running + 0.02 * db
                bar.update()
                loss = float(found["loss"])
                bar.set_postfix_str(f"loss {loss:.3f} error {running:.2f} dB best {self.best:.2f} dB")
                if self.step % validate_every == 0:
                    row = {"step": self.step, "seconds": self.seconds, "train_db": running}
                    terms = {k: float(v) for k, v in found.items() if k in ("latent", "gain", "alignment")}
                    self.log.append({**row, "validation_db": self.validate(), **terms})
                    (self.out / "log.json").write_text(json.dumps(self.log, indent=1))
                    self.save()
        self.validate()
        self.save()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out/tiny"))
    parser.add_argument("--minutes", type=float, default=90, help="training time in all, resumed runs included")
    parser.add_argument("--steps", type=int, help="train for so many steps in all instead: reproducible")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--start-from", metavar="MODEL", help="begin with its weights; its size counts (default: anew)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batch", type=int, default=Recipe.batch)
    parser.add_argument("--alignment", type=float, default=0.0, help="weight of the alignment loss (cepstra)")
    args = parser.parse_args()
    start = SAMAudio.from_pretrained(args.start_from) if args.start_from else None
    config = start.config if start else tiny_config(args.dim, args.layers)
    recipe = Recipe(batch=args.batch, alignment_weight=args.alignment)
    trainer = Trainer(args.data_dir, args.out, config, recipe, args.device, seed=args.seed, start=start)
    trainer.train(float("inf") if args.steps else args.minutes, args.steps)
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
