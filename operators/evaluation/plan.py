"""What a run evaluates, as plain values: any process makes the same set, systems and metrics of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..sam_audio import SAMAudio
from ..sam_audio.band_codec import BandCodec
from ..sam_audio.config import BandCodecConfig
from ..sam_audio.training import baselines
from .items import EvaluationSet
from .musdb import EXCERPT_SECONDS
from .reference_free import METRICS, Metric, open_metrics
from .sets import open_set
from .systems import CodecOracle, Denoiser, Separator, StemFolder, System, Untouched

BASELINES = ("mixture", "deepfilternet3", "rnnoise", "oracle")


@dataclass(frozen=True)
class Plan:
    """Settings of an evaluation. Lists keep their order: the first system is the one the others are compared with.

    models: names as in `SAMAudio.from_pretrained`. spans: further variants of each model, of `systems.SPANS`.
    stems: (name, folder or URL) of other systems' targets. metrics: of `METRICS`.
    """

    set_name: str
    data: Path
    models: tuple[str, ...] = ("tiny",)
    spans: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ()
    stems: tuple[tuple[str, str], ...] = ()
    metrics: tuple[str, ...] = METRICS
    checkpoints: dict[str, str] = field(default_factory=dict)  # of judge, clap, aesthetics, imagebind
    settings: tuple[str, ...] = ()
    limit: int | None = None
    segments: Path | None = None
    excerpt_seconds: float = EXCERPT_SECONDS
    candidates: int = 1
    device: str = "cpu"
    revision: str | None = None

    def open_set(self) -> EvaluationSet:
        return open_set(
            self.set_name,
            self.data,
            settings=self.settings or None,
            limit=self.limit,
            segments=self.segments,
            excerpt_seconds=self.excerpt_seconds,
        )

    def open_systems(self) -> list[System]:
        """Raises CheckpointError, SetError, or ImportError where a baseline's package is missing."""
        found: list[System] = []
        for name in self.models:
            model = SAMAudio.from_pretrained(name, device=self.device, revision=self.revision)
            short = name.rstrip("/").rpartition("/")[2] or name
            found += [
                Separator(model, name=short, spans=spans, candidates=self.candidates) for spans in ("item", *self.spans)
            ]
        found += [StemFolder(name, folder) for name, folder in self.stems]
        return found + [open_baseline(name) for name in self.baselines]

    def open_metrics(self) -> tuple[list[Metric], dict[str, str]]:
        """What can be measured here, and why the rest cannot."""
        return open_metrics(self.metrics, device=self.device, **self.checkpoints)


def open_baseline(name: str) -> System:
    """One of `BASELINES`. Raises ValueError for another name, ImportError without the extra "train"."""
    if name == "mixture":
        return Untouched()
    if name == "deepfilternet3":
        return Denoiser("DeepFilterNet3", baselines.deepfilternet())
    if name == "rnnoise":
        return Denoiser("RNNoise", baselines.rnnoise())
    if name == "oracle":
        return CodecOracle(BandCodec(BandCodecConfig()))
    raise ValueError(f"unknown baseline {name!r}; known are {', '.join(BASELINES)}")


def pick_device(device: str) -> str:
    """ "auto" is the GPU where there is one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
