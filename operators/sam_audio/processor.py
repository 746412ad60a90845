"""From files and tensors to a padded batch.

Source: facebookresearch/sam-audio, `sam_audio/processor.py`; names and calls are the reference's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, Unpack

import torch
import torchaudio.functional
from torch import Tensor

from .anchors import Anchor, align_batch
from .checkpoint import read_config
from .config import SAMAudioConfig
from .frames import read_all, read_frames
from .sources import Access
from .vision import mask_videos, sample_frames


@dataclass
class Batch:
    """Recordings padded with zeros to one length, and their prompts. B recordings, N samples, T frames.

    An item's result depends on what it is padded to (zeros are heard by the codec and the GroupNorms), as in the
    reference: batch equal lengths where that matters.
    """

    audios: Tensor  # [B, 1, N]
    wav_sizes: Tensor  # [B] samples of each recording
    sizes: Tensor  # [B] frames of each recording
    audio_pad_mask: Tensor  # [B, T], True on frames that exist
    anchor_ids: Tensor  # [B, longest id list]
    anchor_alignment: Tensor  # [B, T], into the id list
    descriptions: list[str]
    hop_length: int
    audio_sampling_rate: int
    masked_video: list[Tensor] | None = None  # B x [frames, 3, H, W], one video frame a latent frame
    anchors: list[list[Anchor]] | None = field(default=None, repr=False)

    def to(self, device: torch.device | str) -> Batch:
        """Move every tensor to `device`, in place; returns itself."""
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, Tensor):
                setattr(self, entry.name, value.to(device))
        if self.masked_video is not None:
            self.masked_video = [video.to(device) for video in self.masked_video]
        return self


class SAMAudioProcessor:
    """Makes a `Batch` at the model's sample rate and frame rate."""

    def __init__(self, audio_hop_length: int, audio_sampling_rate: int) -> None:
        self.audio_hop_length = audio_hop_length
        self.audio_sampling_rate = audio_sampling_rate

    @classmethod
    def from_config(cls, config: SAMAudioConfig) -> SAMAudioProcessor:
        return cls(config.audio_codec.hop_length, config.audio_codec.sample_rate)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **access: Unpack[Access]) -> SAMAudioProcessor:
        """The processor of a model; reads its `config.json` only. Arguments, errors as `SAMAudio.from_pretrained`."""
        return cls.from_config(read_config(name_or_path, **access))

    def __call__(
        self,
        descriptions: Sequence[str],
        audios: Sequence[str | Path | Tensor],
        anchors: Sequence[Sequence[Anchor]] | None = None,
        masked_videos: Sequence[str | Path | Tensor] | None = None,
    ) -> Batch:
        """Build a batch of B recordings.

        descriptions: what to extract, one a recording; lower-case noun or verb phrases; "" for none.
        audios: files (decoded, resampled, channels averaged) or tensors [channels, samples] at the model's rate.
        anchors: per recording a list of (token, start_seconds, end_seconds).
        masked_videos: files (the frame nearest in time to each latent frame, decoded as far as the recording is long)
            or tensors [frames, 3, H, W], spread over the recording whatever their own frame rate is.
        """
        counts = {"descriptions": len(descriptions), "audios": len(audios)}
        counts |= {
            name: len(given)
            for name, given in (("anchors", anchors), ("masked_videos", masked_videos))
            if given is not None
        }
        if len(set(counts.values())) != 1 or not audios:
            said = ", ".join(f"{count} {name}" for name, count in counts.items())
            raise ValueError(f"processor: give one entry a recording in every list, got {said}")
        waveforms = [self.load_audio(audio) for audio in audios]
        wav_sizes = torch.tensor([waveform.shape[-1] for waveform in waveforms])
        if int(wav_sizes.min()) == 0:
            raise ValueError(f"processor: audio {int(wav_sizes.argmin())} is empty")
        sizes = -(-wav_sizes // self.audio_hop_length)
        audio_pad_mask = torch.arange(int(sizes.max())) < sizes[:, None]
        ids, alignment = align_batch(
            anchors,
            audio_pad_mask,
            sample_rate=self.audio_sampling_rate,
            hop_length=self.audio_hop_length,
        )
        return Batch(
            audios=torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)[:, None],
            wav_sizes=wav_sizes,
            sizes=sizes,
            audio_pad_mask=audio_pad_mask,
            anchor_ids=ids,
            anchor_alignment=alignment,
            descriptions=list(descriptions),
            hop_length=self.audio_hop_length,
            audio_sampling_rate=self.audio_sampling_rate,
            masked_video=None
            if masked_videos is None
            else [self.load_video(v, int(n)) for v, n in zip(masked_videos, sizes, strict=True)],
            anchors=None if anchors is None else [list(item) for item in anchors],
        )

    def load_audio(self, audio: str | Path | Tensor) -> Tensor:
        """One recording as mono [samples] float32 at the model's rate.

        A file is decoded whole, every channel resampled (torchaudio's windowed sinc), then averaged. A tensor
        [channels, samples] is taken as being at the model's rate already.
        """
        if isinstance(audio, Tensor):
            if audio.ndim != 2:
                raise ValueError(f"processor: audio tensors are [channels, samples], got {list(audio.shape)}")
            return audio.float().mean(0)
        if not Path(audio).is_file():
            raise FileNotFoundError(f"processor: no audio file at {str(audio)!r}")
        from torchcodec.decoders import AudioDecoder  # loads FFmpeg's libraries; tensors need none

        samples = AudioDecoder(str(audio)).get_all_samples()
        resampled = torchaudio.functional.resample(samples.data, samples.sample_rate, self.audio_sampling_rate)
        return resampled.mean(0)

    def load_video(self, video: str | Path | Tensor, size: int) -> Tensor:
        """One video as [size, 3, H, W], a frame for each latent frame of a recording: see `__call__`.

        A file gives uint8 frames at its own picture size, time 0 being the file's.
        """
        if not isinstance(video, Tensor):
            hop, rate = self.audio_hop_length, self.audio_sampling_rate
            return read_frames(video, size, hop_length=hop, sample_rate=rate)
        if video.ndim != 4 or video.shape[1] != 3 or not len(video):
            raise ValueError(f"processor: videos are [frames, 3, height, width], got {list(video.shape)}")
        return sample_frames(video, size)

    def mask_videos(
        self,
        videos: Sequence[str | Path | Tensor],
        masks: Sequence[str | Path | Tensor],
        *,
        masked: Literal["black", "kept"] = "black",
    ) -> list[Tensor]:
        """Black out pixels of videos by masks: see `vision.mask_videos`, also on which polarity is right.

        Files are decoded whole. A mask file has as many frames as its video, of the same size, and is set where a
        channel is not exactly 0: store it lossless.
        """
        videos, masks = (
            [item if isinstance(item, Tensor) else read_all(item) for item in items] for items in (videos, masks)
        )
        return mask_videos(videos, masks, masked=masked)
