"""A model and its options: batches of segments in, stems or errors out. What runs on a GPU, without the cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .describe import describe
from .errors import AssetError
from .sam_audio.anchors import AnchorError, anchor_frames
from .sam_audio.codec import DACVAE
from .sam_audio.config import LongFormConfig, SolverConfig
from .sam_audio.long_form import Excerpt, check, exact_halo_frames, separate_long
from .sam_audio.model import SAMAudio
from .segments import FADE_FRAMES


@dataclass(frozen=True, eq=False)
class SegmentRequest:
    """One prompt on one segment.

    waveform: float32 [channels, samples] at the model's rate; sample 0 is at `start_frame * hop_length` of the
    recording, which has `total_frames` frames. Requests that share the array itself are encoded once.
    anchors: (token, start_seconds, end_seconds) in the recording's time.
    """

    item_id: str
    waveform: np.ndarray
    start_frame: int
    total_frames: int
    description: str
    anchors: tuple[tuple[str, float, float], ...] = ()


@dataclass(frozen=True, eq=False)
class SegmentStems:
    """float32 [channels, samples], as long as the waveform; the released codec makes one channel of any number."""

    target: np.ndarray
    residual: np.ndarray


class Separator:
    """Holds a model on one device.

    model: as `SAMAudio.from_pretrained`. device: "auto" takes a GPU where there is one. solver: the configuration's
    when None. window_batch: multi-diffusion windows an evaluation; bounds the memory of the network.

    `version` is a hash of configuration, solver and weights: what stems depend on besides their requests.
    """

    def __init__(
        self,
        model: str = "tiny",
        device: str = "auto",
        solver: SolverConfig | None = None,
        window_batch: int = 16,
    ) -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = SAMAudio.from_pretrained(model, device=device)
        self.solver = solver or self._model.config.solver
        self.window_batch = window_batch
        self.version = describe(model, self.solver).version
        self._model.transformer.set_heads_first(True)
        if isinstance(self._model.audio_codec, DACVAE):
            self._model.audio_codec.fold_weight_norm()

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
        return exact_halo_frames(self._model, FADE_FRAMES, self.solver)

    def __call__(self, requests: Sequence[SegmentRequest]) -> list[SegmentStems | AssetError]:
        """Stems of every request, in order; a request that cannot be processed gives its AssetError instead."""
        waveforms = {id(request.waveform): request.waveform for request in requests}
        tensors = {key: _tensor(waveform) for key, waveform in waveforms.items()}
        results: dict[int, SegmentStems | AssetError] = {}
        excerpts: dict[int, Excerpt] = {}
        for i, request in enumerate(requests):
            waveform = tensors[id(request.waveform)]
            excerpt = waveform if isinstance(waveform, AssetError) else self._excerpt(request, waveform)
            if isinstance(excerpt, AssetError):
                results[i] = excerpt
            else:
                excerpts[i] = excerpt
        stems = separate_long(self._model, list(excerpts.values()), solver=self.solver, window_batch=self.window_batch)
        for i, pair in zip(excerpts, stems, strict=True):
            target, residual = pair.numpy()
            results[i] = SegmentStems(target, residual)
        return [results[i] for i in range(len(requests))]

    def _excerpt(self, request: SegmentRequest, waveform: torch.Tensor) -> Excerpt | AssetError:
        excerpt = Excerpt(
            key=request.item_id,
            waveform=waveform,
            description=request.description,
            anchors=tuple(request.anchors),
            start_frame=request.start_frame,
            total_frames=request.total_frames,
        )
        try:
            for anchor in request.anchors:
                anchor_frames(anchor, self.sample_rate, self.hop_length)
        except (AnchorError, TypeError) as error:
            return AssetError(
                "bad_anchor", str(error), "give ('+' or '-', start_seconds, end_seconds)", field="anchors"
            )
        try:
            check(excerpt, self.hop_length, self.long_form)
        except ValueError as error:
            return AssetError("bad_segment", str(error), "cut segments with a halo of at least one window")
        return excerpt


def _tensor(waveform: np.ndarray) -> torch.Tensor | AssetError:
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
