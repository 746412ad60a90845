"""Sources and mixtures of band powers, drawn from a bank of recordings (see band_bank.py)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..band_codec import BandCodec
from .band_bank import BandBank, Piece
from .engine import SILENCE_DB

FRAMES_PER_SECOND = 25
# Pauses under 250 ms are part of a sound.
_CLOSED_FRAMES = 7


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


class BandSources:
    """Draws sources that come and go, and adds them up as their waveforms would."""

    def __init__(self, bank: BandBank, codec: BandCodec) -> None:
        self.bank, self.bands = bank, codec.channels
        self.groups: dict[str, dict[str, list[Piece]]] = {"speech": {}, "music": {}, "sfx": {}}
        for piece in bank.pieces:
            self.groups[piece.kind].setdefault(piece.group, []).append(piece)
        self.names = {kind: sorted(groups) for kind, groups in self.groups.items()}
        self.weights = {}
        for kind, groups in self.groups.items():
            size = np.sqrt([float(sum(p.frames for p in groups[name])) for name in self.names[kind]])
            self.weights[kind] = size / size.sum()
        # Of two independent sources' cross term: the wider a band, the better it averages out. Neighbouring bins of
        # a Hann window go together.
        bins = codec.bands.sum(0).square() / codec.bands.square().sum(0)
        self._cross = torch.rsqrt(2 * (bins / 1.5).clamp_min(1))

    def group(self, kind: str, rng: np.random.Generator) -> str:
        """A speaker, an album or a label; those with more sound more often, but less than in proportion."""
        return self.names[kind][rng.choice(len(self.names[kind]), p=self.weights[kind])]

    def source(self, kind: str, group: str, frames: int, rng: np.random.Generator) -> Tensor:
        """Band powers [frames, C] of one source, of mean power 1 over its active frames, with pauses."""
        out = torch.zeros(frames, self.bands)
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

    def shape(self, power: Tensor, rng: np.random.Generator, deviation_db: float = 3.0) -> Tensor:
        """Random smooth equaliser, and sometimes a low-pass: bandwidth must never tell speech from music."""
        bands = power.shape[-1]
        db = np.interp(np.linspace(0, 9, bands), np.arange(10), rng.normal(0, deviation_db, 10))
        gain = torch.from_numpy(10 ** (db / 10)).float()
        if rng.random() < 0.3:
            gain[int(rng.uniform(0.55, 0.95) * bands) :] *= 1e-6
        return power * gain

    def mixed(self, a: Tensor, b: Tensor, rng: np.random.Generator) -> Tensor:
        """Power of a + b for powers [T, C] of signals that know nothing of each other."""
        drawn = torch.from_numpy(rng.standard_normal(a.shape, np.float32))
        return mixed_power(a, b, drawn * self._cross)


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
