"""What every Ray Train worker does: examples in, steps, measurements and checkpoints out.

Every worker computes its part of a step's examples; gradients are averaged between them (DistributedDataParallel).
Worker 0 writes. A worker that is lost ends its group; Ray Train starts another, which goes on from the newest
checkpoint, as does a driver that is started again: both end with the weights of a run that nothing happened to.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import ray
import torch
from ray import train
from ray.train import torch as train_torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from operators.sam_audio.model import SAMAudio
from operators.sam_audio.training.alignment import CepstralEmbedding
from operators.sam_audio.training.batches import WaveBatch, encode_batch
from operators.sam_audio.training.learner import Learner, learning_rate
from operators.sam_audio.training.objective import LatentBatch
from pipeline.training_config import TrainingConfig, checked
from pipeline.training_data import ExampleSource, Pictures, Share, batches, first_examples
from pipeline.training_manifest import collection, read_training_manifest
from pipeline.training_model import (
    build_model,
    build_objective,
    build_optimizers,
    parameter_counts,
    training_mode,
    write_model,
)
from pipeline.training_progress import Speaker
from pipeline.training_store import TrainingStore
from pipeline.training_validation import measure

# Cepstral statistics are learned from so many examples.
FIT_EXAMPLES = 128
TERMS = ("loss", "latent", "gain", "alignment", "gradient_norm")


def train_worker(values: dict[str, Any]) -> None:
    """Train until `steps` are done. values: the settings as plain values, `threads`, and the `speaker`."""
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(max(1, int(values.pop("threads", 0)) or torch.get_num_threads()))
    speaker = values.pop("speaker")
    config = checked(values)
    context = train.get_context()
    Worker(config, speaker, context.get_world_rank(), context.get_world_size()).run()


class Worker:
    def __init__(self, config: TrainingConfig, speaker: Speaker, rank: int, world: int) -> None:
        self.config, self.speaker, self.rank, self.world = config, speaker, rank, world
        self.store = TrainingStore(config)
        self.device = train_torch.get_device()
        model = build_model(config, self.device)
        self.objective, self.embedding = build_objective(config, model)
        forward: torch.nn.Module = self.objective
        if world > 1:
            # Every trained weight takes part in every pass, so none is looked for; buffers do not change.
            options = {"broadcast_buffers": False, "gradient_as_bucket_view": True}
            forward = train_torch.prepare_model(self.objective, parallel_strategy_kwargs=options)
        self.learner = Learner(
            self.objective,
            build_optimizers(config, self.objective),
            ema=config.ema,
            seed=config.seed,
            precision=torch.bfloat16 if config.precision == "bfloat16" else None,
            clip_norm=config.clip_norm,
            forward=forward,
            **({"unsynchronised": forward.no_sync} if isinstance(forward, DistributedDataParallel) else {}),
        )
        size = config.examples_per_step // world
        self.share = Share(rank * size, size, config.examples_per_step)
        rows = read_training_manifest(config.manifest)
        self.source = self._source(model, ray.put(collection(rows, "train")), config.seed)
        self.log: list[dict[str, Any]] = []
        self.seconds = 0.0
        state = self.store.checkpoint(self.device)
        if state is not None:
            self.learner.load_state_dict(state, self.store.url("checkpoints"))
            self.log, self.seconds = state["log"], state["seconds"]
        elif isinstance(self.embedding, CepstralEmbedding):
            self._fit(self.embedding)
        self.held_out = self._held_out(model, rows)

    def run(self) -> None:
        config, learner = self.config, self.learner
        started, before = time.monotonic(), self.seconds
        examples = self._examples(learner.step_count)
        micro = self.share.size // config.micro_batch
        with tempfile.TemporaryDirectory(prefix="curves-") as curves:
            writer = _writer(curves) if self.rank == 0 else None
            if self.rank == 0 and not self.log:
                self._say(f"{parameter_counts(learner.model)[0]:,} trained weights, {self.world} workers")
            if not self.log:
                self._measure(writer, {})
            while learner.step_count < config.steps:
                rate = learning_rate(learner.step_count / config.steps, learner.step_count, config.warmup_steps)
                found = learner.step(islice(examples, micro), rate, micro)
                self.seconds = before + time.monotonic() - started
                step = learner.step_count
                if self.rank == 0:
                    self.speaker.at(step)
                if step % config.validate_every == 0 or step == config.steps:
                    terms = {name: self._mean(float(found[name])) for name in TERMS if name in found}
                    self._measure(writer, {**terms, "learning_rate": config.rate * rate})
                if self.rank == 0 and (step % config.checkpoint_every == 0 or step == config.steps):
                    self._save(Path(curves))
        if self.rank == 0:
            self._finish()

    def _examples(self, step: int) -> Iterator[LatentBatch]:
        found = batches(self.source, self.share, step, self.config.steps, self.config.micro_batch)
        return (encode_batch(self.learner.model, batch, self.embedding).to(self.device) for batch in found)

    def _measure(self, writer: Any, terms: dict[str, float]) -> None:
        """Held-out figures with the averaged weights; every worker measures its part."""
        step = self.learner.step_count
        figures: dict[str, float] = {}
        if self.held_out or self.world > 1:
            parts = self._gather(measure(self.learner, self.held_out, self.config.seed))
            training_mode(self.learner.model)
            for name in parts[0]:
                values = [value for part in parts for value in part[name]]
                if values:
                    figures[f"validation_{name}"] = sum(values) / len(values)
        row = {"step": step, "seconds": round(self.seconds, 1), **terms, **figures}
        self.log.append(row)
        if writer is not None:
            for name, value in row.items():
                if name != "step":
                    writer.add_scalar(name.replace("validation_", "validation/", 1), value, step)
            writer.flush()
        self._say(", ".join(f"{name} {value:.4g}" for name, value in row.items() if name not in ("step", "seconds")))
        train.report(row)

    def _save(self, curves: Path) -> None:
        state = {**self.learner.state_dict(), "log": self.log, "seconds": self.seconds}
        self.store.save(self.learner.step_count, state)
        self.store.write_log(self.log, curves)

    def _finish(self) -> None:
        config, learner = self.config, self.learner
        trained, total = parameter_counts(learner.model)
        with learner.average.applied():
            write_model(config, self.store, learner.model)
        examples = learner.step_count * config.examples_per_step
        self.store.finish(
            {
                "steps": learner.step_count,
                "examples": examples,
                "seconds": round(self.seconds, 1),
                "examples_per_second": round(examples / max(self.seconds, 1e-9), 2),
                "trained_parameters": trained,
                "parameters": total,
                "workers": self.world,
                **{name: value for name, value in self.log[-1].items() if name.startswith("validation_")},
            }
        )

    def _source(self, model: SAMAudio, reference: ray.ObjectRef, seed: int) -> ExampleSource:
        vision = model.config.vision_encoder
        return ExampleSource(
            reference,
            self.config.mixing_options(),
            seed,
            model.sample_rate,
            model.audio_codec.hop_length,
            self.store.store.root,
            self.store.store.allowed_read_prefixes,
            Pictures(vision.image_size, vision.interpolation_mode) if vision is not None else None,
            self.speaker,
        )

    def _held_out(self, model: SAMAudio, rows: list[Any]) -> list[WaveBatch]:
        """This worker's part of the held-out examples; the same ones at any number of workers."""
        total = self.config.validation_examples
        if not total:
            return []
        source = self._source(model, ray.put(collection(rows, "validation")), self.config.seed + 1)
        begin, end = total * self.rank // self.world, total * (self.rank + 1) // self.world
        return first_examples(source, Share(begin, end - begin, total), 1)

    def _fit(self, embedding: CepstralEmbedding) -> None:
        share = Share(0, FIT_EXAMPLES, FIT_EXAMPLES)
        found = first_examples(self.source, share, self.config.micro_batch)
        embedding.fit(torch.cat([encode_batch(self.learner.model, batch).target for batch in found]))

    def _mean(self, value: float) -> float:
        return sum(self._gather(value)) / self.world

    def _gather(self, value: Any) -> list[Any]:
        if self.world == 1:
            return [value]
        out: list[Any] = [None] * self.world
        distributed.all_gather_object(out, value)
        return out

    def _say(self, text: str) -> None:
        if self.rank == 0:
            rate = self.learner.step_count * self.config.examples_per_step / max(self.seconds, 1e-9)
            speed = f", {rate:.1f} examples a second" if self.learner.step_count else ""
            self.speaker.say(self.learner.step_count, f"{speed}: {text}")


def _writer(folder: str) -> Any:
    from tensorboardX import SummaryWriter

    return SummaryWriter(folder)
