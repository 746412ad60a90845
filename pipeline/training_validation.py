"""How good the averaged weights are on held-out examples: the loss, and SI-SDR improvement of what they separate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from operators.evaluation.metrics import si_sdr
from operators.sam_audio import flow
from operators.sam_audio.config import BandCodecConfig
from operators.sam_audio.model import SAMAudio
from operators.sam_audio.training.batches import WaveBatch, encode_batch
from operators.sam_audio.training.learner import Learner
from operators.sam_audio.training.objective import LatentBatch, draw

# A target this far below the mixture is an absent sound: there is nothing to measure its likeness to.
ABSENT_DB = -60.0


@torch.no_grad()
def measure(learner: Learner, held_out: Sequence[WaveBatch], seed: int) -> dict[str, list[float]]:
    """ "loss" and "si_sdr_improvement_db", each of the examples that have one (no improvement of an absent target).

    Noise and times depend on the examples' numbers only, so that figures of different steps are comparable.
    """
    figures: dict[str, list[float]] = {"loss": [], "si_sdr_improvement_db": []}
    model = learner.model.eval()
    weights = learner.objective.config
    with learner.average.applied():
        for batch in held_out:
            examples = encode_batch(model, batch).to(model.device)
            frames, channels = examples.mixture.shape[2], 2 * examples.mixture.shape[1]
            noise, time = draw(weights, seed, list(batch.numbers), frames, channels, model.device)
            with learner.autocast():
                found = _plain_loss(learner, examples, noise, time)
                latents = separate(model, examples, noise)
            figures["loss"] += [found] * len(examples)
            figures["si_sdr_improvement_db"] += improvements(model, latents.float(), batch)
    return figures


def separate(model: SAMAudio, examples: LatentBatch, noise: Tensor) -> Tensor:
    """Latents [B, T, 2C] that the model's own solver ends at."""
    mixture = examples.mixture.transpose(1, 2)
    conditions = model.condition(
        torch.cat([mixture, mixture], dim=-1),
        text_features=examples.text_features,
        text_mask=examples.text_mask,
        masked_video_features=model.no_video(len(examples)) if examples.video is None else examples.video,
        anchor_ids=examples.anchor_ids,
        anchor_alignment=examples.anchor_alignment,
    )
    return flow.solve(
        lambda t, z: model.evaluate(z, z.new_full((len(z),), t), conditions), noise.float(), model.config.solver
    )


def improvements(model: SAMAudio, latents: Tensor, batch: WaveBatch) -> list[float]:
    """SI-SDR of each separated target less that of the mixture, dB; none where there is no target or nothing else."""
    b, t, _ = latents.shape
    pairs = latents.transpose(1, 2).reshape(b, 2, -1, t)
    mixture = batch.target + batch.residual
    n = t * model.audio_codec.hop_length
    if isinstance(model.config.audio_codec, BandCodecConfig):
        stems = model.audio_codec.decode_stems(pairs, F.pad(mixture, (0, n - mixture.shape[-1])).to(latents)[:, None])
        targets = stems[:, 0, 0]
    else:
        targets = model.audio_codec.decode_clean(pairs[:, 0])[:, 0]
    found = []
    for target, residual, mix, made in zip(batch.target, batch.residual, mixture, targets.float().cpu(), strict=True):
        quietest = min(float(target.square().mean()), float(residual.square().mean()))
        if quietest <= float(mix.square().mean()) * 10 ** (ABSENT_DB / 10):
            continue
        truth = target.numpy()
        found.append(si_sdr(made[: len(truth)].numpy(), truth) - si_sdr(mix.numpy(), truth))
    return found


def _plain_loss(learner: Learner, examples: LatentBatch, noise: Tensor, time: Tensor) -> float:
    """The loss without the alignment term, whose embedding may cost more than the model."""
    objective = learner.objective
    head, objective.head = objective.head, None
    try:
        return float(objective(examples, noise, time)["loss"])
    finally:
        objective.head = head
