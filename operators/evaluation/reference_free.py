"""Metrics that need no truth: models that listen. Each is optional, and says what it lacks where it cannot be had."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torchaudio.functional

from ..judge_scores import COLUMNS
from ..sam_audio.judge import SAMAudioJudgeModel
from ..sam_audio.ranking_clap import ClapRanker
from ..sam_audio.ranking_imagebind import ImageBindRanker
from ..scoring import Extract, judge_scores
from .items import Item
from .metrics import Sdr, SiSdr

SILENT = 1e-6  # peak: models that listen are not asked about digital silence


class Metric(Protocol):
    """`columns` are those of a score; a call leaves out what does not apply to the item."""

    @property
    def name(self) -> str: ...

    @property
    def columns(self) -> tuple[str, ...]: ...

    def __call__(self, item: Item, estimate: np.ndarray) -> dict[str, float]: ...


class JudgeMetric:
    """SAM-Audio's judge, about 1 to 5: overall, recall, precision, faithfulness."""

    name = "judge"
    columns = COLUMNS

    def __init__(self, judge: str, device: str = "cpu") -> None:
        self.judge = SAMAudioJudgeModel.from_pretrained(judge, device=device)

    def __call__(self, item: Item, estimate: np.ndarray) -> dict[str, float]:
        rate = self.judge.sample_rate
        mixture, target = (_resampled(x, item.sample_rate, rate) for x in (item.mixture, estimate))
        scores = judge_scores(self.judge, Extract(mixture, target, item.description, rate))
        return {column: float(getattr(scores, column.removeprefix("judge_"))) for column in self.columns}


class ClapMetric:
    """Cosine of CLAP's embeddings of the estimate and the description (Wu et al., 2023)."""

    name = "clap"
    columns = ("clap",)

    def __init__(self, device: str = "cpu", checkpoint: str | None = None) -> None:
        self.ranker = ClapRanker(checkpoint, device=device)
        self.ranker.text(["speech"])  # rankers load at their first call: what is missing shows now

    def __call__(self, item: Item, estimate: np.ndarray) -> dict[str, float]:
        if not item.description:
            return {}
        score = self.ranker(
            extracted_audio=[torch.from_numpy(estimate)[None]],
            descriptions=[item.description],
            sample_rate=item.sample_rate,
        )
        return {"clap": float(score)}


class ImageBindMetric:
    """Cosine of ImageBind's embeddings of the estimate and the masked video (Girdhar et al., 2023)."""

    name = "imagebind"
    columns = ("imagebind",)

    def __init__(self, device: str = "cpu", checkpoint: str | None = None) -> None:
        importlib.import_module("imagebind")
        self.ranker = ImageBindRanker(checkpoint, device=device)

    def __call__(self, item: Item, estimate: np.ndarray) -> dict[str, float]:
        if item.masked_video is None:
            return {}
        score = self.ranker(
            extracted_audio=[torch.from_numpy(estimate)[None]],
            videos=[item.masked_video],
            sample_rate=item.sample_rate,
        )
        return {"imagebind": float(score)}


class AestheticsMetric:
    """Audiobox aesthetics (Tjandra et al., 2025), 1 to 10: content enjoyment and usefulness, production complexity
    and quality. The package's code and weights are CC-BY 4.0."""

    name = "aesthetics"
    columns = ("aesthetics_ce", "aesthetics_cu", "aesthetics_pc", "aesthetics_pq")

    def __init__(self, checkpoint: str | None = None) -> None:
        self.predictor = importlib.import_module("audiobox_aesthetics.infer").AesPredictor(
            checkpoint_pth=checkpoint, data_col="wav"
        )

    def __call__(self, item: Item, estimate: np.ndarray) -> dict[str, float]:
        wave = {"wav": torch.from_numpy(estimate)[None], "sample_rate": item.sample_rate}
        found: dict[str, Any] = self.predictor.forward([wave])[0]
        return {column: float(found[column[-2:].upper()]) for column in self.columns}


class DnsmosMetric:
    """DNSMOS P.835 and P.808 (Reddy et al., 2021 and 2022), 1 to 5, of speech and nothing else.

    speechmos carries Microsoft's models in its wheel. Clips under 9 s are repeated, as in the original.
    """

    name = "dnsmos"
    columns = ("dnsmos_ovrl", "dnsmos_sig", "dnsmos_bak", "dnsmos_p808")
    sample_rate = 16_000

    def __init__(self) -> None:
        self.dnsmos = importlib.import_module("speechmos.dnsmos")

    def __call__(self, item: Item, estimate: np.ndarray) -> dict[str, float]:
        if item.kind != "speech" or np.abs(estimate).max(initial=0.0) < SILENT:
            return {}
        wave = _resampled(estimate, item.sample_rate, self.sample_rate).numpy().clip(-1, 1)
        found = self.dnsmos.run(wave, self.sample_rate)
        return {column: float(found[f"{column.removeprefix('dnsmos_')}_mos"]) for column in self.columns}


_INSTALL = {
    "sdr": "pip install -e '.[evaluate]'",
    "dnsmos": "pip install -e '.[evaluate]'",
    "aesthetics": "pip install audiobox-aesthetics",
    "imagebind": "install it from facebookresearch/ImageBind (non-commercial licence)",
}
METRICS = ("si_sdr", "sdr", "judge", "clap", "aesthetics", "dnsmos", "imagebind")


def open_metrics(
    names: Sequence[str],
    *,
    judge: str = "facebook/sam-audio-judge",
    clap: str | None = None,
    aesthetics: str | None = None,
    imagebind: str | None = None,
    device: str = "cpu",
) -> tuple[list[Metric], dict[str, str]]:
    """Load metrics by name; the second result says why each of the others cannot be had here.

    clap, aesthetics, imagebind: checkpoints, instead of those that the packages fetch. Raises ValueError for a name
    that is none of `METRICS`.
    """
    build: dict[str, Any] = {
        "si_sdr": SiSdr,
        "sdr": Sdr,
        "judge": lambda: JudgeMetric(judge, device),
        "clap": lambda: ClapMetric(device, clap),
        "aesthetics": lambda: AestheticsMetric(aesthetics),
        "dnsmos": DnsmosMetric,
        "imagebind": lambda: ImageBindMetric(device, imagebind),
    }
    unknown = [name for name in names if name not in build]
    if unknown:
        raise ValueError(f"unknown metric {unknown[0]!r}; known are {', '.join(METRICS)}")
    metrics: list[Metric] = []
    missing: dict[str, str] = {}
    for name in names:
        try:
            metrics.append(build[name]())
        except ImportError as error:
            missing[name] = f"{error}: {_INSTALL.get(name, 'install it')}"
        # Weights that cannot be fetched: CheckpointError, OSError, or what the hub's client raises.
        except Exception as error:
            missing[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300]}"
    return metrics, missing


def _resampled(wave: np.ndarray, rate: int, wanted: int) -> torch.Tensor:
    found = torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32))
    return found if rate == wanted else torchaudio.functional.resample(found, rate, wanted)
