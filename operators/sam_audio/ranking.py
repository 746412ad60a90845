"""Choosing among candidates: every ranker gives each separated candidate of each item a score, higher is better.

The configurations are those of facebookresearch/sam-audio (`visual_ranker`, `text_ranker` in `config.json`). A ranker
loads nothing before its first call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torchaudio.functional
from torch import Tensor

from .config import ConfigError
from .ranking_activity import THRESHOLD_MODES, Overlap, Span, active_spans, overlap
from .ranking_clap import ClapRanker
from .ranking_imagebind import ImageBindRanker

RELEASED_JUDGE = "facebook/sam-audio-judge"


class Ranker(Protocol):
    def __call__(
        self,
        *,
        extracted_audio: Sequence[Tensor],
        input_audio: Sequence[Tensor],
        descriptions: Sequence[str],
        videos: Sequence[Tensor] | None,
        sample_rate: int,
        spans: Sequence[Sequence[Span]] | None = None,
    ) -> Tensor:
        """Scores [B, K], float32 on the candidates' device; the best candidate of an item has the highest.

        Args:
            extracted_audio: per item the K candidates, [K, samples].
            input_audio: per item the mixture once per candidate, [K, samples]; an expanded view costs nothing.
            descriptions: per item the text prompt.
            videos: per item the masked video, [frames, 3, H, W] uint8, spread evenly over the audio.
            sample_rate: of all audio, Hz.
            spans: per item the (start, end) in seconds where the sound is wanted.

        Raises ValueError for what a ranker needs and did not get, and the loader's errors on the first call.
        """
        ...

    def to(self, device: torch.device | str) -> Ranker:
        """Where the ranker's own model runs, now or once it is loaded."""
        ...


class Judge(Protocol):
    """What `JudgeRanker` needs of a judge model: scores [B, 4], the first column the overall one."""

    @property
    def sample_rate(self) -> int: ...

    def score(self, mixture: Sequence[Tensor], target: Sequence[Tensor], descriptions: Sequence[str]) -> Tensor: ...


class JudgeRanker:
    """The overall score of the SAM-Audio judge.

    `checkpoint_or_model_id` is a hub name, folder or URL of a judge; `judge` is a loaded one instead.
    """

    def __init__(
        self,
        checkpoint_or_model_id: str = RELEASED_JUDGE,
        *,
        judge: Judge | None = None,
        device: torch.device | str = "cpu",
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        self.checkpoint_or_model_id = checkpoint_or_model_id
        self._judge = judge
        self._device = torch.device(device)
        self._token, self._cache_dir = token, cache_dir

    def to(self, device: torch.device | str) -> JudgeRanker:
        self._device = torch.device(device)
        if isinstance(self._judge, torch.nn.Module):
            self._judge.to(self._device)
        return self

    @torch.inference_mode()
    def __call__(
        self,
        *,
        extracted_audio: Sequence[Tensor],
        input_audio: Sequence[Tensor],
        descriptions: Sequence[str],
        videos: Sequence[Tensor] | None = None,
        sample_rate: int = 48_000,
        spans: Sequence[Sequence[Span]] | None = None,
    ) -> Tensor:
        count = check_candidates(extracted_audio, descriptions)
        judge = self._load()
        mixtures: list[Tensor] = []
        targets: list[Tensor] = []
        texts: list[str] = []
        for candidates, inputs, description in zip(extracted_audio, input_audio, descriptions, strict=True):
            rows = _resampled(candidates, sample_rate, judge.sample_rate)
            # The mixture is the same in every row: one tensor for all of them lets the judge encode it once.
            same = inputs.shape[0] == 1 or inputs.stride(0) == 0 or bool((inputs == inputs[:1]).all())
            given = list(_resampled(inputs[:1] if same else inputs, sample_rate, judge.sample_rate))
            mixtures += given * len(rows) if same else given
            targets += list(rows)
            texts += [description] * len(rows)
        overall = judge.score(mixtures, targets, texts)[:, 0]
        return overall.float().reshape(len(extracted_audio), count).to(extracted_audio[0].device)

    def _load(self) -> Judge:
        if self._judge is None:
            from .judge import SAMAudioJudgeModel

            self._judge = SAMAudioJudgeModel.from_pretrained(
                self.checkpoint_or_model_id, device=self._device, token=self._token, cache_dir=self._cache_dir
            )
        return self._judge


class SoundActivityRanker:
    """How well the spans where a candidate sounds agree with the spans asked for (`metric`: iou, recall or precision).

    Differs from the reference on purpose: it takes a candidate for one channel of a sound and gives one score an item,
    and nobody passes it spans. Here each candidate has its own score. An item without spans scores 0 throughout, so the
    first candidate stays.
    """

    def __init__(
        self, *, threshold_mode: str = "rel_to_max", sil_threshold: float = -40.0, metric: str = "iou"
    ) -> None:
        if threshold_mode not in THRESHOLD_MODES:
            raise ConfigError(
                f"sound_activity: threshold_mode must be one of {', '.join(THRESHOLD_MODES)}, got {threshold_mode!r}"
            )
        if metric not in Overlap._fields:
            raise ConfigError(f"sound_activity: metric must be one of {', '.join(Overlap._fields)}, got {metric!r}")
        self.threshold_mode, self.sil_threshold, self.metric = threshold_mode, sil_threshold, metric

    def to(self, device: torch.device | str) -> SoundActivityRanker:
        return self  # counts on the CPU

    def __call__(
        self,
        *,
        extracted_audio: Sequence[Tensor],
        input_audio: Sequence[Tensor] | None = None,
        descriptions: Sequence[str] | None = None,
        videos: Sequence[Tensor] | None = None,
        sample_rate: int = 48_000,
        spans: Sequence[Sequence[Span]] | None = None,
    ) -> Tensor:
        if spans is None:
            raise ValueError(
                "the sound_activity ranker needs the spans where the sound is wanted: give anchors, or "
                "predict_spans=True"
            )
        check_candidates(extracted_audio, spans)
        scores = [
            [self._score(candidate, sample_rate, wanted) for candidate in candidates]
            for candidates, wanted in zip(extracted_audio, spans, strict=True)
        ]
        return torch.tensor(scores, dtype=torch.float32, device=extracted_audio[0].device)

    def _score(self, candidate: Tensor, sample_rate: int, wanted: Sequence[Span]) -> float:
        heard = active_spans(
            candidate, sample_rate, threshold_mode=self.threshold_mode, sil_threshold=self.sil_threshold
        )
        return float(getattr(overlap(heard, [(start, end) for start, end in wanted]), self.metric))


class EnsembleRanker:
    """The weighted sum of several rankers' scores."""

    def __init__(self, rankers: Sequence[tuple[Ranker, float]]) -> None:
        if not rankers:
            raise ConfigError("ensemble: rankers is empty; name at least one ranker with its weight")
        self.rankers = list(rankers)

    def to(self, device: torch.device | str) -> EnsembleRanker:
        for ranker, _ in self.rankers:
            ranker.to(device)
        return self

    def __call__(
        self,
        *,
        extracted_audio: Sequence[Tensor],
        input_audio: Sequence[Tensor],
        descriptions: Sequence[str],
        videos: Sequence[Tensor] | None = None,
        sample_rate: int = 48_000,
        spans: Sequence[Sequence[Span]] | None = None,
    ) -> Tensor:
        scores = [
            weight
            * ranker(
                extracted_audio=extracted_audio,
                input_audio=input_audio,
                descriptions=descriptions,
                videos=videos,
                sample_rate=sample_rate,
                spans=spans,
            )
            for ranker, weight in self.rankers
        ]
        return torch.stack(scores).sum(0)


def _resampled(audio: Tensor, rate: int, wanted: int) -> Tensor:
    audio = audio.float()
    return audio if rate == wanted else torchaudio.functional.resample(audio, rate, wanted)


def check_candidates(extracted_audio: Sequence[Tensor], others: Sequence[Any]) -> int:
    """K, the number of candidates; ValueError unless every item has as many, and `others` has one entry an item."""
    shapes = [list(candidates.shape) for candidates in extracted_audio]
    if not shapes or any(len(shape) != 2 or shape[0] != shapes[0][0] for shape in shapes):
        raise ValueError(f"candidates must be [K, samples] with one K for all items, got {shapes}")
    if len(others) != len(shapes):
        raise ValueError(f"{len(shapes)} items have candidates, but {len(others)} have a prompt")
    return shapes[0][0]


def build_ranker(
    config: Mapping[str, Any] | None,
    *,
    device: torch.device | str = "cpu",
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> Ranker | None:
    """The ranker of a config dict such as {"kind": "judge"}; None for None. Nothing is loaded yet.

    Kinds and keys: `judge` {checkpoint_or_model_id}, `clap` {checkpoint}, `imagebind` {checkpoint}, `sound_activity`
    {threshold_mode, sil_threshold, metric}, `ensemble` {rankers: {name: [ranker, weight]}}. Raises ConfigError.
    """
    if config is None:
        return None
    if not isinstance(config, Mapping):
        raise ConfigError(f"a ranker is a mapping with a `kind`, got {config!r}")
    options = {key: value for key, value in config.items() if key != "kind"}
    kind = config.get("kind")
    loading = {"device": device, "token": token, "cache_dir": cache_dir}
    if kind == "ensemble":
        members = _options(kind, options, ("rankers",)).get("rankers")
        if not isinstance(members, Mapping):
            raise ConfigError("ensemble: rankers must be a mapping of name to [ranker, weight]")
        return EnsembleRanker([_member(name, entry, loading) for name, entry in members.items()])
    if kind not in _KINDS:
        raise ConfigError(f"unknown ranker kind {kind!r}; known are {', '.join([*_KINDS, 'ensemble'])}")
    build, known, loads = _KINDS[kind]
    given = {key: value for key, value in _options(kind, options, known).items() if value is not None}
    return build(**given, **(loading if loads else {}))


# kind -> class, its configuration keys, whether it loads a model.
_KINDS: dict[str, tuple[Callable[..., Ranker], tuple[str, ...], bool]] = {
    "judge": (JudgeRanker, ("checkpoint_or_model_id",), True),
    "clap": (ClapRanker, ("checkpoint",), True),
    "imagebind": (ImageBindRanker, ("checkpoint",), True),
    "sound_activity": (SoundActivityRanker, ("threshold_mode", "sil_threshold", "metric"), False),
}


def _options(kind: str, options: dict[str, Any], known: tuple[str, ...]) -> dict[str, Any]:
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConfigError(f"ranker {kind!r}: unknown key(s) {', '.join(unknown)}; known are {', '.join(known)}")
    return options


def _member(name: str, entry: Any, loading: dict[str, Any]) -> tuple[Ranker, float]:
    pair = list(entry) if isinstance(entry, Sequence) and not isinstance(entry, str) else []
    if len(pair) != 2 or isinstance(pair[1], bool) or not isinstance(pair[1], int | float):
        raise ConfigError(f"ensemble: ranker {name!r} must be [ranker, weight], got {entry!r}")
    ranker = build_ranker(pair[0], **loading)
    if ranker is None:
        raise ConfigError(f"ensemble: ranker {name!r} is null; give it a `kind`, or leave it out")
    return ranker, float(pair[1])
