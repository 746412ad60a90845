"""Examples for a judge: drawn from the shards of judge_data.py as they are, and mixed anew from their halves.

New mixtures are sums of band powers, their outputs band gains on those: hundreds a second, so that a judge hears
far more mixtures than systems have separated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..band_codec import CENTRE_DB, FLOOR_DB, SCALE_DB
from . import judge_gains
from .judge_data import KINDS, Halves, Shard, Sound
from .judge_truth import scores_of_gain

FLOOR = (FLOOR_DB - CENTRE_DB) / SCALE_DB


@dataclass
class Examples:
    """M mixtures [M, T, C]; R rows, each an output [R, T, C] of mixture `source` [R], judged against `phrases`.

    scores [R, 4].
    """

    mixture: Tensor
    outputs: Tensor
    source: Tensor
    phrases: list[str]
    scores: Tensor


def joined(first: Examples, second: Examples) -> Examples:
    return Examples(
        torch.cat([first.mixture, second.mixture]),
        torch.cat([first.outputs, second.outputs]),
        torch.cat([first.source, second.source + len(first.mixture)]),
        first.phrases + second.phrases,
        torch.cat([first.scores, second.scores]),
    )


class ExampleEngine:
    """Draws from all shards of a folder, and of `<folder>-halves` where it exists; all are kept in memory."""

    def __init__(self, folder: Path) -> None:
        shards = [Shard.load(path) for path in sorted(folder.glob("*.safetensors"))]
        if not shards:
            raise FileNotFoundError(f"no shards in {folder}: make them with operators.sam_audio.training.judge_data")
        self.mixture, self.outputs, self.scores = (
            torch.cat([getattr(shard, name) for shard in shards]) for name in ("mixture", "outputs", "scores")
        )
        self.sounds = [row for shard in shards for row in shard.sounds]
        beside = folder.with_name(f"{folder.name}-halves").glob("*.safetensors")
        sources: list[Shard | Halves] = [*shards, *(Halves.load(path) for path in sorted(beside))]
        self.halves = torch.cat([source.halves for source in sources])
        self.half_sounds = [row[:2] for source in sources for row in source.sounds]
        # Halves of one kind: "not speech" and the like are only asked for in their own mixture.
        self.by_kind = {
            kind: [(m, h) for m, row in enumerate(self.half_sounds) for h in (0, 1) if row[h].kind == kind]
            for kind in KINDS
        }

    def separated(self, mixtures: int, outputs: int, rng: np.random.Generator) -> Examples:
        """What systems made: `outputs` a mixture, each judged as an answer to two of its three descriptions."""
        chosen = rng.choice(len(self.mixture), mixtures, replace=mixtures > len(self.mixture))
        made, source, phrases, scores = [], [], [], []
        for row, m in enumerate(chosen):
            for k in rng.choice(self.outputs.shape[1], outputs, replace=False):
                for i in rng.choice(3, 2, replace=False, p=(0.4, 0.4, 0.2)):
                    made.append(self.outputs[m, k])
                    source.append(row)
                    phrases.append(self.sounds[m][i].draw(rng))
                    scores.append(self.scores[m, k, i])
        return _levelled(
            self.mixture[chosen].float().mT,
            torch.stack(made).float().mT,
            torch.tensor(source),
            phrases,
            torch.stack(scores),
            rng,
        )

    def remixed(self, mixtures: int, outputs: int, rng: np.random.Generator) -> Examples:
        """New mixtures of halves that never met, with band gains in place of systems."""
        pairs = [self._pair(rng) for _ in range(mixtures)]
        a, b = self._powers([a for a, _, _ in pairs], rng), self._powers([b for _, b, _ in pairs], rng)
        gain = (a + 1e-16) / (a + b + 2e-16)
        made, source, phrases, scores = [], [], [], []
        for _ in range(outputs):
            # One in ten outputs is of neither: as if something absent had been asked for.
            wanted = torch.from_numpy(rng.choice(3, mixtures, p=(0.45, 0.45, 0.1)))[:, None, None]
            true = torch.where(wanted == 0, gain, torch.where(wanted == 1, 1 - gain, MUTED_GAIN))
            applied = CHANGES[rng.integers(len(CHANGES))](true, rng)
            answers = scores_of_gain(applied, a, b)
            latents = _latents(applied.square() * (a + b))
            for row, (first, second, absent) in enumerate(pairs):
                sounds = [self._sound(first), self._sound(second), absent]
                for i in rng.choice(3, 2, replace=False, p=(0.4, 0.4, 0.2)):
                    made.append(latents[row])
                    source.append(row)
                    phrases.append(sounds[i].draw(rng))
                    scores.append(answers[row, i])
        return _levelled(_latents(a + b), torch.stack(made), torch.tensor(source), phrases, torch.stack(scores), rng)

    def _pair(self, rng: np.random.Generator) -> tuple[tuple[int, int], tuple[int, int], Sound]:
        first, second, absent = (str(kind) for kind in rng.permutation(KINDS))
        a, b = (self.by_kind[kind][rng.integers(len(self.by_kind[kind]))] for kind in (first, second))
        return a, b, Sound(absent)

    def _sound(self, half: tuple[int, int]) -> Sound:
        return self.half_sounds[half[0]][half[1]]

    def _powers(self, halves: list[tuple[int, int]], rng: np.random.Generator) -> Tensor:
        """Band powers [B, T, C] at random levels, some with a tilt."""
        latents = torch.stack([self.halves[m, h] for m, h in halves]).float().mT
        tilt = torch.from_numpy(rng.normal(0, 0.15, (len(halves), 1, 1)).astype(np.float32))
        level = torch.from_numpy(rng.uniform(-0.4, 0.4, (len(halves), 1, 1)).astype(np.float32))
        # All halves to one level first, or a pair's levels would be those of two other mixtures.
        power = _power(latents)
        power = power / power.sum((1, 2), keepdim=True).clamp_min(1e-9) * 1e-2 * power.shape[1]
        slope = torch.linspace(-1, 1, latents.shape[-1])
        return power * 10 ** ((level + tilt * slope) * SCALE_DB / 10)


def _power(latents: Tensor) -> Tensor:
    power = 10 ** ((latents * SCALE_DB + CENTRE_DB) / 10)
    return torch.where(latents > FLOOR + 0.02, power, 0.0)


def _latents(power: Tensor) -> Tensor:
    return (10 * torch.log10(power.clamp_min(10 ** (FLOOR_DB / 10))) - CENTRE_DB) / SCALE_DB


def _levelled(
    mixture: Tensor,
    outputs: Tensor,
    source: Tensor,
    phrases: list[str],
    scores: Tensor,
    rng: np.random.Generator,
) -> Examples:
    """At another playback level (up to 10 dB): it says nothing about quality."""
    offset = torch.from_numpy(rng.uniform(-0.5, 0.5, (len(mixture), 1, 1)).astype(np.float32))
    return Examples(
        (mixture + offset).clamp_min(FLOOR),
        (outputs + offset[source]).clamp_min(FLOOR),
        source,
        phrases,
        scores,
    )


MUTED_GAIN = torch.tensor(judge_gains.MUTED)


def _over(gain: Tensor, rng: np.random.Generator) -> Tensor:
    return judge_gains.exponent(judge_gains.confused(gain, rng), rng, 1.0, 4.0)


def _uniform(gain: Tensor, rng: np.random.Generator) -> Tensor:
    """The mixture at some level: untouched, or as good as silent."""
    db = np.where(rng.random(len(gain)) < 0.5, 0.0, rng.uniform(-80, -10, len(gain)))
    return torch.from_numpy(10 ** (db / 20).astype(np.float32))[:, None, None].expand_as(gain)


# Those that look most like real systems stand twice.
CHANGES: tuple[Callable[[Tensor, np.random.Generator], Tensor], ...] = (
    judge_gains.smeared,
    judge_gains.smeared,
    judge_gains.confused,
    judge_gains.confused,
    judge_gains.fluttering,
    judge_gains.muffled,
    _over,
    _uniform,
)
