"""How well spans are found: frames and seconds of a description's sound, and frames of sounds that are not there."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..sam_audio.band_codec import BandCodec
from ..sam_audio.training.band_sources import activity
from .items import EvaluationSet, Item

SEGMENT_FRAMES = 25  # a second
# Of a gated source: a click is no sound of its own.
_FADE_SECONDS = 0.02


@dataclass
class Counts:
    """Decisions about frames or segments, added up over recordings."""

    hits: int = 0
    false_alarms: int = 0
    misses: int = 0
    total: int = 0

    def add(self, found: Tensor, truth: Tensor) -> None:
        """Boolean tensors of one shape."""
        self.hits += int((found & truth).sum())
        self.false_alarms += int((found & ~truth).sum())
        self.misses += int((truth & ~found).sum())
        self.total += truth.numel()

    @property
    def precision(self) -> float:
        """Of what was found, the share that is there; NaN where nothing was found."""
        return self.hits / (self.hits + self.false_alarms) if self.hits + self.false_alarms else float("nan")

    @property
    def recall(self) -> float:
        """Of what is there, the share that was found; NaN where nothing is there."""
        return self.hits / (self.hits + self.misses) if self.hits + self.misses else float("nan")

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 1 where nothing was to be found and nothing was."""
        both = 2 * self.hits + self.false_alarms + self.misses
        return 2 * self.hits / both if both else 1.0

    @property
    def false_alarm_rate(self) -> float:
        """Of what is silent, the share that was found."""
        silent = self.total - self.hits - self.misses
        return self.false_alarms / silent if silent else float("nan")


def segments(active: Tensor) -> Tensor:
    """Frames [T] -> seconds [ceil(T / 25)]: True where any frame of the second is (segment-based, as in DCASE)."""
    padded = torch.nn.functional.pad(active, (0, -len(active) % SEGMENT_FRAMES))
    return padded.view(-1, SEGMENT_FRAMES).any(1)


def true_activity(wave: np.ndarray, codec: BandCodec) -> Tensor:
    """Samples [N] at the codec's rate -> True on latent frames that are within 40 dB of the loudest one."""
    power = codec.band_power(codec.stft(torch.from_numpy(wave))).sum(-1)
    return activity(power)


class Gated:
    """The items of a set with both sources coming and going, music and steady noises too: stretches and pauses of
    0.4 to 4 s, each source on its own, so that where the target is heard is worth knowing. Settings get SUFFIX."""

    SUFFIX = ", gated"

    def __init__(self, items: EvaluationSet) -> None:
        self.items, self.name = items, f"{items.name}, sources that come and go"
        self.notes = [f"{note}; each gated, in turns of 0.4 to 4 s" for note in items.notes]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Item:
        item = self.items[index]
        if item.target is None or item.other is None:
            raise ValueError(f"{item.item_id}: only mixes of known sources can be gated")
        rng = np.random.default_rng([3, index])
        target, other = (
            (wave * gate(len(wave), item.sample_rate, rng)).astype(np.float32) for wave in (item.target, item.other)
        )
        return replace(
            item,
            item_id=f"{item.item_id}-gated",
            setting=item.setting + self.SUFFIX,
            mixture=target + other,
            target=target,
            other=other,
        )


def gate(samples: int, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Gain [samples] of 0 and 1 in turns of 0.4 to 4 s, with short fades; heard for at least one turn."""
    gain = np.zeros(samples, np.float32)
    at, on = 0, bool(rng.random() < 0.5)
    while at < samples or not gain.any():
        length = int(np.exp(rng.uniform(np.log(0.4), np.log(4.0))) * sample_rate)
        at = 0 if at >= samples else at
        gain[at : at + length] = on
        at, on = at + length, not on
    # Linear fades: a running mean.
    fade = int(_FADE_SECONDS * sample_rate)
    sums = np.cumsum(np.pad(gain.astype(np.float64), (fade // 2 + 1, fade - fade // 2 - 1), mode="edge"))
    mean = (sums[fade:] - sums[:-fade]) / fade
    return np.concatenate([gain[: samples - len(mean)], mean])[:samples].astype(np.float32)
