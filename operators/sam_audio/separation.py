"""From a batch to stems: spans where asked, candidates one after the other, the chosen one decoded.

Source: facebookresearch/sam-audio, `SAMAudio.separate` (68b48d4). Differences, with their reasons: predicted spans
reach the network (there they come too late to matter; upstream pull request 100), candidates are solved and decoded one
at a time, and of those that lose only the target is ever decoded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from . import flow, spans
from .anchors import Anchor, align_batch
from .conditions import Conditions
from .config import BandCodecConfig
from .processor import Batch
from .watermark import draw_message

if TYPE_CHECKING:
    from .model import SAMAudio
    from .ranking import Ranker

TARGET, RESIDUAL = 0, 1


@dataclass
class SeparationResult:
    """Lists of 1-D tensors, one a recording: frames * hop_length samples, so up to hop_length - 1 more than it had.

    anchors: those used, predicted ones included; None where the batch has none. scores: [B, K], with a ranker.
    """

    target: list[Tensor]
    residual: list[Tensor]
    noise: Tensor  # [B * K, T, 2C]
    anchors: list[list[Anchor]] | None = None
    scores: Tensor | None = None


def separate(
    model: SAMAudio,
    batch: Batch,
    noise: Tensor | None,
    ode_opt: Mapping[str, Any] | None,
    candidates: int,
    predict_spans: bool,
    ranker: Ranker | None,
    seeds: Sequence[str] | None,
    message: Tensor | None,
    generator: torch.Generator | None,
) -> SeparationResult:
    """See `SAMAudio.separate`."""
    if candidates > 1 and ranker is None:
        ranker = model.text_ranker if batch.masked_video is None else model.visual_ranker or model.text_ranker
    if candidates < 1 or (candidates > 1 and ranker is None):
        raise ValueError(
            f"reranking_candidates={candidates} needs a ranker, and this model's config names none (text_ranker, "
            "visual_ranker); pass ranker=..., or use reranking_candidates=1"
        )
    batch = replace(batch).to(model.device)
    b, t = batch.audio_pad_mask.shape
    if noise is None:
        noise = _draw_noise(model, b, candidates, t, seeds)
    elif noise.shape[0] != b * candidates:
        raise ValueError(f"noise has {noise.shape[0]} rows, expected {b * candidates} (recordings x candidates)")
    if message is None and not isinstance(model.config.audio_codec, BandCodecConfig):
        message = draw_message(2 * b * candidates, generator)  # all at once, as the reference draws them

    latents = encode(model, batch)
    if predict_spans and batch.anchors is None:
        batch = with_predicted_spans(model, batch, latents)
    conditions = condition(model, batch, latents)
    of = noise.unflatten(0, (b, candidates))
    messages = None if message is None else message.reshape(b, candidates, 2, -1)
    lengths = [int(size) * batch.hop_length for size in batch.sizes]

    def bits(k: int | Tensor) -> Tensor | None:
        return None if messages is None else messages[torch.arange(b), k]

    latest = torch.empty(0)
    if ranker is None:
        z, scores, best = solve(model, conditions, of[:, 0], ode_opt), None, torch.zeros(b, dtype=torch.long)
        target = decode(model, z, batch, TARGET, bits(best))
    else:
        states, targets = [], []
        for k in range(candidates):
            latest = solve(model, conditions, of[:, k], ode_opt)
            states.append(latest)
            targets.append(decode(model, latest, batch, TARGET, bits(k)))
        made = torch.stack(targets, dim=1)  # [B, K, N]
        scores = _rank(model, ranker, made, batch, lengths)
        best = scores.argmax(dim=1).cpu()
        rows = torch.arange(b)
        z, target = torch.stack(states, dim=1)[rows, best], made[rows, best]
    residual = decode(model, z, batch, RESIDUAL, bits(best))
    return SeparationResult(
        [row[:n] for row, n in zip(target, lengths, strict=True)],
        [row[:n] for row, n in zip(residual, lengths, strict=True)],
        noise,
        batch.anchors,
        scores,
    )


def encode(model: SAMAudio, batch: Batch) -> Tensor:
    """Mean latents [B, T, C] of a batch on the model's device."""
    latents = model.audio_codec.encode(batch.audios).transpose(1, 2).float()
    if latents.shape[1] != batch.audio_pad_mask.shape[1]:
        raise ValueError(
            f"the batch has {batch.audio_pad_mask.shape[1]} frames, the codec made {latents.shape[1]}: "
            "was it made by this model's processor?"
        )
    return latents


def with_predicted_spans(model: SAMAudio, batch: Batch, latents: Tensor) -> Batch:
    """The batch with a "+" anchor for every span in which the predictor hears the description."""
    logits = model.span_predictor.logits(latents, batch.audio_pad_mask, batch.descriptions)
    found = spans.spans(logits, hop_length=batch.hop_length, sample_rate=batch.audio_sampling_rate)
    anchors: list[list[Anchor]] = [[("+", start, end) for start, end in item] for item in found]
    ids, alignment = align_batch(
        anchors, batch.audio_pad_mask, sample_rate=batch.audio_sampling_rate, hop_length=batch.hop_length
    )
    return replace(batch, anchors=anchors, anchor_ids=ids, anchor_alignment=alignment)


def condition(model: SAMAudio, batch: Batch, latents: Tensor) -> Conditions:
    """Everything that stays the same over a solve, B rows."""
    text_features, text_mask = model.encode_text(batch.descriptions)
    return model.condition(
        torch.cat([latents, latents], dim=-1),
        text_features=text_features,
        text_mask=text_mask,
        masked_video_features=_encode_video(model, batch),
        anchor_ids=batch.anchor_ids,
        anchor_alignment=batch.anchor_alignment,
        audio_pad_mask=batch.audio_pad_mask,
    )


def solve(model: SAMAudio, conditions: Conditions, noise: Tensor, ode_opt: Mapping[str, Any] | None) -> Tensor:
    """Latents of target and residual that the flow takes `noise` to; both [rows, T, 2C], rows a multiple of B."""
    b, t, stems = conditions.mixture.shape
    if noise.shape[0] % b or noise.shape[1:] != (t, stems):
        raise ValueError(f"noise is {list(noise.shape)}, expected {[b, t, stems]} (rows: a multiple of {b})")
    repeated = conditions.repeat(noise.shape[0] // b)
    return flow.solve(
        lambda time, z: model.evaluate(z, z.new_full((len(z),), time), repeated),
        noise.to(model.device).float(),
        model.solver(ode_opt),
    )


def decode(model: SAMAudio, z: Tensor, batch: Batch, stem: int, message: Tensor | None) -> Tensor:
    """One stem [B, N] of latents z [B, T, 2C]; message [B, 2, 16] of both stems."""
    b, t, _ = z.shape
    n = t * batch.hop_length
    latents = z.transpose(1, 2).reshape(b, 2, -1, t)
    mixture = F.pad(batch.audios, (0, n - batch.audios.shape[-1]))
    if isinstance(model.config.audio_codec, BandCodecConfig):  # its gains are made of both stems
        both: Tensor = model.audio_codec.decode_stems(latents, mixture, n_samples=n)
        return both[:, stem, 0]
    assert message is not None
    one: Tensor = model.audio_codec.decode_stems(latents[:, [stem]], message=message[:, stem], n_samples=n)
    return one[:, 0, 0]


def _draw_noise(model: SAMAudio, b: int, k: int, t: int, seeds: Sequence[str] | None) -> Tensor:
    channels = 2 * model.config.audio_codec.channels
    if seeds is None:
        return torch.randn(b * k, t, channels, device=model.device)
    if len(seeds) != b:
        raise ValueError(f"{len(seeds)} seeds for {b} recordings")
    return torch.stack([flow.noise(flow.candidate_key(seed, i), t, channels) for seed in seeds for i in range(k)])


def _encode_video(model: SAMAudio, batch: Batch) -> Tensor | None:
    if batch.masked_video is None:
        return model.no_video(len(batch.sizes))
    features = [model.encode_frames(video) for video in batch.masked_video]
    return torch.nn.utils.rnn.pad_sequence(features, batch_first=True).transpose(1, 2)


def _rank(model: SAMAudio, ranker: Ranker, targets: Tensor, batch: Batch, lengths: list[int]) -> Tensor:
    b, k, _ = targets.shape
    wanted = None
    if batch.anchors is not None:
        wanted = [[(s, e) for token, s, e in item if token == "+"] for item in batch.anchors]
    scores = ranker(
        extracted_audio=[targets[i, :, :n] for i, n in enumerate(lengths)],
        input_audio=[batch.audios[i, :, :n].expand(k, -1) for i, n in enumerate(lengths)],
        descriptions=batch.descriptions,
        videos=batch.masked_video,
        sample_rate=model.sample_rate,
        spans=wanted,
    )
    if scores.shape != (b, k):
        raise ValueError(f"the ranker gave scores {list(scores.shape)}, expected {[b, k]}")
    return scores
