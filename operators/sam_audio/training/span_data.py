"""Mixtures for the span predictor: sources that come and go, and where each concept is heard.

Mixed as band powers (see band_bank.py): one mixture teaches every concept at once, those that are absent included.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..band_codec import BandCodec
from .band_bank import BandBank, Piece
from .engine import SILENCE_DB
from .sound_concepts import Concept

FRAMES_PER_SECOND = 25
# Pauses under 250 ms are part of a sound.
_CLOSED_FRAMES = 7


@dataclass
class SpanBatch:
    """latents [B, T, C] of mixtures; active, known [B, T, K]: is concept k heard, and is that certain."""

    latents: Tensor
    active: Tensor
    known: Tensor


def activity(power: Tensor) -> Tensor:
    """Power of a source per frame [..., T] -> True where it is within 40 dB of its peak, pauses under 250 ms closed.

    The paper's rule for span prompts. A source without any power is nowhere active.
    """
    peak = power.amax(-1, keepdim=True)
    loud = (power > peak * 10 ** (SILENCE_DB / 10)) & (peak > 0)
    reach = _CLOSED_FRAMES // 2
    # Dilated and eroded; beyond both ends it may be anything, so the padding decides nothing.
    grown = F.max_pool1d(loud.float().reshape(-1, 1, loud.shape[-1]), _CLOSED_FRAMES, 1, reach)
    shrunk = -F.max_pool1d(-grown, _CLOSED_FRAMES, 1, reach)
    return shrunk[:, 0].bool().view_as(loud)


class SpanEngine:
    """Draws mixtures of the bank's recordings and the truth about every concept."""

    def __init__(self, bank: BandBank, codec: BandCodec, concepts: list[Concept]) -> None:
        self.bank, self.codec = bank, codec
        self.groups: dict[str, dict[str, list[Piece]]] = {"speech": {}, "music": {}, "sfx": {}}
        for piece in bank.pieces:
            self.groups[piece.kind].setdefault(piece.group, []).append(piece)
        self.names = {kind: sorted(groups) for kind, groups in self.groups.items()}
        self.weights = {}
        for kind, groups in self.groups.items():
            size = np.sqrt([float(sum(p.frames for p in groups[name])) for name in self.names[kind]])
            self.weights[kind] = size / size.sum()
        labels = self.names["sfx"]
        sources = [("speech", ""), ("music", ""), *(("sfx", label) for label in labels)]
        self.source_id = {source: i for i, source in enumerate(sources)}
        self.examples = torch.tensor([[s in c.examples for c in concepts] for s in sources]).float()
        self.unsure = torch.tensor([[s in c.unsure for c in concepts] for s in sources]).float()
        # Of two independent sources' cross term: the wider a band, the better it averages out. Neighbouring bins of
        # a Hann window go together.
        bins = codec.bands.sum(0).square() / codec.bands.square().sum(0)
        self.cross = torch.rsqrt(2 * (bins / 1.5).clamp_min(1))

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
            source = self._shape(self.source(kind, group, frames, rng), rng) * 10 ** (level / 10)
            heard = activity(source.sum(-1)).float()[:, None]
            row = self.source_id[kind, group if kind == "sfx" else ""]
            active = torch.maximum(active, heard * self.examples[row])
            unsure = torch.maximum(unsure, heard * self.unsure[row])
            drawn = torch.from_numpy(rng.standard_normal(power.shape, np.float32)) * self.cross
            power = mixed_power(power, source, drawn)
        master = 10 ** (rng.uniform(-50, -10) / 10)
        power = power * master
        if rng.random() < 0.6:
            # A noise floor: silence between sounds is seldom digital.
            bed = torch.full((frames, self.codec.channels), master * 10 ** (rng.uniform(-75, -40) / 10))
            power = power + self._shape(bed, rng, 6.0) * torch.from_numpy(rng.chisquare(8, bed.shape) / 8).float()
        return self.codec.latents_of_power(power), active, ((unsure == 0) | (active > 0)).float()

    def source(self, kind: str, group: str, frames: int, rng: np.random.Generator) -> Tensor:
        """Band powers [frames, C] of one source, of mean power 1 over its active frames, with pauses."""
        out = torch.zeros(frames, self.codec.channels)
        pieces = self.groups[kind][group]
        at = int(rng.integers(frames // 2)) if kind == "sfx" and rng.random() < 0.5 else 0
        while at < frames:
            piece = pieces[rng.integers(len(pieces))]
            first = int(rng.integers(max(piece.frames - (frames - at), 0) + 1))
            power = self.bank.power(piece, first, frames - at)
            level = power.sum(-1).mean()
            if level > 1e-9:
                out[at : at + len(power)] = power / level
            at += max(len(power), 1)
            if kind != "music":
                at += int(rng.exponential(0.5 if kind == "speech" else 1.0) * FRAMES_PER_SECOND)
        if rng.random() < 0.75:
            out = out * gate(frames, rng)[:, None]
        total = out.sum(-1)
        heard = activity(total)
        return out / total[heard].mean() if heard.any() else out

    def _sources(self, rng: np.random.Generator) -> list[tuple[str, str]]:
        """Kind and group of 0 to 3 sources; speech and music once at most, effects of different labels."""
        count = int(rng.choice(4, p=[0.03, 0.17, 0.5, 0.3]))
        kinds = list(rng.permutation(["speech", "music", "sfx", "sfx"])[:count])
        chosen = []
        for kind in kinds:
            group = self.names[kind][rng.choice(len(self.names[kind]), p=self.weights[kind])]
            if (kind, group) not in chosen:
                chosen.append((str(kind), group))
        return chosen

    def _shape(self, power: Tensor, rng: np.random.Generator, deviation_db: float = 3.0) -> Tensor:
        """Random smooth equaliser, and sometimes a low-pass: bandwidth must never tell speech from music."""
        bands = power.shape[-1]
        db = np.interp(np.linspace(0, 9, bands), np.arange(10), rng.normal(0, deviation_db, 10))
        gain = torch.from_numpy(10 ** (db / 10)).float()
        if rng.random() < 0.3:
            gain[int(rng.uniform(0.55, 0.95) * bands) :] *= 1e-6
        return power * gain


def mixed_power(a: Tensor, b: Tensor, correlation: Tensor) -> Tensor:
    """Power of a sum of two signals of powers `a` and `b` whose correlation is given (kept within -1 and 1)."""
    # Of two that cancel, rounding can leave less than nothing.
    return (a + b + 2 * (a * b).sqrt() * correlation.clamp(-1, 1)).clamp_min(0)


def gate(frames: int, rng: np.random.Generator) -> Tensor:
    """Power gain [frames] of a source that comes and goes, in stretches and pauses of 0.3 to 5 s."""
    out = np.zeros(frames, np.float32)
    at, on = 0, rng.random() < 0.5
    while at < frames:
        length = int(np.exp(rng.uniform(np.log(0.3), np.log(5.0))) * FRAMES_PER_SECOND)
        out[at : at + length] = on
        at, on = at + length, not on
    # A frame's window reaches into its neighbours.
    smooth = np.convolve(np.pad(out, 1, mode="edge"), [0.15, 0.7, 0.15], mode="valid")
    return torch.from_numpy(smooth.astype(np.float32))
