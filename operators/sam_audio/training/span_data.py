"""Mixtures for the span predictor: sources that come and go, and where each concept is heard.

Mixed as band powers (see band_bank.py): one mixture teaches every concept at once, those that are absent included.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..band_codec import BandCodec
from .band_bank import BandBank
from .band_sources import BandSources, activity
from .sound_concepts import Concept


@dataclass
class SpanBatch:
    """latents [B, T, C] of mixtures; active, known [B, T, K]: is concept k heard, and is that certain."""

    latents: Tensor
    active: Tensor
    known: Tensor


class SpanEngine:
    """Draws mixtures of the bank's recordings and the truth about every concept."""

    def __init__(self, bank: BandBank, codec: BandCodec, concepts: list[Concept]) -> None:
        self.codec, self.sources = codec, BandSources(bank, codec)
        labels = self.sources.names["sfx"]
        sources = [("speech", ""), ("music", ""), *(("sfx", label) for label in labels)]
        self.source_id = {source: i for i, source in enumerate(sources)}
        self.examples = torch.tensor([[s in c.examples for c in concepts] for s in sources]).float()
        self.unsure = torch.tensor([[s in c.unsure for c in concepts] for s in sources]).float()

    def batch(self, size: int, frames: int, rng: np.random.Generator) -> SpanBatch:
        """`size` mixtures of `frames` frames."""
        rows = [self.mixture(frames, rng) for _ in range(size)]
        return SpanBatch(*(torch.stack([row[i] for row in rows]) for i in range(3)))

    def mixture(self, frames: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """One row of a batch: latents [T, C], active [T, K], known [T, K]."""
        chosen = self._sources(rng)
        power = torch.zeros(frames, self.codec.channels)
        active, unsure = (torch.zeros(frames, self.examples.shape[1]) for _ in range(2))
        spread = rng.uniform(-15, 15, len(chosen)) / 2 if rng.random() < 0.7 else np.zeros(len(chosen))
        for (kind, group), level in zip(chosen, spread, strict=True):
            source = self.sources.shape(self.sources.source(kind, group, frames, rng), rng) * 10 ** (level / 10)
            heard = activity(source.sum(-1)).float()[:, None]
            row = self.source_id[kind, group if kind == "sfx" else ""]
            active = torch.maximum(active, heard * self.examples[row])
            unsure = torch.maximum(unsure, heard * self.unsure[row])
            power = self.sources.mixed(power, source, rng)
        master = 10 ** (rng.uniform(-50, -10) / 10)
        power = power * master
        if rng.random() < 0.6:
            # A noise floor: silence between sounds is seldom digital.
            bed = torch.full((frames, self.codec.channels), master * 10 ** (rng.uniform(-75, -40) / 10))
            power = (
                power + self.sources.shape(bed, rng, 6.0) * torch.from_numpy(rng.chisquare(8, bed.shape) / 8).float()
            )
        return self.codec.latents_of_power(power), active, ((unsure == 0) | (active > 0)).float()

    def _sources(self, rng: np.random.Generator) -> list[tuple[str, str]]:
        """Kind and group of 0 to 3 sources; speech and music once at most, effects of different labels."""
        count = int(rng.choice(4, p=[0.03, 0.17, 0.5, 0.3]))
        kinds = list(rng.permutation(["speech", "music", "sfx", "sfx"])[:count])
        chosen = []
        for kind in kinds:
            group = self.sources.group(kind, rng)
            if (kind, group) not in chosen:
                chosen.append((str(kind), group))
        return chosen
