"""The transformer of the PE-AV family, inside PE-A-Frame and the judge (facebookresearch/perception_models).

Parameter names are those of the released checkpoints. Shape legend: B batch, T latent frames, H width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ConfigError
from .dit import RMSNorm, rope_table, rotate


@dataclass(frozen=True)
class PEAVConfig:
    """Sizes of one transformer; the defaults are the reference's."""

    hidden_size: int = 1024
    intermediate_size: int = 2752
    num_hidden_layers: int = 16
    num_attention_heads: int = 8
    max_position_embeddings: int = 10_000
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    head_dim: int = 0  # 0: hidden_size / num_attention_heads
    rope_theta: float = 0.0  # 0: as the reference has it, see `theta`

    def __post_init__(self) -> None:
        if not self.head_dim and self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"PE-AV transformer: hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}"
            )
        if self.head_width % 2:
            raise ConfigError(
                f"PE-AV transformer: head width {self.head_width} must be even, as channels turn in pairs"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, head_dim: int = 0, rope_theta: float = 0.0) -> PEAVConfig:
        """Read a section of a `config.json`. Other keys are ignored, as another library's class wrote these files.

        `head_dim` and `rope_theta` are arguments because the reference derives both, whatever the file says.
        """
        known = {f.name for f in fields(cls)} - {"head_dim", "rope_theta"}
        given = {key: value for key, value in values.items() if key in known}
        config = cls(**given, head_dim=head_dim, rope_theta=rope_theta)
        shared = values.get("num_key_value_heads")
        if shared is not None and shared != config.num_attention_heads:
            raise ConfigError(
                f"PE-AV transformer: num_key_value_heads {shared} must equal num_attention_heads "
                f"{config.num_attention_heads}; shared keys and values are not supported"
            )
        return config

    @property
    def head_width(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def theta(self) -> float:
        return self.rope_theta or max(10_000.0, 2.0 * self.max_position_embeddings)


class PEAVOutput(NamedTuple):
    frames: Tensor  # [B, T, H]
    pooled: Tensor  # [B, H], the class token


class MaskedConvBlock(nn.Module):
    """GroupNorm over all channels and the valid frames, SiLU, convolution; without a mask every frame is valid."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.groupnorm = nn.GroupNorm(1, dim)
        self.project = nn.Conv1d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:  # [B, H, T], [B, 1, T]
        normed = self.groupnorm(x) if mask is None else self._masked_norm(x, mask)
        out: Tensor = self.project(F.silu(normed))
        return out

    def _masked_norm(self, x: Tensor, mask: Tensor) -> Tensor:
        norm, precise = self.groupnorm, x.float()
        count = mask.sum(-1, keepdim=True) * x.shape[1]  # [B, 1, 1]
        mean = (precise * mask).sum((1, 2), keepdim=True) / count
        centred = (precise - mean) * mask
        variance = centred.square().sum((1, 2), keepdim=True) / count
        normed = centred * torch.rsqrt(variance + norm.eps)
        # Masked again: the bias must not leak into padding.
        return ((normed * norm.weight[:, None] + norm.bias[:, None]) * mask).to(x.dtype)


class MaskedResidualConv(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.block1 = MaskedConvBlock(dim)
        self.block2 = MaskedConvBlock(dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:  # [B, H, T], [B, 1, T]
        out: Tensor = x + self.block2(self.block1(x, mask), mask)
        return out


class Embeddings(nn.Module):
    """Puts the class token in front and mixes neighbouring frames."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.resnet_block = MaskedResidualConv(dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:  # [B, T, H] -> [B, 1 + T, H]; mask [B, 1 + T]
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1).transpose(1, 2)
        mixed: Tensor = self.resnet_block(x, None if mask is None else mask[:, None])
        return mixed.transpose(1, 2)


class SelfAttention(nn.Module):
    def __init__(self, config: PEAVConfig) -> None:
        super().__init__()
        inner, bias = config.num_attention_heads * config.head_width, config.attention_bias
        self.n_heads = config.num_attention_heads
        self.q_proj = nn.Linear(config.hidden_size, inner, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, inner, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, inner, bias=bias)
        self.o_proj = nn.Linear(inner, config.hidden_size, bias=bias)
        self.q_norm = RMSNorm(config.head_width, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_width, config.rms_norm_eps)

    def forward(self, x: Tensor, keys: Tensor | None, rope: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (self.n_heads, -1)) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(self.q_norm(q).transpose(1, 2), rope), rotate(self.k_norm(k).transpose(1, 2), rope)
        out = F.scaled_dot_product_attention(q, k, v.transpose(1, 2), attn_mask=keys)
        mixed: Tensor = self.o_proj(out.transpose(1, 2).flatten(2))
        return mixed


class FeedForward(nn.Module):
    def __init__(self, config: PEAVConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    def __init__(self, config: PEAVConfig) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, keys: Tensor | None, rope: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), keys, rope)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class PEAVTransformer(nn.Module):
    """Frames in, contextual frames and one class token out."""

    def __init__(self, config: PEAVConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.output = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self._rope: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> PEAVOutput:
        """x [B, T, H]; mask [B, T], True = valid, or None when every frame is.

        The class token is always valid, so a row that is all padding is no division by zero. Padded frames come
        back with values of no meaning.
        """
        if mask is not None:
            mask = F.pad(mask.bool(), (1, 0), value=True)
        x = self.embeddings(x, mask)
        keys = None if mask is None else mask[:, None, None, :]
        rope = self._tables(x.shape[1], x.device)
        for layer in cast("list[Layer]", self.layers):
            x = layer(x, keys, rope)
        x = self.output(self.norm(x))
        return PEAVOutput(x[:, 1:], x[:, 0])

    def _tables(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        if self._rope is None or self._rope[0].shape[0] < length or self._rope[0].device != device:
            # A clean length avoids rebuilding for every new recording.
            rounded = -(-length // 512) * 512
            self._rope = rope_table(rounded, self.config.head_width, self.config.theta, device)
        cos, sin = self._rope
        return cos[:length], sin[:length]
