"""The auxiliary alignment loss: features of a middle layer point where an embedding of the target's sound points.

Source: the SAM-Audio paper, training objective; the idea for image diffusion is REPA (Yu et al., 2025). What embeds the
sound can be changed: CLAP, PE-A-Frame, or, for the band codec and without any checkpoint, cepstral statistics.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
import torchaudio.functional
from torch import Tensor, nn

from ..config import BandCodecConfig, ConfigError, SAMAudioConfig


class EventEmbedding(Protocol):
    """Embeds the sound of targets. Its output has no gradient.

    latents [B, C, T] of the targets, and their waves [B, n] at the codec's rate, or None where there are only latents.
    Returns [B, dim], or [B, T, dim] for an embedding of every frame.
    """

    dim: int

    def __call__(self, latents: Tensor, waves: Tensor | None) -> Tensor: ...


class AlignmentHead(nn.Module):
    """1 - cosine between projected features and an embedding; the projection is trained and then thrown away."""

    def __init__(self, width: int, dim: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or 2 * width
        self.rise, self.project = nn.Linear(width, hidden), nn.Linear(hidden, dim)

    def forward(self, features: Tensor, event: Tensor) -> Tensor:
        """features [B, T, D]; event [B, E], which the mean over the frames is compared with, or [B, T, E]."""
        if event.ndim == 2:
            features = features.mean(1)
        projected = self.project(F.silu(self.rise(features)))
        return 1 - F.cosine_similarity(projected.float(), event.float(), dim=-1).mean()


class CepstralEmbedding(nn.Module):
    """How a sound's spectrum is shaped and moves: mean, deviation and mean change of cepstral coefficients.

    Of the band codec's latents; level and silence are left out. `fit` standardises each value, without which the cosine
    would see only what all sounds have in common; what it learned is part of the state dict.
    """

    mean: Tensor
    deviation: Tensor
    cosines: Tensor

    def __init__(self, config: BandCodecConfig, coefficients: int = 20) -> None:
        super().__init__()
        self.dim = 3 * coefficients
        order = torch.arange(1, coefficients + 1)[:, None]  # the 0th is the level
        cosines = torch.cos(math.pi / config.n_bands * order * (torch.arange(config.n_bands) + 0.5))
        self.register_buffer("cosines", cosines * math.sqrt(2 / config.n_bands), persistent=False)
        self.register_buffer("mean", torch.zeros(self.dim))
        self.register_buffer("deviation", torch.ones(self.dim))

    @torch.no_grad()
    def fit(self, latents: Tensor) -> None:
        """Learn the mean and deviation of each value from targets [B, C, T]; B of a hundred or more."""
        values = self._values(latents)
        self.mean.copy_(values.mean(0))
        self.deviation.copy_(values.std(0).clamp_min(1e-3))

    @torch.no_grad()
    def __call__(self, latents: Tensor, waves: Tensor | None = None) -> Tensor:
        return (self._values(latents) - self.mean) / self.deviation

    def _values(self, latents: Tensor) -> Tensor:
        cepstra = self.cosines @ latents.float()  # [B, K, T]
        level = latents.float().mean(1, keepdim=True)
        # Within 40 dB of the loudest frame (latents are in units of 20 dB).
        active = (level > level.amax(-1, keepdim=True) - 2).float()
        count = active.sum(-1).clamp_min(1)
        mean = (cepstra * active).sum(-1) / count
        deviation = ((cepstra - mean[..., None]).square() * active).sum(-1).div(count).sqrt()
        pairs = active[..., 1:] * active[..., :-1]
        change = (cepstra.diff(dim=-1).abs() * pairs).sum(-1) / pairs.sum(-1).clamp_min(1)
        return torch.cat([mean, deviation, change], dim=1)


class ClapEmbedding:
    """CLAP's embedding of the target's wave, as the ranker hears it (`ranking_clap.py`)."""

    def __init__(self, checkpoint: str | Path | None, sample_rate: int, device: torch.device | str = "cpu") -> None:
        from ..ranking_clap import SAMPLE_RATE, log_mel, windows
        from ..ranking_clap_weights import load_clap

        self._model, _ = load_clap(checkpoint, device=device)
        self._rate, self._clap_rate, self._log_mel, self._windows = sample_rate, SAMPLE_RATE, log_mel, windows
        self.dim = int(self._model.config.projection_dim)

    @torch.no_grad()
    def __call__(self, latents: Tensor, waves: Tensor | None) -> Tensor:
        if waves is None:
            raise ConfigError("alignment: CLAP hears waves, and these examples are latents only; use cepstra")
        waves = torchaudio.functional.resample(waves.float(), self._rate, self._clap_rate)
        parameter = next(self._model.parameters())
        rows = []
        for wave in waves:
            mel = self._log_mel(torch.stack(list(self._windows(wave))).to(parameter.device)).to(parameter.dtype)
            rows.append(self._model.get_audio_features(input_features=mel).pooler_output.float().mean(0))
        return torch.stack(rows)


class FrameEmbedding:
    """PE-A-Frame's embedding of every latent frame of the target; for models with its codec."""

    def __init__(self, checkpoint: str | Path, device: torch.device | str = "cpu") -> None:
        from ..spans import PEAFrame

        self._model = PEAFrame.from_pretrained(checkpoint, device=device)
        self.dim = self._model.config.output_dim

    @torch.no_grad()
    def __call__(self, latents: Tensor, waves: Tensor | None = None) -> Tensor:
        return self._model.embed_frames(latents.transpose(1, 2)).float()


def build_embedding(name: str, config: SAMAudioConfig, device: torch.device | str = "cpu") -> EventEmbedding:
    """The embedding called "cepstra", "clap", "clap:<checkpoint>" or "pe-a-frame:<name, folder or URL>".

    Raises ConfigError for another name, or one that the model's codec does not fit; CheckpointError.
    """
    kind, _, checkpoint = name.partition(":")
    builders: dict[str, Callable[[], EventEmbedding]] = {
        "clap": lambda: ClapEmbedding(checkpoint or None, config.audio_codec.sample_rate, device),
        "pe-a-frame": lambda: FrameEmbedding(checkpoint or "pe-a-frame-base", device),
    }
    if kind == "cepstra":
        if not isinstance(config.audio_codec, BandCodecConfig):
            raise ConfigError("alignment: cepstra needs the band codec; use clap or pe-a-frame with this model")
        return CepstralEmbedding(config.audio_codec).to(device)
    if kind not in builders:
        raise ConfigError(f"alignment: {name!r} is unknown; use cepstra, clap[:checkpoint] or pe-a-frame[:checkpoint]")
    return builders[kind]()
