"""What a separator is asked, how it is to answer, and its answer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .errors import AssetError
from .judge_scores import JudgeScores
from .sam_audio.config import SolverConfig

Channels = Literal["auto", "mono", "each", "wiener"]
Residual = Literal["generated", "mixture_minus_target"]


@dataclass(frozen=True)
class SeparatorOptions:
    """What a separation does beside the plain one.

    solver: the configuration's when None. channels: `mono` mixes down; `each` separates every channel on its own, with
    the same noise; `wiener` turns the mono stems into a gain on every channel's spectrum; `auto` is what the codec does
    by itself, where that keeps every channel, else `wiener` (`mono` for a mono source). residual: as the model makes
    it, or the mixture less the target.
    predict_spans, skip_inactive: see `separate_long`. span_predictor: instead of the configuration's.
    judge: name or path of a judge, whose scores every result gets. candidates: as many are made, and the one that
    `ranker` scores highest is kept; with rerank_below only until one reaches that score. ranker: `judge`, `model` (what
    the model's configuration names) or `sound_activity` (agreement with the spans, given or predicted).
    """

    solver: SolverConfig | None = None
    channels: Channels = "auto"
    residual: Residual = "generated"
    predict_spans: bool = False
    skip_inactive: bool = False
    span_predictor: str | None = None
    judge: str | None = None
    candidates: int = 1
    ranker: Literal["judge", "model", "sound_activity"] = "judge"
    rerank_below: float | None = None
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True, eq=False)
class SegmentRequest:
    """One prompt on one segment.

    waveform: float32 [channels, samples] at the model's rate; sample 0 is at `start_frame * hop_length` of the
    recording, which has `total_frames` frames. Requests that share the array itself are encoded once.
    anchors: (token, start_seconds, end_seconds) in the recording's time. video: masked frames, one a latent frame, in
    groups uint8 [n, 3, H, W]; requests that share the object itself share its features.
    core: first and last (exclusive) frame of the recording that scores and spans are about; all when None.
    """

    item_id: str
    waveform: np.ndarray
    start_frame: int
    total_frames: int
    description: str
    anchors: tuple[tuple[str, float, float], ...] = ()
    video: Iterable[Tensor] | None = None
    core: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class SegmentStems:
    """float32 [channels, samples], as long as the waveform.

    spans: where the sound was predicted to be, in seconds of the recording, inside the core; None without prediction.
    scores: the judge's. candidates: how many were made. windows, windows_skipped: integrated and left out.
    """

    target: np.ndarray
    residual: np.ndarray
    spans: tuple[tuple[float, float], ...] | None = None
    scores: JudgeScores | None = None
    candidates: int = 1
    windows: int = 0
    windows_skipped: int = 0


def checked_tensor(waveform: np.ndarray) -> Tensor | AssetError:
    """A request's waveform as a tensor, or what is wrong with it."""
    if waveform.ndim != 2 or 0 in waveform.shape:
        return AssetError(
            "bad_segment",
            f"waveform has shape {list(waveform.shape)}, expected [channels, samples]",
            "check that the asset has audio in this stretch",
        )
    if not np.isfinite(waveform).all():
        return AssetError(
            "not_finite",
            "the decoded audio holds NaN or infinite samples",
            "re-encode the asset from its source",
        )
    return torch.from_numpy(np.require(waveform, np.float32, ["C", "W"]))
