"""A model and its options: batches of segments in, stems or errors out. What runs on a GPU, without the cluster."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from .describe import describe
from .errors import AssetError
from .judge_scores import JudgeScores
from .requests import SegmentRequest, SegmentStems, SeparatorOptions, checked_tensor
from .sam_audio import long_form
from .sam_audio.anchors import AnchorError, anchor_frames
from .sam_audio.band_codec import BandCodec
from .sam_audio.codec import DACVAE
from .sam_audio.config import LongFormConfig
from .sam_audio.judge import SAMAudioJudgeModel
from .sam_audio.long_form import Encoded, Excerpt
from .sam_audio.model import SAMAudio
from .sam_audio.ranking import Judge, Ranker, SoundActivityRanker
from .scoring import Extract, judge_scores, ranker_score
from .segments import FADE_FRAMES
from .stereo import wiener

log = logging.getLogger(__name__)
T = TypeVar("T")

__all__ = ["SegmentRequest", "SegmentStems", "Separator", "SeparatorOptions"]


@dataclass
class _Job:
    """A request on its way: one excerpt, or one a channel; the best candidate so far."""

    request: SegmentRequest
    waveform: Tensor
    base: Excerpt
    excerpts: list[Excerpt]
    latents: list[Tensor] | None = None
    target: Tensor | None = None
    scores: JudgeScores | None = None
    score: float = -float("inf")
    tried: int = 0


class Separator:
    """Holds a model on one device.

    model: as `SAMAudio.from_pretrained`. device: "auto" takes a GPU where there is one. window_batch: multi-diffusion
    windows an evaluation; bounds the memory of the network, and is halved when that does not suffice. vision: whether
    requests with video will come; without it the image tower is not loaded.

    `version` is a hash of configuration, solver and weights: what stems depend on besides requests and options.
    """

    def __init__(
        self,
        model: str = "tiny",
        device: str = "auto",
        options: SeparatorOptions | None = None,
        window_batch: int = 16,
        vision: bool = True,
    ) -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.options = options = options or SeparatorOptions()
        overrides: dict[str, Any] = {"span_predictor": options.span_predictor} if options.span_predictor else {}
        self._model = SAMAudio.from_pretrained(model, device=device, dtype=options.dtype, vision=vision, **overrides)
        self.solver = options.solver or self._model.config.solver
        self.window_batch = window_batch
        self.version = describe(model, self.solver).version
        self._model.transformer.set_heads_first(True)
        if isinstance(self._model.audio_codec, DACVAE):
            self._model.audio_codec.fold_weight_norm()
        self._judge: Judge | None = None
        if options.judge is not None:
            self._judge = SAMAudioJudgeModel.from_pretrained(options.judge, device=device)
        self._ranker = self._make_ranker()

    @property
    def sample_rate(self) -> int:
        return self._model.sample_rate

    @property
    def hop_length(self) -> int:
        return self._model.config.audio_codec.hop_length

    @property
    def long_form(self) -> LongFormConfig:
        return self._model.config.long_form

    @property
    def halo_frames(self) -> int:
        """Halo with which segments agree exactly where they are joined, wherever the cuts fall."""
        return long_form.exact_halo_frames(
            self._model, FADE_FRAMES, self.solver, predict_spans=self.options.predict_spans
        )

    def __call__(self, requests: Sequence[SegmentRequest]) -> list[SegmentStems | AssetError]:
        """Stems of every request, in order; a request that cannot be processed gives its AssetError instead."""
        waveforms: dict[int, Tensor | AssetError] = {}
        channels: dict[int, list[Tensor]] = {}
        results: list[SegmentStems | AssetError | None] = []
        jobs: dict[int, _Job] = {}
        for i, request in enumerate(requests):
            key = id(request.waveform)
            if key not in waveforms:
                waveforms[key] = wave = checked_tensor(request.waveform)
                if not isinstance(wave, AssetError):
                    # One object a channel, whatever the number of prompts: that is what shares their encoding.
                    channels[key] = self._inputs(wave)
            wave = waveforms[key]
            job = wave if isinstance(wave, AssetError) else self._job(request, wave, channels[key])
            results.append(job if isinstance(job, AssetError) else None)
            if not isinstance(job, AssetError):
                jobs[i] = job
        if jobs:
            self._separate(list(jobs.values()))
        for i, job in jobs.items():
            results[i] = self._stems(job)
        return [result for result in results if result is not None]

    def _inputs(self, wave: Tensor) -> list[Tensor]:
        """What is separated: the waveform with all its channels, its mono mix, or every channel on its own."""
        match self._channels(wave):
            case "each":
                return list(wave[:, None])
            case "native":
                return [wave]
            case _:
                return [wave.mean(0, keepdim=True)]

    def _channels(self, wave: Tensor) -> Literal["native", "mono", "each", "wiener"]:
        if self.options.channels != "auto":
            return self.options.channels
        if isinstance(self._model.audio_codec, BandCodec):
            return "native"
        return "mono" if wave.shape[0] == 1 else "wiener"

    def _job(self, request: SegmentRequest, wave: Tensor, inputs: list[Tensor]) -> _Job | AssetError:
        excerpt = Excerpt(
            key=request.item_id,
            waveform=inputs[0],
            description=request.description,
            anchors=tuple(request.anchors),
            start_frame=request.start_frame,
            total_frames=request.total_frames,
            video=request.video,
        )
        try:
            for anchor in request.anchors:
                anchor_frames(anchor, self.sample_rate, self.hop_length)
        except (AnchorError, TypeError) as error:
            return AssetError(
                "bad_anchor", str(error), "give ('+' or '-', start_seconds, end_seconds)", field="anchors"
            )
        if request.video is not None and not hasattr(self._model, "vision_encoder"):
            return AssetError(
                "no_vision", "this model takes no masked video", "use a model with a vision encoder", field="mask_uri"
            )
        try:
            long_form.check(excerpt, self.hop_length, self.long_form)
        except ValueError as error:
            return AssetError("bad_segment", str(error), "cut segments with a halo of at least one window")
        base = excerpt if len(inputs) == 1 else replace(excerpt, waveform=wave)
        return _Job(request, wave, base, [replace(excerpt, waveform=channel) for channel in inputs])

    def _separate(self, jobs: list[_Job]) -> None:
        """Solve the candidates of every job; leaves the chosen one in it."""
        options, model, encoded = self.options, self._model, None
        if options.predict_spans:
            # On all channels together, also where each is then separated on its own.
            bases = [job.base for job in jobs]
            encoded = heard = long_form.encode(model, bases)
            spanned = self._fitting(
                lambda batch: long_form.with_predicted_spans(
                    model, bases, heard, window_batch=batch, skip_inactive=options.skip_inactive
                )
            )
            for job, base in zip(jobs, spanned, strict=True):
                job.base = base
                job.excerpts = [replace(base, waveform=e.waveform) for e in job.excerpts]
        encoded = long_form.encode(model, [e for job in jobs for e in job.excerpts], encoded)
        for candidate in range(options.candidates):
            waiting = [job for job in jobs if self._wants_another(job)]
            if not waiting:
                return
            self._candidate(waiting, encoded, candidate)

    def _wants_another(self, job: _Job) -> bool:
        # Where nothing is integrated, candidates do not differ.
        windows, skipped = long_form.window_counts(self._model, job.base)
        if job.tried and skipped == windows:
            return False
        return not job.tried or self.options.rerank_below is None or job.score < self.options.rerank_below

    def _candidate(self, jobs: list[_Job], encoded: Encoded, candidate: int) -> None:
        excerpts = [e for job in jobs for e in job.excerpts]
        solved = iter(
            self._fitting(
                lambda batch: long_form.solve(
                    self._model, excerpts, encoded, solver=self.solver, window_batch=batch, candidate=candidate
                )
            )
        )
        for job in jobs:
            latents = [next(solved) for _ in job.excerpts]
            job.tried += 1
            if self.options.candidates == 1:
                job.latents = latents
                continue
            # Of a candidate that loses only the target is decoded, and one candidate is held beside the best.
            target = self._decode(job, latents, "target")
            score, scores = self._score(job, target)
            if score > job.score or job.latents is None:
                job.latents, job.target, job.score, job.scores = latents, target, score, scores

    def _fitting(self, work: Callable[[int], T]) -> T:
        """`work` with the window batch, or half of it and so on when the device has no memory for it."""
        while True:
            try:
                return work(self.window_batch)
            except torch.OutOfMemoryError:
                if self.window_batch == 1:
                    raise
                torch.cuda.empty_cache()
                self.window_batch //= 2
                log.warning("out of memory on the device: %d windows an evaluation from now on", self.window_batch)

    def _decode(self, job: _Job, latents: list[Tensor], stem: str) -> Tensor:
        parts = [long_form.decode(self._model, e, z, (stem,))[stem] for e, z in zip(job.excerpts, latents, strict=True)]
        return torch.cat(parts)

    def _stems(self, job: _Job) -> SegmentStems:
        assert job.latents is not None
        how = self._channels(job.waveform)
        if job.target is None:
            made = [long_form.decode(self._model, e, z) for e, z in zip(job.excerpts, job.latents, strict=True)]
            target, residual = (torch.cat([m[name] for m in made]) for name in ("target", "residual"))
        else:
            target, residual = job.target, self._decode(job, job.latents, "residual")
        if self._judge is not None and job.scores is None:
            job.scores = judge_scores(self._judge, self._extract(job, target))
        mixture = job.waveform if how != "mono" else job.waveform.mean(0, keepdim=True)
        if how == "wiener":
            target = wiener(
                target[0],
                residual[0],
                mixture,
                sample_rate=self.sample_rate,
                start=job.request.start_frame * self.hop_length,
                device=self._model.device,
            )
        if how == "wiener" or self.options.residual == "mixture_minus_target":
            residual = mixture - target
        windows, skipped = long_form.window_counts(self._model, job.base)
        return SegmentStems(
            target.numpy(),
            residual.numpy(),
            spans=self._spans(job),
            scores=job.scores,
            candidates=job.tried,
            windows=windows,
            windows_skipped=skipped,
        )

    def _spans(self, job: _Job) -> tuple[tuple[float, float], ...] | None:
        """Predicted spans inside the core, in seconds of the recording."""
        if not self.options.predict_spans or job.request.anchors or not job.request.description.strip():
            return None
        first, last = self._core(job.request)
        found = []
        for anchor in job.base.anchors:
            span = anchor_frames(anchor, self.sample_rate, self.hop_length)
            start, stop = max(span.start, first), min(span.stop, last)
            if start < stop:
                found.append((start * self.hop_length / self.sample_rate, stop * self.hop_length / self.sample_rate))
        return tuple(found)

    def _core(self, request: SegmentRequest) -> tuple[int, int]:
        frames = -(-request.waveform.shape[-1] // self.hop_length)
        return request.core or (request.start_frame, request.start_frame + frames)

    def _extract(self, job: _Job, target: Tensor) -> Extract:
        """The core as rankers and judge hear it: mono."""
        first, last = self._core(job.request)
        begin = (first - job.request.start_frame) * self.hop_length
        core = slice(begin, begin + (last - first) * self.hop_length)
        spans = None
        if self.options.ranker == "sound_activity" and self._ranker is not None:
            at = first * self.hop_length / self.sample_rate
            length = (last - first) * self.hop_length / self.sample_rate
            plus = [(max(s - at, 0.0), min(e - at, length)) for token, s, e in job.base.anchors if token == "+"]
            spans = tuple((s, e) for s, e in plus if s < e)
        device = self._model.device
        return Extract(
            job.waveform.mean(0)[core].to(device),
            target.mean(0)[core].to(device),
            job.request.description,
            self.sample_rate,
            spans,
        )

    def _score(self, job: _Job, target: Tensor) -> tuple[float, JudgeScores | None]:
        extract = self._extract(job, target)
        if self._ranker is not None:
            return ranker_score(self._ranker, extract), None
        assert self._judge is not None
        scores = judge_scores(self._judge, extract)
        return scores.overall, scores

    def _make_ranker(self) -> Ranker | None:
        """What chooses among candidates; None where that is the judge, or there is nothing to choose."""
        options = self.options
        if options.candidates == 1:
            return None
        if options.ranker == "sound_activity":
            return SoundActivityRanker()
        if options.ranker == "judge":
            if self._judge is None:
                raise ValueError("candidates > 1 with ranker 'judge' needs a judge; name one, or choose another ranker")
            return None
        ranker = self._model.text_ranker
        if ranker is None:
            raise ValueError("candidates > 1 with ranker 'model', and the model's config has no text_ranker")
        return ranker
