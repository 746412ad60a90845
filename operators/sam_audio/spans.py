"""PE-A-Frame: where in a recording a description is heard (facebookresearch/perception_models).

Works on the mean latents that SAM-Audio's codec makes anyway. A checkpoint's own copy of the codec's encoder is
accepted and not kept. What training/train_spans.py makes for the small model is of the same classes, on the latents of
the band codec; its descriptions are read by MiniLM (`text_model.kind` "minilm").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn

from . import checkpoint
from .anchors import seconds_of_frame
from .modern_bert import Descriptions, Tokens, build_text_model, is_unused_text_key, load_tokenizer
from .pe_av import PEAVConfig, PEAVTransformer
from .sentences import MiniLMSentences
from .sources import SHIPPED, Access, CheckpointError
from .text import Tokenizer

THRESHOLD = 0.3

# What SAM-Audio's own code loads. The default revision of these repositories has transformers' layout.
_REVISION = "perception_models"
_SHORT_NAMES = {f"pe-a-frame-{size}": f"facebook/pe-a-frame-{size}" for size in ("small", "base", "large")}

_HEAD_EPS = 1e-6
# Where a config.json is silent: ModernBERT-large.
_TEXT_MODEL = {"hidden_size": 1024, "intermediate_size": 2624, "num_hidden_layers": 28, "num_attention_heads": 16}
_CODEC_CHANNELS = 128
# Defaults of transformers' own configuration, which leaves out what equals them.
_TRANSFORMERS_AUDIO = {
    "hidden_size": 1792,
    "intermediate_size": 4800,
    "num_hidden_layers": 6,
    "num_attention_heads": 14,
}
_TRANSFORMERS_HEAD_DIM = 128
_TRANSFORMERS_THETA = 20_000.0
# From transformers' names to the reference's; the first match counts.
_RENAMED = (
    ("audio_encoder.embedder.data_proj.", "audio_model.data_proj."),
    ("audio_encoder.embedder.dac_encoder.", "audio_model.dac_vae_encoder.encoder."),
    ("audio_encoder.embedder.bottleneck.", "audio_model.dac_vae_encoder.bottleneck.in_proj."),
    ("audio_encoder.patch_embedder.class_embedding", "audio_model.audio_transformer.embeddings.cls_token"),
    ("audio_encoder.patch_embedder.", "audio_model.audio_transformer.embeddings."),
    ("audio_encoder.", "audio_model.audio_transformer."),
    ("text_audio_head.", "text_head."),
    ("text_audio_logit_", "logit_"),
)


@dataclass(frozen=True)
class PEAFrameConfig:
    audio_transformer: PEAVConfig
    text_model: Mapping[str, Any]
    codec_channels: int = _CODEC_CHANNELS
    output_dim: int = 1024
    nth_text_layer: int | None = 22

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PEAFrameConfig:
        """Read a `config.json` of either layout; unknown keys are ignored, as in the reference."""
        if "audio_config" in values or "text_config" in values or values.get("model_type") == "pe_audio":
            return cls._from_transformers(values)
        audio = values.get("audio_model") or {}
        return cls(
            PEAVConfig.from_dict(audio.get("audio_transformer") or {}),
            values.get("text_model") or _TEXT_MODEL,
            (audio.get("dac_vae_encoder") or {}).get("codebook_dim", _CODEC_CHANNELS),
            values.get("output_dim", 1024),
            values.get("nth_text_layer", 22),
        )

    @classmethod
    def _from_transformers(cls, values: Mapping[str, Any]) -> PEAFrameConfig:
        audio = _TRANSFORMERS_AUDIO | (values.get("audio_config") or {})
        text = _TEXT_MODEL | {"num_hidden_layers": 22} | (values.get("text_config") or {})
        theta = (audio.get("rope_parameters") or audio).get("rope_theta") or _TRANSFORMERS_THETA
        transformer = PEAVConfig.from_dict(
            audio, head_dim=audio.get("head_dim", _TRANSFORMERS_HEAD_DIM), rope_theta=theta
        )
        return cls(
            transformer,
            text,
            (audio.get("dac_config") or {}).get("codebook_dim", _CODEC_CHANNELS),
            text["hidden_size"],
            text["num_hidden_layers"],  # this layout ends with the layer that is read
        )


class AudioModel(nn.Module):
    def __init__(self, config: PEAFrameConfig) -> None:
        super().__init__()
        self.data_proj = nn.Linear(config.codec_channels, config.audio_transformer.hidden_size)
        self.audio_transformer = PEAVTransformer(config.audio_transformer)


class Head(nn.Module):
    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(d_in, eps=_HEAD_EPS)
        self.proj = nn.Linear(d_in, d_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(self.layer_norm(x))
        return out


class PEAFrame(nn.Module):
    """Scores every latent frame against a description. Without a `tokenizer` it takes token ids only."""

    def __init__(self, config: PEAFrameConfig, *, tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        self.config = config
        self.descriptions: Descriptions | MiniLMSentences
        if config.text_model.get("kind") == "minilm":
            self.descriptions = MiniLMSentences(config.text_model)
            text_width = self.descriptions.config.dim
        else:
            self.text_model = build_text_model(config.text_model, config.nth_text_layer)
            self.descriptions = Descriptions(self.text_model, tokenizer)
            text_width = self.text_model.config.hidden_size
        self.audio_model = AudioModel(config)
        self.text_head = Head(text_width, config.output_dim)
        self.audio_head = Head(config.audio_transformer.hidden_size, config.output_dim)
        self.logit_scale = nn.Parameter(torch.zeros(1))
        self.logit_bias = nn.Parameter(torch.zeros(1))

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        **access: Unpack[Access],
    ) -> PEAFrame:
        """Load "pe-a-frame-small|base|large", a hub name, a folder, a URL, or what lies in weights/spans ("tiny").

        Both published layouts are read: the reference's, and transformers' `PeAudioFrameLevelModel`. dtype: of all
        weights but the logits' scale. In eval mode. Raises CheckpointError.
        """
        name = str(name_or_path)
        if name in _SHORT_NAMES and not Path(name).is_dir():
            name, access["revision"] = _SHORT_NAMES[name], access.get("revision") or _REVISION
        elif name in SHIPPED:
            folder = SHIPPED[name] / "spans"
            if not folder.is_dir():
                raise CheckpointError(
                    f"no span predictor is shipped for {name!r}: train one (`make train-spans`) and give its folder, "
                    "out/train-spans/best, as span_predictor"
                )
            name = str(folder)
        layer: list[int | None] = []

        def parse(values: dict[str, Any]) -> PEAFrameConfig:
            config = PEAFrameConfig.from_dict(values)
            layer.append(config.nth_text_layer)
            return config

        model = checkpoint.load_part(
            name,
            parse=parse,
            build=cls,
            device=device,
            dtype=dtype,
            rename=reference_names,
            ignored=lambda key: is_unused_key(key, layer[0]),
            float32=("logit_",),
            **access,
        )
        if isinstance(model.descriptions, Descriptions):
            model.descriptions = Descriptions(model.text_model, load=partial(load_tokenizer, name, **access))
        return model

    @torch.no_grad()
    def logits(
        self,
        features: Tensor,
        padding_mask: Tensor | None,
        descriptions: Sequence[str] | Tokens | Mapping[str, Tensor],
    ) -> Tensor:
        """Mean latents [B, T, C] and one description a row -> logit of each frame [B, T], float32.

        padding_mask [B, T], True = valid. Frames of padding get logits too, of no meaning. Instead of descriptions
        their tokens can be given (input_ids, attention_mask). Descriptions that were seen before cost nothing.
        """
        audio, text = self.embed_frames(features, padding_mask), self.embed_descriptions(descriptions)
        if len(audio) != len(text):
            raise ValueError(f"PE-A-Frame: {len(audio)} recordings but {len(text)} descriptions; give one a row")
        scores = torch.einsum("btd,bd->bt", audio.float(), text.float())
        return scores * self.logit_scale.float() + self.logit_bias.float()

    @torch.no_grad()
    def embed_frames(self, features: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Mean latents [B, T, C], mask [B, T] -> [B, T, output_dim]."""
        audio = self.audio_model
        if features.ndim != 3 or features.shape[-1] != audio.data_proj.in_features:
            raise ValueError(
                f"PE-A-Frame: features must be [B, T, {audio.data_proj.in_features}], got {list(features.shape)}"
            )
        x = audio.data_proj(features.to(audio.data_proj.weight))
        out: Tensor = self.audio_head(
            audio.audio_transformer(x, None if padding_mask is None else padding_mask.to(x.device)).frames
        )
        return out

    @torch.no_grad()
    def embed_descriptions(self, descriptions: Sequence[str] | Tokens | Mapping[str, Tensor]) -> Tensor:
        """B descriptions or their tokens -> [B, output_dim]."""
        out: Tensor = self.text_head(self.descriptions(descriptions).to(self.text_head.proj.weight))
        return out


def reference_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in transformers' layout under the reference's names; names of the reference stay."""

    def rename(key: str) -> str:
        for theirs, ours in _RENAMED:
            if key.startswith(theirs):
                return ours + key.removeprefix(theirs)
        return key

    return {rename(key): tensor for key, tensor in state.items()}


def is_unused_key(key: str, layer: int | None) -> bool:
    """Is `key` of a part that a checkpoint holds and PEAFrame does without: codec, text layers behind `layer`?"""
    if key.startswith("text_model."):
        return is_unused_text_key(key.removeprefix("text_model."), layer)
    return key.startswith("audio_model.dac_vae_encoder.")


def active_frames(logits: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """Logits -> True where the probability is above `threshold` (strictly)."""
    return torch.sigmoid(logits.float()) > threshold


def span_frames(active: Tensor) -> list[tuple[int, int]]:
    """Runs of True in `active` [T] as (first frame, end frame), end exclusive."""
    edges = torch.diff(active.to(device="cpu", dtype=torch.int8), prepend=torch.zeros(1), append=torch.zeros(1))
    return list(
        zip(
            torch.nonzero(edges == 1).flatten().tolist(),
            torch.nonzero(edges == -1).flatten().tolist(),
            strict=True,
        )
    )


def spans(
    logits: Tensor,
    *,
    hop_length: int,
    sample_rate: int,
    threshold: float = THRESHOLD,
    rounding: Literal["reference", "exact"] = "reference",
) -> list[list[tuple[float, float]]]:
    """Logits [B, T] -> per row the (start, end) in seconds of every run of frames above `threshold`.

    Nothing is merged, smoothed or left out, and padded frames count like the others.

    rounding: "reference" gives seconds as float32, which anchors, rounding up, then place one frame late in about
    half of all cases, as the reference does. "exact" gives seconds that anchors turn back into the very same frames.
    """
    if rounding not in ("reference", "exact"):
        raise ValueError(f"rounding must be 'reference' or 'exact', not {rounding!r}")
    found = []
    for row in active_frames(logits, threshold):
        edges = torch.tensor(span_frames(row), dtype=torch.int64).view(-1, 2)
        if rounding == "reference":
            seconds = (edges * hop_length / sample_rate).float().tolist()
        else:
            seconds = [[seconds_of_frame(edge, sample_rate, hop_length) for edge in pair] for pair in edges.tolist()]
        found.append([(start, end) for start, end in seconds])
    return found
