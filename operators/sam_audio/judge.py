"""The judge: how well a separated sound fits its description, given what it was separated from.

Source: facebookresearch/sam-audio (`sam_audio/model/judge.py`); names and calls are theirs. The small judge ("tiny") is
of the same class on the band codec's latents, and MiniLM reads its descriptions.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from . import checkpoint
from .band_codec import BandCodec
from .codec import DACVAE
from .config import BandCodecConfig, DACVAEConfig
from .judge_config import SAMAudioJudgeConfig, default_revision, location
from .judge_processor import JudgeBatch, SAMAudioJudgeProcessor, whole_frames
from .modern_bert import Descriptions, build_text_model, is_unused_text_key, load_tokenizer
from .pe_av import PEAVTransformer
from .sentences import MiniLMSentences
from .sources import Access
from .state_files import WEIGHT_NAMES, write_file
from .text import Tokenizer

__all__ = [
    "JudgeBatch",
    "SAMAudioJudgeConfig",
    "SAMAudioJudgeModel",
    "SAMAudioJudgeOutput",
    "SAMAudioJudgeProcessor",
]

# Row-frames that go through the large transformer at once: about 0.1 MB each at the released width in float32.
_CALL_FRAMES_CPU = 2048
_CALL_FRAMES_DEVICE = 16_384


@dataclass
class SAMAudioJudgeOutput:
    """One score a row, [B, 1] each."""

    overall: Tensor
    recall: Tensor
    precision: Tensor
    faithfulness: Tensor


class CodecEncoder(DACVAE):
    """The codec without its decoder, as the judge's checkpoint holds it."""

    def __init__(self, config: DACVAEConfig) -> None:
        super().__init__(config)
        del self.decoder


class SAMAudioJudgeModel(nn.Module):
    """Scores separated sounds. Without a `tokenizer`, `score` cannot read descriptions; `forward` takes token ids."""

    def __init__(self, config: SAMAudioJudgeConfig, *, tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        self.config = config
        width, small, narrow = (
            config.transformer.hidden_size,
            config.finetune_transformer.hidden_size,
            config.bottleneck_dim,
        )
        self.descriptions: Descriptions | MiniLMSentences
        self.audio_codec = _codec(config.audio_codec)
        self.data_proj = nn.Linear(config.audio_codec.channels, width)
        self.transformer = PEAVTransformer(config.transformer)
        if config.reads_sentences:
            self.descriptions = MiniLMSentences(config.text_model)
            text_width = self.descriptions.config.dim
        else:
            self.text_model = build_text_model(config.text_model, config.nth_text_layer)
            self.descriptions = Descriptions(self.text_model, tokenizer)
            text_width = self.text_model.config.hidden_size
        self.cat_audio_proj = nn.Linear(2 * width, narrow)
        self.text_proj1 = nn.Linear(text_width, width, bias=False)
        self.text_proj2 = nn.Linear(width, narrow)
        self.layer_norm = nn.LayerNorm(narrow)
        self.proj_audio_and_text = nn.Linear(2 * narrow, narrow)
        self.finetune_data_proj = nn.Linear(narrow, small)
        self.finetune_transformer = PEAVTransformer(config.finetune_transformer)
        self.head = nn.Linear(small, 4, bias=False)
        self.mean = nn.Parameter(torch.zeros(4), requires_grad=False)
        self.std = nn.Parameter(torch.ones(4), requires_grad=False)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        **access: Unpack[Access],
    ) -> SAMAudioJudgeModel:
        """Load "tiny" (shipped), "facebook/sam-audio-judge" (at revision "sam_audio"), a hub name, a folder or a URL.

        dtype: of all weights but the codec's and the scale of the scores. In eval mode. Raises CheckpointError.
        """
        access["revision"] = default_revision(name_or_path, access.get("revision"))
        source = location(name_or_path)
        layer: list[int | None] = []

        def parse(values: dict[str, Any]) -> SAMAudioJudgeConfig:
            config = SAMAudioJudgeConfig.from_dict(values)
            layer.append(config.nth_text_layer)
            return config

        model = checkpoint.load_part(
            source,
            parse=parse,
            build=cls,
            device=device,
            dtype=dtype,
            ignored=lambda key: is_unused_key(key, layer[0]),
            float32=("audio_codec.", "mean", "std"),
            **access,
        )
        if isinstance(model.descriptions, Descriptions):
            model.descriptions = Descriptions(model.text_model, load=partial(load_tokenizer, source, **access))
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`, which `from_pretrained` reads."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / checkpoint.CONFIG_NAME).write_text(json.dumps(self.config.to_dict(), indent=1) + "\n")
        write_file(self.state_dict(), folder / WEIGHT_NAMES[0])

    @property
    def sample_rate(self) -> int:
        """Of the waveforms it hears, in Hz."""
        return self.config.audio_codec.sample_rate

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor,
        input_values: Tensor,
        separated_values: Tensor,
        attention_mask: Tensor | None = None,
        padding_mask: Tensor | None = None,
    ) -> SAMAudioJudgeOutput:
        """Score what a `SAMAudioJudgeProcessor` made: ids [B, L], waveforms [B, 1, N], masks [B, L] and [B, N].

        Padding is heard: the transformers get no mask, as in the reference, and only the mean over time leaves it
        out. So a row's scores depend on what it is batched with; `score` avoids that.
        """
        if input_values.shape != separated_values.shape or len(input_ids) != len(input_values):
            raise ValueError(
                f"judge: {len(input_ids)} descriptions, inputs {list(input_values.shape)} and separated sounds "
                f"{list(separated_values.shape)} do not match"
            )
        # Candidates of one recording lie next to each other, with the same input: that is heard once.
        first = [0] * len(input_values)
        for i in range(1, len(input_values)):
            first[i] = first[i - 1] if torch.equal(input_values[i], input_values[i - 1]) else i
        distinct = sorted(set(first))
        heard = self._hear([*input_values[distinct, 0], *separated_values[:, 0]], self._call_frames())
        given = torch.stack([heard[distinct.index(i)] for i in first])
        separated = torch.stack(heard[len(distinct) :])
        valid = None if padding_mask is None else padding_mask[:, :: self.audio_codec.hop_length][:, : given.shape[1]]
        text = self.descriptions((input_ids, torch.ones_like(input_ids) if attention_mask is None else attention_mask))
        scores = self.rate(given, separated, text, valid)
        return SAMAudioJudgeOutput(*scores.split(1, dim=1))

    @torch.no_grad()
    def score(
        self,
        mixture: Sequence[Tensor],
        target: Sequence[Tensor],
        descriptions: Sequence[str],
        *,
        call_frames: int | None = None,
    ) -> Tensor:
        """B mixtures [n], what was separated from each [n], and its description -> scores [B, 4], float32.

        Columns: overall, recall, precision, faithfulness. Waveforms are mono at the codec's rate; target and mixture
        must fill the same number of latent frames. Every item is scored as if alone, whatever its neighbours' length;
        one longer than the configuration's `clip_seconds` in equal pieces, of which it gets the mean.
        A mixture tensor that stands in several rows (candidates), or views of the same memory, is heard once. At most
        about `call_frames` row-frames go through the network at once.
        """
        if not len(mixture) == len(target) == len(descriptions):
            raise ValueError(
                f"judge: {len(mixture)} mixtures, {len(target)} targets and {len(descriptions)} descriptions; "
                "give one of each a row"
            )
        hop = self.audio_codec.hop_length
        frames = [-(-wave.shape[-1] // hop) for wave in mixture]
        for i, (given, separated) in enumerate(zip(mixture, target, strict=True)):
            if given.ndim != 1 or separated.ndim != 1 or -(-len(separated) // hop) != frames[i] or not frames[i]:
                raise ValueError(
                    f"judge: mixture {i} is {list(given.shape)} and its target {list(separated.shape)}; both must be "
                    f"[n], n > 0, of the same number of frames ({hop} samples each)"
                )
        scores = torch.zeros(len(mixture), 4, device=self.device)
        if not len(mixture):
            return scores
        counts = [self._pieces(count) for count in frames]
        if max(counts) > 1:
            return self._score_pieces(mixture, target, descriptions, counts, call_frames)
        text = self.descriptions(list(descriptions))
        keys = [_memory(wave) for wave in mixture]
        ahead, known = Counter(keys), dict[Any, Tensor]()
        budget = call_frames or self._call_frames()
        for rows in _row_groups(frames, budget):
            new = {keys[i]: mixture[i] for i in rows if keys[i] not in known}
            heard = self._hear(
                [whole_frames(wave, hop) for wave in [*new.values(), *(target[i] for i in rows)]], budget
            )
            known.update(zip(new, heard, strict=False))
            given = torch.stack([known[keys[i]] for i in rows])
            scores[rows] = self.rate(given, torch.stack(heard[len(new) :]), text[rows], None)
            ahead.subtract(keys[i] for i in rows)
            known = {key: frames for key, frames in known.items() if ahead[key]}
        return scores

    def _pieces(self, frames: int) -> int:
        """In how many pieces a recording of so many frames is scored."""
        clip = self.config.clip_seconds
        if clip is None:
            return 1
        return -(-frames // max(1, round(clip * self.sample_rate / self.audio_codec.hop_length)))

    def _score_pieces(
        self,
        mixture: Sequence[Tensor],
        target: Sequence[Tensor],
        descriptions: Sequence[str],
        counts: Sequence[int],
        call_frames: int | None,
    ) -> Tensor:
        hop = self.audio_codec.hop_length
        given: list[Tensor] = []
        separated: list[Tensor] = []
        for mix, sound, count in zip(mixture, target, counts, strict=True):
            frames = -(-len(mix) // hop)
            # On the frame grid, and of equal lengths but for one frame. The last piece ends where the sound does.
            edges = [frames * i // count * hop for i in range(1, count)]
            given += mix.tensor_split(edges)
            separated += sound.tensor_split(edges)
        texts = [text for text, count in zip(descriptions, counts, strict=True) for _ in range(count)]
        rows = self.score(given, separated, texts, call_frames=call_frames)
        weights = torch.tensor([float(len(piece)) for piece in given], device=rows.device)[:, None]
        sums = zip((rows * weights).split(list(counts)), weights.split(list(counts)), strict=True)
        return torch.stack([row.sum(0) / weight.sum() for row, weight in sums])

    def _call_frames(self) -> int:
        return _CALL_FRAMES_CPU if self.device.type == "cpu" else _CALL_FRAMES_DEVICE

    def _hear(self, waves: Sequence[Tensor], call_frames: int) -> list[Tensor]:
        """Waveforms [N] of one length -> what the large transformer makes of each, [T, H]."""
        group = max(1, call_frames * self.audio_codec.hop_length // len(waves[0]))
        heard: list[Tensor] = []
        for start in range(0, len(waves), group):
            batch = torch.stack([wave.to(self.device) for wave in waves[start : start + group]])
            latents = self.audio_codec.encode(batch[:, None]).transpose(1, 2)
            heard += self.hear(latents)
        return heard

    def hear(self, latents: Tensor) -> Tensor:
        """Latents [B, T, C] -> what the large transformer makes of them [B, T, H]; with gradients."""
        return self.transformer(self.data_proj(latents.to(self.data_proj.weight.dtype))).frames

    def rate(self, given: Tensor, separated: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        """Heard inputs and separated sounds [B, T, H], text [B, D], valid frames [B, T] -> [B, 4] in float32.

        With gradients, for training: `score` and `forward` are what everyone else calls.
        """
        audio = self.cat_audio_proj(torch.cat([separated, given], dim=-1))  # [B, T, b]
        said = self.layer_norm(self.text_proj2(self.text_proj1(text.to(self.text_proj1.weight))))  # [B, b]
        said = said[:, None].expand(-1, audio.shape[1], -1)
        both = self.proj_audio_and_text(torch.cat([audio, said], dim=-1))
        frames = self.head(self.finetune_transformer(self.finetune_data_proj(both)).frames).float()  # [B, T, 4]
        if mask is None:
            mean = frames.mean(1)
        else:
            mean = (frames * mask[..., None].to(frames)).sum(1) / mask.sum(1, keepdim=True).to(frames)
        return mean * self.std.float() + self.mean.float()


def _codec(config: DACVAEConfig | BandCodecConfig) -> CodecEncoder | BandCodec:
    if isinstance(config, BandCodecConfig):
        with torch.device("cpu"):  # it has tables and no weights: nothing would fill them in on the meta device
            return BandCodec(config)
    return CodecEncoder(config)


def is_unused_key(key: str, layer: int | None) -> bool:
    """Is `key` of a part that a checkpoint holds and the judge does without: text layers behind `layer`?"""
    return key.startswith("text_model.") and is_unused_text_key(key.removeprefix("text_model."), layer)


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device


def _row_groups(frames: Sequence[int], call_frames: int) -> Iterator[list[int]]:
    """Row numbers in groups of equal length that fit into a call, or one row each."""
    by_length: dict[int, list[int]] = {}
    for i, count in enumerate(frames):
        by_length.setdefault(count, []).append(i)
    for count, rows in by_length.items():
        size = max(1, call_frames // count)
        yield from (rows[start : start + size] for start in range(0, len(rows), size))
