"""Stems as waves to what the objective takes: latents, exact gains, text features, span tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..anchors import Anchor, align_batch
from ..band_codec import BandCodec
from ..model import SAMAudio
from .alignment import EventEmbedding
from .objective import LatentBatch

# Stems further below the mixture are inaudible and cannot be inferred: the band codec's latents stop 40 dB under it.
INAUDIBLE = 40 / 20


@dataclass
class WaveBatch:
    """Examples as they are mixed: target and residual [B, n] at the codec's rate, n a multiple of its hop.

    descriptions: "" where the text prompt is left out. anchors: none where spans are. numbers: in the run.
    videos: masked frames [T, 3, H, W] of 0..255, one a latent frame, or None where that prompt is left out.
    """

    target: Tensor
    residual: Tensor
    descriptions: list[str]
    anchors: list[list[Anchor]]
    numbers: Sequence[int]
    videos: Sequence[Tensor | None] | None = None


@torch.no_grad()
def encode_batch(model: SAMAudio, batch: WaveBatch, embedding: EventEmbedding | None = None) -> LatentBatch:
    """Everything that has no gradient, computed on the model's device."""
    device, codec = model.device, model.audio_codec
    target, residual = batch.target.to(device).float(), batch.residual.to(device).float()
    gain = power = None
    if isinstance(codec, BandCodec):
        mixture_latents, target_latents, residual_latents, gain, power = band_latents(codec, target, residual)
    else:
        mixture_latents, target_latents, residual_latents = (
            codec.encode(wave[:, None]).float() for wave in (target + residual, target, residual)
        )
    frames = mixture_latents.shape[2]
    valid = torch.ones(len(target), frames, dtype=torch.bool, device=device)
    ids, alignment = align_batch(batch.anchors, valid, sample_rate=codec.sample_rate, hop_length=codec.hop_length)
    features, mask = model.encode_text(batch.descriptions)
    return LatentBatch(
        mixture_latents,
        target_latents,
        residual_latents,
        features,
        mask,
        ids,
        alignment,
        torch.tensor(batch.numbers),
        gain,
        power,
        _video(model, batch, frames),
        None if embedding is None else embedding(target_latents, target),
    )


def band_latents(codec: BandCodec, target: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Waves [B, n] -> latents of mixture, target and residual, the target's exact gain, the mixture's power [B, C, T].

    The gain is the real part of target over mixture, by band, which is what is left of the error when it is applied.
    """
    a, b = codec.stft(target), codec.stft(residual)
    mix = a + b
    norm = (2 / codec.window.sum()) ** 2
    powers = torch.stack([s.real.square() + s.imag.square() for s in (mix, a, b)]) @ codec.bands * norm
    cross = (a.real * mix.real + a.imag * mix.imag) @ codec.bands * norm
    gain = (cross / powers[0].clamp_min(1e-12)).clamp(0, 1)
    latents = codec.latents_of_power(powers)
    floor = latents[0] - INAUDIBLE
    found = (latents[0], torch.maximum(latents[1], floor), torch.maximum(latents[2], floor), gain, powers[0])
    mixture, target_latents, residual_latents, gain, power = (t.transpose(1, 2) for t in found)
    return mixture, target_latents, residual_latents, gain, power


def _video(model: SAMAudio, batch: WaveBatch, frames: int) -> Tensor | None:
    """Features [B, V, T] of the masked videos, zeros where there is none; None when no example has one."""
    if batch.videos is None or not any(video is not None for video in batch.videos):
        return None
    absent = model.no_video(1)
    if absent is None:
        raise ValueError("the examples hold masked video, and this model's config has no vision_encoder")
    rows = []
    for video in batch.videos:
        row = absent[0].expand(-1, frames) if video is None else model.encode_frames(video).transpose(0, 1).float()
        rows.append(row)
    return torch.stack(rows)
