"""What a separator is trained on: flow matching of the two stems' latents, and what may be added to it.

Source: the SAM-Audio paper, training objective: a straight path from noise to the latents of target and residual
(Lipman et al., 2023), and features of a middle layer pulled towards an embedding of the target's sound event
(`alignment.py`). Ours is the gain error, for the band codec only.

Every random number of an example is a function of the run's seed and of the example's number, so it depends neither on
how examples are spread over workers and steps, nor on where a run was interrupted.

Shapes: B examples, T latent frames, C codec channels, L text tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..band_codec import BandCodec
from ..config import BandCodecConfig, ConfigError, SAMAudioConfig
from ..model import SAMAudio
from .alignment import AlignmentHead

TimeSampling = Literal["uniform", "logit_normal"]


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights of the loss, and how times are drawn. What the network predicts is in the model's config (`prediction`).

    time_sampling: uniform in 0..max_time, or the sigmoid of a standard normal (Esser et al., 2024) times max_time.
    t0_share: share of examples at t = 0, where a one-step solver evaluates. latent_weight: of the mean squared error of
    what is predicted (velocity, or the clean latents). gain_weight: of the band codec's gain error. alignment_weight:
    of 1 - cosine, on the features of layer `alignment_layer` (counted from 1; None: two thirds of the way up).
    """

    time_sampling: TimeSampling = "uniform"
    max_time: float = 1.0
    t0_share: float = 0.0
    latent_weight: float = 1.0
    gain_weight: float = 0.0
    alignment_weight: float = 0.0
    alignment_layer: int | None = None

    def __post_init__(self) -> None:
        if self.time_sampling not in ("uniform", "logit_normal"):
            raise ConfigError(f"objective: time_sampling must be uniform or logit_normal, got {self.time_sampling!r}")
        if not 0 <= self.t0_share <= 1 or not 0 < self.max_time <= 1:
            raise ConfigError(
                f"objective: t0_share must be in [0, 1] and max_time in (0, 1], got {self.t0_share} and {self.max_time}"
            )
        negative = [n for n in ("latent_weight", "gain_weight", "alignment_weight") if getattr(self, n) < 0]
        if negative:
            raise ConfigError(f"objective: {', '.join(negative)} must not be negative")

    def layer(self, layers: int) -> int:
        """The aligned layer of a network with so many, counted from 0."""
        chosen = self.alignment_layer or max(1, round(layers * 2 / 3))
        if not 1 <= chosen <= layers:
            raise ConfigError(f"objective: alignment_layer must be in 1..{layers}, got {chosen}")
        return chosen - 1


@dataclass
class LatentBatch:
    """Examples as the network takes them.

    mixture, target, residual [B, C, T]; text_features [B, L, dim] and text_mask [B, L]; anchor_ids [B, n] and
    anchor_alignment [B, T] as in a `Batch`; numbers [B]: the examples' numbers in the run. gain and power [B, C, T]:
    the target's exact gain and the mixture's power per band (band codec). video [B, V, T]: features of masked video.
    event [B, E] or [B, T, E]: the embedding that features are aligned with.
    """

    mixture: Tensor
    target: Tensor
    residual: Tensor
    text_features: Tensor
    text_mask: Tensor
    anchor_ids: Tensor
    anchor_alignment: Tensor
    numbers: Tensor
    gain: Tensor | None = None
    power: Tensor | None = None
    video: Tensor | None = None
    event: Tensor | None = None

    def __len__(self) -> int:
        return len(self.mixture)

    def to(self, device: torch.device | str) -> LatentBatch:
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: t.to(device, non_blocking=True) for name, t in moved.items() if t is not None})


def example_generator(seed: int, number: int, purpose: int = 0) -> np.random.Generator:
    """The random numbers of one example; those of different purposes are independent."""
    return np.random.default_rng(np.random.SeedSequence([seed, number, purpose]))


def draw(
    config: ObjectiveConfig, seed: int, numbers: Sequence[int], frames: int, channels: int, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Noise [B, T, channels] and times [B] float32 of the examples with these numbers."""
    noise, times = torch.empty(len(numbers), frames, channels), torch.empty(len(numbers))
    for row, number in enumerate(numbers):
        rng = example_generator(seed, int(number), purpose=1)
        noise[row] = torch.from_numpy(rng.standard_normal((frames, channels), dtype=np.float32))
        time = rng.random() if config.time_sampling == "uniform" else 1 / (1 + np.exp(-rng.standard_normal()))
        times[row] = 0.0 if rng.random() < config.t0_share else time * config.max_time
    return noise.to(device), times.to(device)


class Objective(nn.Module):
    """The loss of a model on a batch; a module, so that DistributedDataParallel can wrap it.

    `head`: what the features go through; needed when `alignment_weight` is not 0, and trained with the model.
    """

    def __init__(self, model: SAMAudio, config: ObjectiveConfig, head: AlignmentHead | None = None) -> None:
        super().__init__()
        if config.alignment_weight and head is None:
            raise ConfigError("objective: alignment_weight needs an alignment head")
        if config.gain_weight and not isinstance(model.config.audio_codec, BandCodecConfig):
            raise ConfigError("objective: gain_weight is for models with the band codec; set it to 0")
        self.model, self.config = model, config
        self.head = head if config.alignment_weight else None
        self.layer = config.layer(len(model.transformer.blocks))

    def forward(self, batch: LatentBatch, noise: Tensor, time: Tensor) -> dict[str, Tensor]:
        """noise [B, T, 2C], time [B] -> the loss, its terms before weighting, and "error" [B].

        "error": energy of the target's error relative to the mixture's, as decoded by the band codec; for other codecs
        the squared error of the predicted clean latents relative to their own power.
        """
        config, model = self.config, self.model
        mixture = batch.mixture.transpose(1, 2)
        clean = torch.cat([batch.target, batch.residual], dim=1).transpose(1, 2)  # [B, T, 2C]
        t = time[:, None, None]
        noisy = (1 - t) * noise + t * clean
        conditions = model.condition(
            torch.cat([mixture, mixture], dim=-1),
            text_features=batch.text_features,
            text_mask=batch.text_mask,
            masked_video_features=model.no_video(len(batch)) if batch.video is None else batch.video,
            anchor_ids=batch.anchor_ids,
            anchor_alignment=batch.anchor_alignment,
        )
        features: list[Tensor] | None = [] if self.head is not None else None
        velocity = model.evaluate(noisy, time, conditions, features)
        x = velocity * (1 - t).clamp_min(1e-6) + noisy
        wrong = x - clean if model.config.prediction == "x" else velocity - (clean - noise)
        terms = {"latent": wrong.square().mean()}
        loss = config.latent_weight * terms["latent"]
        if batch.gain is not None and batch.power is not None:
            terms["gain"], error = gain_error(x, batch.gain, batch.power)
            loss = loss + config.gain_weight * terms["gain"]
        else:
            error = (x - clean).square().mean((1, 2)) / clean.square().mean((1, 2)).clamp_min(1e-9)
        if self.head is not None and features is not None:
            if batch.event is None:
                raise ValueError("objective: alignment_weight is set, but the batch holds no event embeddings")
            terms["alignment"] = self.head(features[self.layer], batch.event)
            loss = loss + config.alignment_weight * terms["alignment"]
        return {"loss": loss, "error": error.detach(), **{name: term.detach() for name, term in terms.items()}}


def gain_error(x: Tensor, gain: Tensor, power: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, relative error energy [B]) of the gain that the latents x [B, T, 2C] decode to.

    The squared error of the gain, weighted by the mixture's power [B, C, T] per band and frame, is the error energy
    that the decoded stem will have (bands taken as orthogonal), so it follows the signal-to-distortion ratio.
    """
    target, residual = x.transpose(1, 2).chunk(2, dim=1)
    squared = (BandCodec.target_gain(target, residual) - gain).square()
    share = power / power.sum((1, 2), keepdim=True).clamp_min(1e-12)
    # A compressed weight beside the true one: quiet bands carry what the ear follows, and steadier gradients.
    soft = power.clamp_min(0).pow(0.3)
    soft = soft / soft.sum((1, 2), keepdim=True).clamp_min(1e-12)
    error = (squared * share).sum((1, 2))
    return error.mean() + 0.5 * (squared * soft).sum((1, 2)).mean(), error


def default_objective(config: SAMAudioConfig) -> ObjectiveConfig:
    """What suits a model: the shipped model's recipe for the band codec, else plain flow matching."""
    if isinstance(config.audio_codec, BandCodecConfig):
        return ObjectiveConfig(max_time=0.95, t0_share=0.9, latent_weight=0.3, gain_weight=6.0)
    return ObjectiveConfig()
