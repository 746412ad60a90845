"""Make a judge's training data: mixtures, what many separators make of them, and the scores that the truth gives.

    python -m operators.sam_audio.training.judge_data DATA_DIR OUT [--part train] [--shards 60]

writes shards of 24 mixtures of 4 s (latents in float16: about 4 MB each) to OUT/<part>, and goes on where it was
interrupted: a shard depends on its number only. `--part eval` draws from the eval split and hears the held-out systems
too; nothing is trained on it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from ..band_codec import BandCodec
from ..config import BandCodecConfig
from . import prompts
from .engine import NOT, DataEngine
from .judge_systems import Requests, Systems
from .judge_truth import Truth

FRAMES = 100
MIXTURES = 24  # a shard
OUTPUTS = 6  # a mixture in training
KINDS = ("speech", "music", "sfx")
PARTS = ("train", "validation", "eval")


@dataclass(frozen=True)
class Sound:
    """What a description is about: a kind ("speech", "not speech", ...) and, for effects, the catalogue's label.

    Kind "sfx": an effect that is asked for by its own name or as an effect; "effect": by its own name only.
    """

    kind: str
    label: str = ""

    @property
    def phrases(self) -> list[str]:
        """Every wording of it."""
        if self.kind.startswith("not "):
            return NOT[self.kind.removeprefix("not ")]
        if self.kind == "effect":
            return prompts.label_phrases(self.label)
        if self.kind == "sfx":
            return prompts.EFFECTS + prompts.label_phrases(self.label) if self.label else prompts.EFFECTS
        return prompts.SPEECH if self.kind == "speech" else prompts.MUSIC

    def draw(self, rng: np.random.Generator) -> str:
        """A wording; of an effect's own name and the general ones each half of the time."""
        options = self.phrases
        if self.label and rng.random() < 0.5:
            options = prompts.label_phrases(self.label)
        return options[rng.integers(len(options))]


@dataclass
class Shard:
    """M mixtures [M, C, T], K outputs of each [M, K, C, T], and their scores for each of S descriptions [M, K, S, 4].

    sounds: what the S descriptions of a mixture are about: either of its halves, and a sound that is not in it.
    systems: who made output k. asked [M, K]: the description that the output was made for.
    """

    mixture: Tensor
    outputs: Tensor
    scores: Tensor
    sounds: list[list[Sound]]
    systems: list[str]
    asked: Tensor

    def save(self, path: Path) -> None:
        facts = {"sounds": [[vars(s) for s in row] for row in self.sounds], "systems": self.systems}
        partial = path.with_suffix(".partial")
        tensors = {"mixture": self.mixture, "outputs": self.outputs}
        save_file(
            {name: t.half().contiguous() for name, t in tensors.items()}
            | {"scores": self.scores.contiguous(), "asked": self.asked},
            partial,
            {"facts": json.dumps(facts)},
        )
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Shard:
        with safe_open(path, "pt") as file:
            facts: dict[str, Any] = json.loads(file.metadata()["facts"])
            sounds = [[Sound(**s) for s in row] for row in facts["sounds"]]
            tensors = {name: file.get_tensor(name) for name in ("mixture", "outputs", "scores", "asked")}
        return cls(sounds=sounds, systems=facts["systems"], **tensors)


class Maker:
    """Draws mixtures from the recordings of one part and lets systems loose on them."""

    def __init__(self, data_dir: Path, work: Path, part: str) -> None:
        self.part, self.codec, self._work = part, BandCodec(BandCodecConfig()), work
        self.engine = DataEngine(data_dir, self.codec, part=part, frames=FRAMES)

    @cached_property
    def systems(self) -> Systems:
        return Systems(self.codec, self._work / "earlier-weights")

    def shard(self, index: int) -> Shard:
        rng = np.random.default_rng([PARTS.index(self.part), index])
        drawn = [self._mixture(rng) for _ in range(MIXTURES)]
        a, b = torch.stack([a for a, _, _ in drawn]), torch.stack([b for _, b, _ in drawn])
        sounds = [row for _, _, row in drawn]
        systems = self.systems.seen if self.part != "eval" else self.systems.seen | self.systems.held_out
        names = list(systems)
        if self.part != "eval":
            names = [str(name) for name in rng.choice(names, OUTPUTS, replace=False)]
        silence, truth = torch.zeros_like(a), Truth(self.codec, a, b)
        outputs, scores, asked = [], [], []
        for name in names:
            which = rng.choice(3, MIXTURES, p=(0.45, 0.4, 0.15))
            rows = np.arange(MIXTURES)
            requests = Requests(
                torch.stack([a, b, silence])[which, rows],
                torch.stack([b, a, a + b])[which, rows],
                [sounds[row][i].draw(rng) for row, i in enumerate(which)],
                torch.tensor([sounds[row][i].kind == "speech" for row, i in enumerate(which)]),
            )
            made = systems[name](requests, rng)
            outputs.append(self.codec.encode(made[:, None]))
            scores.append(truth.scores(made))
            asked.append(torch.from_numpy(which))
        return Shard(
            self.codec.encode((a + b)[:, None]),
            torch.stack(outputs, dim=1),
            torch.stack(scores, dim=1),
            sounds,
            names,
            torch.stack(asked, dim=1),
        )

    def _mixture(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, list[Sound]]:
        """Two halves [N] of a mixture, and the sounds of its three descriptions."""
        engine = self.engine
        kinds = [str(k) for k in rng.permutation(KINDS)]
        three = rng.random() < 0.2
        if not three:
            absent = kinds.pop()
        drawn = [engine.source(kind, rng) for kind in kinds]
        spectra = self.codec.stft(torch.from_numpy(np.stack([wave for wave, _ in drawn])))
        levels = rng.uniform(-15, 15, len(kinds)) / 2 + rng.uniform(-40, -15)
        waves = [
            self.codec.istft(engine.shape(s, rng) * 10 ** (level / 20), engine.samples)
            for s, level in zip(spectra, levels, strict=True)
        ]
        found = [Sound(kind, group if kind == "sfx" else "") for kind, (_, group) in zip(kinds, drawn, strict=True)]
        sounds = described(found, None if three else absent, rng)
        return waves[0], sum(waves[2:], start=waves[1]), sounds


def described(found: list[Sound], absent: str | None, rng: np.random.Generator) -> list[Sound]:
    """Sounds of the three descriptions of a mixture of `found` [2 or 3]: the first, the rest, and one that is absent.

    absent: a kind that is not in the mixture, None if all are.
    """
    if absent is not None:
        return [*found, Sound(absent)]
    # The rest is asked for by what it is not; all kinds are there, so an effect by name is absent.
    return [found[0], Sound(f"not {found[0].kind}"), _other_effect(found, rng)]


def _other_effect(found: list[Sound], rng: np.random.Generator) -> Sound:
    """An effect with a name that is not the one in the mixture."""
    present = {sound.label for sound in found}
    labels = [label for label in prompts.LABEL_PHRASES if label not in present]
    return Sound("effect", labels[rng.integers(len(labels))])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--part", choices=PARTS, default="train")
    parser.add_argument("--shards", type=int, default=60)
    args = parser.parse_args()
    maker = Maker(args.data_dir, args.out, args.part)
    folder = args.out / args.part
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:05d}.safetensors" for i in range(args.shards)]
    missing = [(i, path) for i, path in enumerate(paths) if not path.exists()]
    with torch.inference_mode():
        for i, path in tqdm(missing, desc=folder.name, unit="shard", mininterval=10, disable=not missing):
            maker.shard(i).save(path)
    print(f"{args.shards} shards in {folder}")


if __name__ == "__main__":
    main()
