"""Examples for a judge: drawn from the shards of judge_data.py as they are, and mixed anew from a bank of recordings.

New mixtures are sums of band powers, their outputs band gains on those: hundreds a second, so that a judge hears
far more mixtures than systems have separated. Either sort is then varied in ways that say nothing about quality
(`varied`), so that it hears more voices and instruments than there are recordings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..band_codec import CENTRE_DB, FLOOR_DB, SCALE_DB
from . import judge_gains
from .band_sources import BandSources
from .judge_data import FRAMES, KINDS, Shard, Sound, described
from .judge_truth import scores_of_gain

FLOOR = (FLOOR_DB - CENTRE_DB) / SCALE_DB
ASKED = 2  # of a mixture's three descriptions, for every output


@dataclass
class Examples:
    """M mixtures [M, T, C]; O outputs [O, T, C], each of mixture `source` [O] and judged against ASKED phrases.

    phrases and scores [O * ASKED, 4]: those of the first output, of the second, and so on.
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


def varied(examples: Examples, rng: np.random.Generator) -> Examples:
    """The same examples at another tempo (one for all), level, pitch and tone colour (one a mixture and its outputs).

    Tempo 0.8 to 1.25, up to 10 dB, 3 bands and an equaliser of 2 dB: shares of energy, and so the scores, hardly move.
    """
    count, frames, bands = examples.mixture.shape
    shift = torch.from_numpy(rng.integers(-3, 4, (count, 1)))
    origin = (torch.arange(bands) - shift).clamp(0, bands - 1)[:, None]
    knots = torch.from_numpy(rng.normal(0, 2 / SCALE_DB, (count, 1, 8)).astype(np.float32))
    level = torch.from_numpy(rng.uniform(-5, 5, (count, 1, 1)).astype(np.float32)) / SCALE_DB
    offset = level + F.interpolate(knots, bands, mode="linear", align_corners=True)
    tempo = float(np.exp(rng.uniform(np.log(0.8), np.log(1.25))))

    def apply(latents: Tensor, row: Tensor) -> Tensor:
        moved = latents.gather(2, origin[row].expand(-1, frames, -1)) + offset[row]
        return F.interpolate(moved.mT, round(frames / tempo), mode="linear").mT.clamp_min(FLOOR)

    return replace(
        examples,
        mixture=apply(examples.mixture, torch.arange(count)),
        outputs=apply(examples.outputs, examples.source),
    )


class Separated:
    """Draws from all shards of a folder, which are kept in memory."""

    def __init__(self, folder: Path) -> None:
        shards = [Shard.load(path) for path in sorted(folder.glob("*.safetensors"))]
        if not shards:
            raise FileNotFoundError(f"no shards in {folder}: make them with operators.sam_audio.training.judge_data")
        self.mixture, self.outputs, self.scores = (
            torch.cat([getattr(shard, name) for shard in shards]) for name in ("mixture", "outputs", "scores")
        )
        self.sounds = [row for shard in shards for row in shard.sounds]

    def draw(self, mixtures: int, outputs: int, rng: np.random.Generator) -> Examples:
        """What systems made: `outputs` a mixture."""
        chosen = rng.choice(len(self.mixture), mixtures, replace=mixtures > len(self.mixture))
        made, source, phrases, scores = [], [], [], []
        for row, m in enumerate(chosen):
            for k in rng.choice(self.outputs.shape[1], outputs, replace=False):
                made.append(self.outputs[m, k])
                source.append(row)
                for i in _asked(rng):
                    phrases.append(self.sounds[m][i].draw(rng))
                    scores.append(self.scores[m, k, i])
        return Examples(
            self.mixture[chosen].float().mT,
            torch.stack(made).float().mT,
            torch.tensor(source),
            phrases,
            torch.stack(scores),
        )


class Remixed:
    """Draws new mixtures of the sources of a bank, with band gains in place of systems."""

    def __init__(self, sources: BandSources, frames: int = FRAMES) -> None:
        self.sources, self.frames = sources, frames

    def draw(self, mixtures: int, outputs: int, rng: np.random.Generator) -> Examples:
        """`outputs` a mixture."""
        drawn = [self._mixture(rng) for _ in range(mixtures)]
        a, b = torch.stack([a for a, _, _ in drawn]), torch.stack([b for _, b, _ in drawn])
        gain = (a + 1e-16) / (a + b + 2e-16)
        made, source, phrases, scores = [], [], [], []
        for _ in range(outputs):
            # One in ten outputs is of neither: as if something absent had been asked for.
            wanted = torch.from_numpy(rng.choice(3, mixtures, p=(0.45, 0.45, 0.1)))[:, None, None]
            true = torch.where(wanted == 0, gain, torch.where(wanted == 1, 1 - gain, MUTED_GAIN))
            applied = CHANGES[rng.integers(len(CHANGES))](true, rng)
            answers = scores_of_gain(applied, a, b)
            latents = _latents(applied.square() * (a + b))
            for row, (_, _, sounds) in enumerate(drawn):
                made.append(latents[row])
                source.append(row)
                for i in _asked(rng):
                    phrases.append(sounds[i].draw(rng))
                    scores.append(answers[row, i])
        return Examples(_latents(a + b), torch.stack(made), torch.tensor(source), phrases, torch.stack(scores))

    def _mixture(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, list[Sound]]:
        """Band powers [T, C] of two halves of a mixture, as judge_data.py draws them, and its three sounds."""
        kinds = [str(kind) for kind in rng.permutation(KINDS)]
        absent = kinds.pop() if rng.random() < 0.8 else None
        level = rng.uniform(-45, -15)
        powers, found = [], []
        for kind in kinds:
            group = self.sources.group(kind, rng)
            power = self.sources.shape(self.sources.source(kind, group, self.frames, rng), rng)
            powers.append(power * float(10 ** ((level + rng.uniform(-15, 15) / 2) / 10)))
            found.append(Sound(kind, group if kind == "sfx" else ""))
        rest = powers[1] if absent else self.sources.mixed(powers[1], powers[2], rng)
        return powers[0], rest, described(found, absent, rng)


def _asked(rng: np.random.Generator) -> list[int]:
    """Which descriptions an output is judged against: seldom the one of a sound that is not there."""
    return [int(i) for i in rng.choice(3, ASKED, replace=False, p=(0.4, 0.4, 0.2))]


def _latents(power: Tensor) -> Tensor:
    return (10 * torch.log10(power.clamp_min(10 ** (FLOOR_DB / 10))) - CENTRE_DB) / SCALE_DB


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
