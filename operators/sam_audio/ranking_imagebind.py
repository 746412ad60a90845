"""ImageBind as a ranker for visual prompts: how close a candidate's sound is to the masked video.

ImageBind (facebookresearch/ImageBind) is not a dependency: its code and its weights are for non-commercial use only
(CC-BY-NC 4.0), so whoever wants this ranker installs it. Sound and pictures are prepared here, to the numbers of its
`imagebind/data.py`; the model is its `imagebind_huge`.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchaudio.compliance.kaldi
import torchaudio.functional
from torch import Tensor

from .ranking_activity import Span
from .sources import CheckpointError, open_files

CLIP_SECONDS = 2
AUDIO_RATE, AUDIO_CLIPS, MEL_BANDS, MEL_FRAMES = 16_000, 3, 128, 204
AUDIO_MEAN, AUDIO_STD = -4.268, 9.138
VIDEO_CLIPS, FRAMES_PER_CLIP, SIDE = 5, 2, 224
VIDEO_MEAN, VIDEO_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_MIN_SAMPLES = 400  # one 25 ms frame of the filter bank

# {"audio": [N, clips, 1, 128, 204], "vision": [B, clips, 3, 2, 224, 224]} -> embeddings [N, dim] and [B, dim].
Model = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


class ImageBindRanker:
    """Cosine of ImageBind's embeddings of candidate and masked video.

    `checkpoint` is a state dict of imagebind_huge (path, URL); without one the package fetches its own. A loaded
    `model` takes the place of both.
    """

    def __init__(
        self,
        checkpoint: str | Path | None = None,
        *,
        model: Model | None = None,
        device: torch.device | str = "cpu",
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self._model = model
        self._device = torch.device(device)
        self._token, self._cache_dir = token, cache_dir

    def to(self, device: torch.device | str) -> ImageBindRanker:
        self._device = torch.device(device)
        if isinstance(self._model, torch.nn.Module):
            self._model.to(self._device)
        return self

    @torch.inference_mode()
    def __call__(
        self,
        *,
        extracted_audio: Sequence[Tensor],
        input_audio: Sequence[Tensor] | None = None,
        descriptions: Sequence[str] | None = None,
        videos: Sequence[Tensor] | None,
        sample_rate: int = 48_000,
        spans: Sequence[Sequence[Span]] | None = None,
    ) -> Tensor:
        if videos is None:
            raise ValueError("the imagebind ranker needs masked videos; use a text ranker where there are none")
        if self._model is None:
            self._model = _load(self.checkpoint, self._device, self._token, self._cache_dir)
        scores = []
        for candidates, video in zip(extracted_audio, videos, strict=True):
            sound = torch.stack([audio_clips(candidate, sample_rate) for candidate in candidates])
            seconds = candidates.shape[-1] / sample_rate
            pictures = video_clips(video, seconds).unsqueeze(0)
            found = self._model({"audio": sound.to(self._device), "vision": pictures.to(self._device)})
            audio, vision = (F.normalize(found[name].float(), dim=-1) for name in ("audio", "vision"))
            scores.append(audio @ vision[0])
        return torch.stack(scores).to(extracted_audio[0].device)


def audio_clips(audio: Tensor, sample_rate: int) -> Tensor:
    """[n] -> [3, 1, 128, 204]: three clips of two seconds from start to end, as normalised log mel power."""
    audio = audio.detach().float().cpu()
    if sample_rate != AUDIO_RATE:
        audio = torchaudio.functional.resample(audio, sample_rate, AUDIO_RATE)
    clips = []
    for start in clip_starts(len(audio) / AUDIO_RATE, AUDIO_CLIPS):
        clip = audio[int(start * AUDIO_RATE) : int((start + CLIP_SECONDS) * AUDIO_RATE)]
        clip = F.pad(clip, (0, max(0, _MIN_SAMPLES - len(clip))))
        mel = torchaudio.compliance.kaldi.fbank(
            (clip - clip.mean()).unsqueeze(0),
            htk_compat=True,
            sample_frequency=AUDIO_RATE,
            use_energy=False,
            window_type="hanning",
            num_mel_bins=MEL_BANDS,
            dither=0.0,
            frame_length=25,
            frame_shift=10,
        ).T
        mel = F.pad(mel, (0, max(0, MEL_FRAMES - mel.shape[1])))[:, :MEL_FRAMES]
        clips.append((mel.unsqueeze(0) - AUDIO_MEAN) / AUDIO_STD)
    return torch.stack(clips)


def video_clips(video: Tensor, seconds: float) -> Tensor:
    """Frames [F, 3, H, W] uint8 spread evenly over `seconds` -> [15, 3, 2, 224, 224].

    Five clips of two seconds, the first and last frame of each, the short side scaled to 224, three crops from left to
    right (or top to bottom).
    """
    if video.dim() != 4 or not len(video):
        raise ValueError(f"a video must be [frames, 3, H, W] with at least one frame, got {list(video.shape)}")
    per_second = len(video) / max(seconds, 1e-9)
    last = len(video) - 1
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (VIDEO_MEAN, VIDEO_STD))
    crops = []
    for start in clip_starts(seconds, VIDEO_CLIPS):
        first = min(int(start * per_second), last)
        end = min(max(int((start + CLIP_SECONDS) * per_second) - 1, first), last)
        frames = video[torch.linspace(first, end, FRAMES_PER_CLIP).long().to(video.device)].float().cpu() / 255
        height, width = frames.shape[-2:]
        size = (SIDE, int(width / height * SIDE)) if height <= width else (int(height / width * SIDE), SIDE)
        frames = (F.interpolate(frames, size=size, mode="bilinear", align_corners=False) - mean) / std
        crops += [crop.transpose(0, 1) for crop in _three_crops(frames)]
    return torch.stack(crops)


def clip_starts(seconds: float, count: int) -> list[float]:
    """Where `count` clips of two seconds begin: evenly from the start to the last one that fits."""
    return [i * max(seconds - CLIP_SECONDS, 0.0) / (count - 1) for i in range(count)]


def _three_crops(frames: Tensor) -> list[Tensor]:
    """[2, 3, h, w] -> three times [2, 3, 224, 224]: both ends and the middle of the longer side."""
    height, width = frames.shape[-2:]
    spare = max(height, width) - SIDE
    offsets = (0, -(-spare // 2), spare)
    if height > width:
        return [frames[..., offset : offset + SIDE, :] for offset in offsets]
    return [frames[..., offset : offset + SIDE] for offset in offsets]


def _load(
    checkpoint: str | Path | None, device: torch.device, token: str | bool | None, cache_dir: str | Path | None
) -> Model:
    try:
        from imagebind.models.imagebind_model import imagebind_huge
    except ImportError as error:
        raise CheckpointError(
            f"the imagebind ranker needs the ImageBind package ({error}): install it from its repository, "
            "facebookresearch/ImageBind. Its code and weights are for non-commercial use only (CC-BY-NC 4.0). Or set "
            "visual_ranker to null, or to another kind"
        ) from error
    model: Any = imagebind_huge(pretrained=checkpoint is None)
    if checkpoint is not None:
        folder, _, file = str(checkpoint).rpartition("/")
        with open_files(folder or ".", token=token, cache_dir=cache_dir) as get:
            try:
                model.load_state_dict(torch.load(get(file), map_location="cpu", weights_only=True))
            except (OSError, RuntimeError, pickle.UnpicklingError) as error:
                raise CheckpointError(f"ImageBind checkpoint {str(checkpoint)!r} cannot be loaded: {error}") from error
    return model.eval().requires_grad_(False).to(device)
