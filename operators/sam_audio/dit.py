"""The diffusion transformer of SAM-Audio (facebookresearch/sam-audio, `sam_audio/model/transformer.py`).

Shape legend: B batch, T latent frames, L text tokens, D width, H heads, K head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .config import TransformerConfig

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "approx_gelu": lambda x: F.gelu(x, approximate="tanh"),
    "srelu": lambda x: F.relu(x).square(),
    "silu": F.silu,
}


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, in float32 whatever the input's type."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight.float(), self.eps).to(x.dtype)


class GatedMLP(nn.Module):
    """`w2(silu(w1 x) * w3 x)` for swiglu, else `w2(act(w1 x))`: feed-forward and embedding projections."""

    def __init__(self, d_in: int, hidden: int, d_out: int, non_linearity: str, bias: bool) -> None:
        super().__init__()
        self.non_linearity = non_linearity
        self.w1 = nn.Linear(d_in, hidden, bias=bias)
        self.w2 = nn.Linear(hidden, d_out, bias=bias)
        if non_linearity == "swiglu":
            self.w3 = nn.Linear(d_in, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.non_linearity == "swiglu":
            return self.w2(F.silu(self.w1(x)) * self.w3(x))
        return self.w2(ACTIVATIONS[self.non_linearity](self.w1(x)))


class Embedder(nn.Module):
    """Context or timestep embedder: optional norm, then a projection to width D."""

    def __init__(self, d_in: int, config: TransformerConfig, non_linearity: str, norm: bool = False) -> None:
        super().__init__()
        if norm:
            self.norm = RMSNorm(d_in, config.norm_eps)
        self.has_norm = norm
        self.projection = GatedMLP(d_in, config.dim, config.dim, non_linearity, config.fc_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(self.norm(x) if self.has_norm else x)


def sinusoid(time: Tensor, dim: int) -> Tensor:
    """Cosines, then sines, of `time` [B] at dim//2 geometric frequencies from 1 to 1/10000: [B, dim]; time unscaled."""
    half = dim // 2
    frequency = torch.exp(torch.arange(half, device=time.device, dtype=torch.float32) * (-math.log(10_000) / half))
    angle = time.float()[:, None] * frequency
    out = torch.cat([angle.cos(), angle.sin()], dim=-1)
    return F.pad(out, (0, dim % 2))


class ConvBlock(nn.Module):
    """GroupNorm over all channels and frames (padding included, as in the reference), SiLU, convolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.groupnorm = nn.GroupNorm(1, dim)
        self.project = nn.Conv1d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(F.silu(self.groupnorm(x)))


class ResidualConv(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.block1 = ConvBlock(dim)
        self.block2 = ConvBlock(dim)

    def forward(self, x: Tensor) -> Tensor:  # [B, D, T]
        return x + self.block2(self.block1(x))


class XEmbedder(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.block = ResidualConv(dim)

    def forward(self, x: Tensor) -> Tensor:  # [B, T, D]
        return self.block(x.transpose(1, 2)).transpose(1, 2)


def rope_table(length: int, head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine tables [length, head_dim / 2] in float32."""
    # Computed on the CPU: the same table on every device, so that results do not depend on it.
    frequency = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angle = torch.arange(length, dtype=torch.float32)[:, None] * frequency
    return angle.cos().to(device), angle.sin().to(device)


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn neighbouring channel pairs of `x` [B, H, T, K] by the table's angles, in float32."""
    cos, sin = table
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    """Self- or cross-attention with the reference's head layout: projected channel j is head j mod H, position j div H.

    `set_heads_first(True)` reorders the rows of wq, wk and wv once, to the usual layout that attention kernels want.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        d, bias = config.dim, config.fc_bias
        self.n_heads, self.head_dim, self.heads_first = config.n_heads, config.head_dim, False
        self.wq = nn.Linear(d, d, bias=bias)
        self.wk = nn.Linear(d, d, bias=bias)
        self.wv = nn.Linear(d, d, bias=bias)
        self.wo = nn.Linear(d, d, bias=bias)
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.norm_eps)

    @torch.no_grad()
    def set_heads_first(self, heads_first: bool) -> None:
        if heads_first == self.heads_first:
            return
        shape = (self.head_dim, self.n_heads) if heads_first else (self.n_heads, self.head_dim)
        for linear in (self.wq, self.wk, self.wv):
            for p in linear.parameters():
                p.data = p.data.unflatten(0, shape).transpose(0, 1).flatten(0, 1).contiguous()
        self.heads_first = heads_first

    def _heads(self, x: Tensor) -> Tensor:  # [B, T, D] -> [B, H, T, K]
        if self.heads_first:
            return x.unflatten(-1, (self.n_heads, self.head_dim)).transpose(1, 2)
        return x.unflatten(-1, (self.head_dim, self.n_heads)).permute(0, 3, 1, 2)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        rope: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """x [B, T, D] attends to context [B, S, D] (itself if None) where mask [B, S] is True."""
        context = x if context is None else context
        q, k, v = self._heads(self.wq(x)), self._heads(self.wk(context)), self._heads(self.wv(context))
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        keys = None if mask is None else mask[:, None, None, :]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=keys)
        return self.wo(out.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Self-attention and feed-forward, modulated by time; between them an ungated, un-normed cross-attention."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(6, config.dim) / config.dim**0.5)
        self.attention = Attention(config)
        self.feed_forward = GatedMLP(config.dim, config.ffn_dim, config.dim, config.non_linearity, config.fc_bias)
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.cross_attention = Attention(config)
        self.dropout = config.dropout

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        memory: Tensor,
        padding_mask: Tensor | None,
        memory_mask: Tensor | None,
        rope: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        m = (self.scale_shift_table + modulation).to(x.dtype)  # [B, 6, D]
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = m[:, :, None].unbind(1)

        def drop(y: Tensor) -> Tensor:
            return F.dropout(y, self.dropout, self.training)

        a = self.attention(self.attention_norm(x) * (1 + scale_a) + shift_a, mask=padding_mask, rope=rope)
        h = x + gate_a * drop(a)
        h = h + self.cross_attention(h, memory, memory_mask)
        return h + gate_f * drop(self.feed_forward(self.ffn_norm(h) * (1 + scale_f) + shift_f))


class DiT(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        d = config.dim
        self.x_embedder = XEmbedder(d)
        self.t_embedder = Embedder(config.frequency_embedding_dim, config, config.timestep_non_linearity)
        self.t_block = nn.Linear(d, 6 * d, bias=config.t_block_bias)
        self.y_embedder = Embedder(config.context_dim, config, config.context_non_linearity, config.context_norm)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(d, config.norm_eps)
        self.output = nn.Linear(d, config.out_channels, bias=config.fc_bias)
        self.final_layer_scale_shift_table = nn.Parameter(torch.randn(2, d) / d**0.5)
        self._rope: tuple[Tensor, Tensor] | None = None
        # In training: keep a layer's input only, and compute the rest again for the backward pass.
        self.checkpoint_activations = False

    @property
    def blocks(self) -> list[Layer]:
        return cast("list[Layer]", list(self.layers))

    def set_heads_first(self, heads_first: bool) -> None:
        """Reorder attention weights for speed (True) or back to the checkpoint's layout (False)."""
        for layer in self.blocks:
            layer.attention.set_heads_first(heads_first)
            layer.cross_attention.set_heads_first(heads_first)

    def rope(self, length: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
        c = self.config
        if not c.use_rope:
            return None
        if length > c.max_positions:
            raise ValueError(
                f"{length} frames exceed max_positions {c.max_positions}; use separate_long for long recordings"
            )
        if self._rope is None or self._rope[0].shape[0] < length or self._rope[0].device != device:
            theta = max(10_000.0, 2.0 * c.max_positions)
            # A clean length avoids rebuilding for every new window size.
            self._rope = rope_table(min(-(-length // 512) * 512, c.max_positions), c.head_dim, theta, device)
        cos, sin = self._rope
        return cos[:length], sin[:length]

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        *,
        memory: Tensor,
        padding_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        features: list[Tensor] | None = None,
    ) -> Tensor:
        """x [B, T, D] (projected), time [B] in 0..1, memory [B, L, D]; masks True where valid -> [B, T, 2C].

        features: a list that gets every layer's output [B, T, D].
        """
        c = self.config
        x = self.x_embedder(x)
        t = self.t_embedder(sinusoid(time, c.frequency_embedding_dim).to(x.dtype))  # [B, D]
        act = ACTIVATIONS[c.t_block_non_linearity]
        modulation = self.t_block(act(t)).unflatten(-1, (6, c.dim))
        y = F.dropout(self.y_embedder(memory), c.context_embedder_dropout, self.training)
        rope = self.rope(x.shape[1], x.device)
        for layer in self.blocks:
            if self.checkpoint_activations and torch.is_grad_enabled():
                x = cast(
                    Tensor,
                    checkpoint(layer, x, modulation, y, padding_mask, memory_mask, rope, use_reentrant=False),
                )
            else:
                x = layer(x, modulation, y, padding_mask, memory_mask, rope)
            if features is not None:
                features.append(x)
        shift, scale = (self.final_layer_scale_shift_table + t[:, None]).to(x.dtype)[:, :, None].unbind(1)
        return self.output(self.norm(x) * (1 + scale) + shift)
