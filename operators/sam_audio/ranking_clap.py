"""CLAP as a ranker: how close a candidate's sound is to its description.

Source: facebookresearch/sam-audio, `ranking/clap.py`. One difference is deliberate. Of a candidate longer than 10 s the
reference hears 10 s, drawn at random anew for each candidate: scores change from call to call, and two candidates are
judged by different passages. Here every candidate is heard whole, in windows of 10 s spread evenly from its start to
its end, and the score is the mean over them: about what the reference gives on average, without the draw. Up to 10 s
both agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
import torchaudio.functional
from torch import Tensor

from .ranking_activity import Span
from .ranking_clap_weights import load_clap
from .text import Tokenizer

if TYPE_CHECKING:
    from transformers import ClapModel

SAMPLE_RATE = 48_000
WINDOW = 480_000  # samples: 10 s
MAX_TOKENS = 77
# Windows a pass. A window's largest activations are some tens of MB.
BATCH = 8
_N_FFT, _HOP, _MEL_BANDS, _MEL_RANGE = 1024, 480, 64, (50.0, 14_000.0)


class ClapRanker:
    """Cosine of CLAP's embeddings of candidate and description.

    `checkpoint` as in `load_clap`; a loaded `model` (transformers' ClapModel) and `tokenizer` take its place.
    """

    def __init__(
        self,
        checkpoint: str | Path | None = None,
        *,
        model: ClapModel | None = None,
        tokenizer: Tokenizer | None = None,
        device: torch.device | str = "cpu",
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        if (model is None) != (tokenizer is None):
            raise ValueError("give a CLAP model together with its tokenizer")
        self.checkpoint = checkpoint
        self._device = torch.device(device)
        self._loaded = (model.eval().to(device), tokenizer) if model is not None and tokenizer is not None else None
        self._token, self._cache_dir = token, cache_dir

    def to(self, device: torch.device | str) -> ClapRanker:
        self._device = torch.device(device)
        if self._loaded is not None:
            self._loaded[0].to(self._device)
        return self

    @torch.inference_mode()
    def __call__(
        self,
        *,
        extracted_audio: Sequence[Tensor],
        input_audio: Sequence[Tensor] | None = None,
        descriptions: Sequence[str],
        videos: Sequence[Tensor] | None = None,
        sample_rate: int = SAMPLE_RATE,
        spans: Sequence[Sequence[Span]] | None = None,
    ) -> Tensor:
        texts = self.text(descriptions)
        scores = [
            torch.stack([self._score(candidate, text, sample_rate) for candidate in candidates])
            for candidates, text in zip(extracted_audio, texts, strict=True)
        ]
        return torch.stack(scores).to(extracted_audio[0].device)

    def text(self, descriptions: Sequence[str]) -> Tensor:
        """Embeddings [B, dim] of length 1."""
        model, tokenizer = self._load()
        encoded = tokenizer(
            list(descriptions), padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        ids, mask = (encoded[name].to(self._device) for name in ("input_ids", "attention_mask"))
        return model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output.float()

    def _score(self, candidate: Tensor, text: Tensor, sample_rate: int) -> Tensor:
        model, _ = self._load()
        audio = candidate.detach().float()
        if sample_rate != SAMPLE_RATE:
            audio = torchaudio.functional.resample(audio, sample_rate, SAMPLE_RATE)
        dtype = next(model.parameters()).dtype
        pieces, found = windows(audio), []
        while group := list(islice(pieces, BATCH)):
            features = log_mel(torch.stack(group).to(self._device)).to(dtype)
            found.append(model.get_audio_features(input_features=features).pooler_output.float() @ text)
        return torch.cat(found).mean()

    def _load(self) -> tuple[ClapModel, Tokenizer]:
        if self._loaded is None:
            self._loaded = load_clap(self.checkpoint, device=self._device, token=self._token, cache_dir=self._cache_dir)
        return self._loaded


def windows(audio: Tensor) -> Iterator[Tensor]:
    """Windows [480000] over `audio` [n] at 48 kHz: as few as cover it, evenly spread.

    Shorter audio is repeated whole as often as it fits, then padded with silence. Values pass through 16 bits, as
    CLAP's training data did.
    """
    audio = (audio.clamp(-1, 1) * 32_767).to(torch.int16).float() / 32_767
    if len(audio) <= WINDOW:
        repeated = audio.repeat(WINDOW // max(len(audio), 1)) if len(audio) else audio
        yield F.pad(repeated, (0, WINDOW - len(repeated)))
        return
    count = math.ceil(len(audio) / WINDOW)
    for i in range(count):
        start = i * (len(audio) - WINDOW) // (count - 1)
        yield audio[start : start + WINDOW]


def log_mel(audio: Tensor) -> Tensor:
    """[B, n] at 48 kHz -> [B, 1, n // 480 + 1, 64]: log mel power in dB, as CLAP's audio tower takes it."""
    window = torch.hann_window(_N_FFT, device=audio.device)
    spectrum = torch.stft(audio, _N_FFT, _HOP, window=window, center=True, pad_mode="reflect", return_complex=True)
    power = spectrum.abs().square().transpose(1, 2) @ _mel_filters().to(audio.device)
    return 10 * power.clamp(min=1e-10).log10().unsqueeze(1)


@lru_cache(maxsize=1)
def _mel_filters() -> Tensor:
    """Slaney's filters [513, 64]; unlike for CLAP's models with fusion, which use another scale."""
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(
        num_frequency_bins=_N_FFT // 2 + 1,
        num_mel_filters=_MEL_BANDS,
        min_frequency=_MEL_RANGE[0],
        max_frequency=_MEL_RANGE[1],
        sampling_rate=SAMPLE_RATE,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.from_numpy(filters).float()
