"""From files, tensors and descriptions to what the judge takes (facebookresearch/sam-audio, `processor.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from .judge_config import default_revision, location, read_config
from .minilm import wheel_folder
from .modern_bert import load_tokenizer, tokenize
from .processor import SAMAudioProcessor
from .sources import Access
from .text import Tokenizer

Audio = str | Path | Tensor


class JudgeBatch(dict[str, Tensor]):
    """input_ids, attention_mask, input_values, padding_mask and separated_values: `model(**batch)`."""

    def to(self, device: torch.device | str) -> JudgeBatch:
        """Move every tensor to `device`, in place; returns itself."""
        for name, tensor in self.items():
            self[name] = tensor.to(device)
        return self


class SAMAudioJudgeProcessor:
    """Makes a `JudgeBatch` at the judge's sample rate."""

    def __init__(self, audio_hop_length: int, audio_sampling_rate: int, tokenizer: Tokenizer) -> None:
        self.audio_hop_length = audio_hop_length
        self.audio_sampling_rate = audio_sampling_rate
        self.tokenizer = tokenizer
        self._files = SAMAudioProcessor(audio_hop_length, audio_sampling_rate)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **access: Unpack[Access]) -> SAMAudioJudgeProcessor:
        """The processor of a judge: reads its `config.json` and tokenizer. As `SAMAudioJudgeModel.from_pretrained`."""
        access["revision"] = default_revision(name_or_path, access.get("revision"))
        config = read_config(name_or_path, **access)
        tokenizer = (
            load_tokenizer(wheel_folder())
            if config.reads_sentences
            else load_tokenizer(location(name_or_path), **access)
        )
        return cls(config.audio_codec.hop_length, config.audio_codec.sample_rate, tokenizer)

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        input_audio: Audio | Sequence[Audio] | None = None,
        separated_audio: Audio | Sequence[Audio] | None = None,
        sampling_rate: int | None = None,
    ) -> JudgeBatch:
        """Build a batch of B rows; what is left out is not in it.

        text: what was asked for. input_audio, separated_audio: what it was separated from, and what came out: files,
        or tensors [channels, n] or [n] at the judge's rate. Channels are averaged. A single one stands for a list.
        sampling_rate: of the tensors, in Hz; refused when it is not the judge's.

        Waveforms are filled up to whole frames by reflection, then with zeros up to the longest. `padding_mask`
        [B, N] is that of the input. ValueError for lists of different lengths, empty sound or another rate.
        """
        if sampling_rate is not None and sampling_rate != self.audio_sampling_rate:
            raise ValueError(
                f"judge: sampling_rate is {sampling_rate} Hz, but this judge hears {self.audio_sampling_rate} Hz; "
                "resample first, or give files"
            )
        texts = [text] if isinstance(text, str) else text
        given, separated = self._waveforms(input_audio), self._waveforms(separated_audio)
        counts = {"text": texts, "input_audio": given, "separated_audio": separated}
        said = {name: len(rows) for name, rows in counts.items() if rows is not None}
        if len(set(said.values())) > 1 or 0 in said.values():
            listed = ", ".join(f"{count} {name}" for name, count in said.items())
            raise ValueError(f"judge: give one entry a row in every list, got {listed}")
        batch = JudgeBatch()
        if texts is not None:
            batch["input_ids"], batch["attention_mask"] = tokenize(self.tokenizer, texts)
        if given is not None:
            lengths = torch.tensor([len(wave) for wave in given])
            batch["input_values"] = torch.nn.utils.rnn.pad_sequence(given, batch_first=True)[:, None]
            batch["padding_mask"] = torch.arange(int(lengths.max())) < lengths[:, None]
        if separated is not None:
            batch["separated_values"] = torch.nn.utils.rnn.pad_sequence(separated, batch_first=True)[:, None]
        return batch

    def _waveforms(self, audio: Audio | Sequence[Audio] | None) -> list[Tensor] | None:
        if audio is None:
            return None
        rows = [audio] if isinstance(audio, (str, Path, Tensor)) else audio
        return [self._waveform(row) for row in rows]

    def _waveform(self, audio: Audio) -> Tensor:
        wave = self._files.load_audio(audio[None] if isinstance(audio, Tensor) and audio.ndim == 1 else audio)
        if not len(wave):
            raise ValueError("judge: a sound is empty")
        return whole_frames(wave, self.audio_hop_length)


def whole_frames(wave: Tensor, hop_length: int) -> Tensor:
    """Fill [n] up to a multiple of `hop_length` by reflection; with zeros where there is too little to reflect."""
    missing = -len(wave) % hop_length
    mode = "reflect" if missing < len(wave) else "constant"
    return F.pad(wave[None], (0, missing), mode=mode)[0]
