"""Video frames to features: the image tower of a Perception Encoder (PE-Core), and what prepares its input.

Sources: facebookresearch/perception_models (`core/vision_encoder/pe.py`) for the tower, facebookresearch/sam-audio
(`model/vision_encoder.py`, `processor.py`) for preprocessing, sampling and masking.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ConfigError, VisionEncoderConfig
from .frames import latent_times


@dataclass(frozen=True)
class TowerConfig:
    """Sizes of the image tower, under the reference's names."""

    image_size: int = 336
    patch_size: int = 14
    width: int = 1024
    layers: int = 24
    heads: int = 16
    mlp_ratio: float = 4.0
    output_dim: int = 1024
    attn_pooler_heads: int = 8
    pool_type: str = "attn"
    use_cls_token: bool = True

    def __post_init__(self) -> None:
        if self.pool_type != "attn" or not self.use_cls_token:
            raise ConfigError(
                "vision_encoder: only towers with a class token and attention pooling are supported, "
                f"got use_cls_token={self.use_cls_token}, pool_type={self.pool_type!r}"
            )
        if self.width % (4 * self.heads):
            # Half of a head's channels turns with the column, half with the row, both in pairs.
            raise ConfigError(f"vision_encoder: width {self.width} must be a multiple of 4 x heads ({self.heads})")
        if self.width % self.attn_pooler_heads:
            raise ConfigError(
                f"vision_encoder: width {self.width} must be a multiple of {self.attn_pooler_heads} pooler heads"
            )


# `vision_encoder.name` of a config -> sizes; another tower is one more entry.
TOWERS: dict[str, TowerConfig] = {
    "PE-Core-L14-336": TowerConfig(),
    # Of no released model: the size the golden files were made with, so that tests run in a moment.
    "PE-tiny": TowerConfig(image_size=56, width=32, layers=2, heads=2, output_dim=24, attn_pooler_heads=4),
}

_RESIZE = {"NEAREST": "nearest", "NEAREST_EXACT": "nearest-exact", "BILINEAR": "bilinear", "BICUBIC": "bicubic"}

# Checkpoints hold the whole CLIP model; these parts of `vision_encoder.model.` are its text tower, which nothing uses.
CLIP_TEXT_PREFIXES = tuple(
    "vision_encoder.model." + name
    for name in (
        "token_embedding.",
        "positional_embedding",
        "transformer.",
        "ln_final.",
        "text_projection",
        "logit_scale",
    )
)


def is_clip_text_key(key: str) -> bool:
    """Whether a checkpoint key belongs to the CLIP text tower: accepted at load, not kept."""
    return key.startswith(CLIP_TEXT_PREFIXES)


class _Attention(nn.Module):
    """Multi-head attention with q, k, v stacked in one projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, query: Tensor, tokens: Tensor, rotation: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """query [B, Q, W], tokens [B, S, W] -> [B, Q, W]; `rotation` turns queries and keys alike (Q = S)."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, w, b).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x, w, b in zip((query, tokens, tokens), weights, biases, strict=True)
        )  # [B, heads, tokens, head width]
        if rotation is not None:
            q, k = _rotate(q, *rotation), _rotate(k, *rotation)
        out = F.scaled_dot_product_attention(q, k, v)
        projected: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return projected


class _MLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.c_proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c_proj(F.gelu(self.c_fc(x)))
        return out


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = _Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = _MLP(width, hidden)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, rotation)
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class _Blocks(nn.Module):
    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        hidden = int(config.width * config.mlp_ratio)
        self.resblocks = nn.ModuleList([_Block(config.width, config.heads, hidden) for _ in range(config.layers)])


class _AttentionPool(nn.Module):
    """One learned query over all tokens, class token included."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.randn(1, 1, config.width))
        self.attn = _Attention(config.width, config.attn_pooler_heads)
        self.layernorm = nn.LayerNorm(config.width)
        self.mlp = _MLP(config.width, int(config.width * config.mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        a = self.attn(self.probe.expand(len(x), -1, -1), x)
        out: Tensor = (a + self.mlp(self.layernorm(a)))[:, 0]
        return out


class VisionTower(nn.Module):
    """Pixels [B, 3, H, W] in -1..1 -> [B, output_dim]; H and W multiples of the patch size, any grid."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.config = config
        grid, scale = config.image_size // config.patch_size, config.width**-0.5
        self.conv1 = nn.Conv2d(3, config.width, config.patch_size, config.patch_size, bias=False)
        self.class_embedding = nn.Parameter(scale * torch.randn(config.width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(1 + grid * grid, config.width))
        self.ln_pre = nn.LayerNorm(config.width)
        self.transformer = _Blocks(config)
        self.ln_post = nn.LayerNorm(config.width)
        self.attn_pool = _AttentionPool(config)
        self.proj = nn.Parameter(scale * torch.randn(config.width, config.output_dim))

    def tokens(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 1 + rows * columns, width], class token first, before pooling."""
        patches = self.conv1(pixels)  # [B, W, rows, columns]
        rows, columns = patches.shape[-2:]
        x = patches.flatten(2).transpose(1, 2)
        x = torch.cat((self.class_embedding.expand(len(x), 1, -1), x), dim=1)
        x = self.ln_pre(x + self._positions(rows, columns))
        head_width = self.config.width // self.config.heads
        rotation = _rotation(rows, columns, head_width, x.device)
        for block in self.transformer.resblocks:
            x = block(x, rotation)
        out: Tensor = self.ln_post(x)
        return out

    def forward(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.attn_pool(self.tokens(pixels)) @ self.proj
        return out

    def _positions(self, rows: int, columns: int) -> Tensor:
        positions = self.positional_embedding
        side = self.config.image_size // self.config.patch_size
        if (rows, columns) == (side, side):
            return positions
        grid = positions[1:].T.unflatten(1, (side, side))[None]
        grid = F.interpolate(grid, (rows, columns), mode="bilinear", align_corners=False)
        return torch.cat((positions[:1], grid[0].flatten(1).T))


class _Clip(nn.Module):
    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.visual = VisionTower(config)


class VisionEncoder(nn.Module):
    """Videos to one feature per frame. `tower` gives the sizes of a `config.name` that TOWERS does not know."""

    def __init__(self, config: VisionEncoderConfig, tower: TowerConfig | None = None) -> None:
        super().__init__()
        tower = tower or TOWERS.get(config.name)
        if tower is None:
            raise ConfigError(f"vision_encoder: unknown name {config.name!r}; known are {', '.join(TOWERS)}")
        if tower.output_dim != config.dim:
            raise ConfigError(
                f"vision_encoder: dim is {config.dim}, but {config.name} gives {tower.output_dim} channels"
            )
        if config.interpolation_mode.upper() not in _RESIZE:
            raise ConfigError(
                f"vision_encoder: interpolation_mode must be one of {', '.join(_RESIZE)}, "
                f"got {config.interpolation_mode!r}"
            )
        self.config = config
        self.model = _Clip(tower)

    def preprocess(self, frames: Tensor) -> Tensor:
        """Frames [F, 3, H, W] of 0..255, uint8 or float -> pixels [F, 3, image_size, image_size] float32 in -1..1.

        Resized without cropping. uint8 frames are rounded to whole values again, as image libraries do.
        """
        resized = resize_frames(frames, self.config.image_size, self.config.interpolation_mode)
        return (resized.float() / 255 - 0.5) / 0.5

    @torch.no_grad()
    def encode_frames(self, frames: Tensor) -> Tensor:
        """[F, 3, H, W] -> [F, dim], `batch_size` frames at a time, preprocessing included."""
        if frames.dim() != 4 or frames.shape[1] != 3:
            raise ValueError(f"a video must be [frames, 3, H, W], got {list(frames.shape)}")
        weight = self.model.visual.conv1.weight
        features = [weight.new_empty(0, self.config.dim)]
        for group in frames.split(self.config.batch_size) if len(frames) else ():
            out = self.model.visual(self.preprocess(group.to(weight.device)).to(weight.dtype))
            features.append(F.normalize(out, dim=-1) if self.config.normalize_feature else out)
        return torch.cat(features)

    def forward(self, videos: Sequence[Tensor] | Tensor) -> Tensor:
        """B videos [F_i, 3, H_i, W_i] -> [B, longest F, dim], zeros after a shorter one's end."""
        return nn.utils.rnn.pad_sequence([self.encode_frames(video) for video in videos], batch_first=True)


def resize_frames(frames: Tensor, size: int, interpolation_mode: str) -> Tensor:
    """Frames [F, 3, H, W] -> [F, 3, size, size], without cropping, in the dtype given (other integers: float32).

    `interpolation_mode` is `VisionEncoderConfig`'s. uint8 frames are rounded to whole values again, as image libraries
    do, so resizing before `VisionEncoder.preprocess` gives the pixels that it gives alone.
    """
    if frames.shape[-2:] == (size, size):
        return frames
    mode, pixels = _RESIZE[interpolation_mode.upper()], frames.float()
    if mode.startswith("nearest"):
        pixels = F.interpolate(pixels, (size, size), mode=mode)
    else:
        pixels = F.interpolate(pixels, (size, size), mode=mode, antialias=True, align_corners=False)
    return pixels.round().clamp(0, 255).to(torch.uint8) if frames.dtype == torch.uint8 else pixels


def _rotation(rows: int, columns: int, head_width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines [1 + rows * columns, head_width / 2] of the 2-D rotary embedding.

    The first half of a head turns with the column, the second with the row, both counted from 1; the class token
    does not turn.
    """
    half = head_width // 2
    frequencies = 10_000.0 ** (-torch.arange(0, half, 2, device=device).float() / half)
    y = torch.arange(1, rows + 1, device=device).float().repeat_interleave(columns)
    x = torch.arange(1, columns + 1, device=device).float().repeat(rows)
    angles = torch.cat((x[:, None] * frequencies, y[:, None] * frequencies), dim=1)
    angles = F.pad(angles, (0, 0, 1, 0))
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn neighbouring channels of [B, heads, tokens, head width]; in float32, which low precision needs here."""
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2).to(x.dtype)


def sample_frames(video: Tensor, size: int) -> Tensor:
    """`size` frames of a video [F, 3, H, W], spread evenly from its first to its last, whatever its real rate is."""
    if video.dim() != 4 or not len(video):
        raise ValueError(f"a video must be [frames, 3, H, W] with at least one frame, got {list(video.shape)}")
    index = torch.linspace(0, len(video) - 1, size).round().long()  # half to even
    return video[index.to(video.device)]


def nearest_frames(seconds: Tensor, size: int, *, hop_length: int, sample_rate: int) -> Tensor:
    """Index [size] of the decoded frame nearest to each latent frame, at k * hop_length / sample_rate seconds.

    `seconds` [F] are the frames' presentation times, ascending. The earlier frame wins a tie; past the end the last
    frame repeats.
    """
    seconds = seconds.double()
    times = latent_times(0, size, hop_length=hop_length, sample_rate=sample_rate).to(seconds.device)
    after = torch.searchsorted(seconds, times).clamp(max=len(seconds) - 1)
    before = (after - 1).clamp(min=0)
    first = (times - seconds[before]).abs() <= (seconds[after] - times).abs()
    return torch.searchsorted(seconds, seconds[torch.where(first, before, after)])


def mask_videos(
    videos: Sequence[Tensor], masks: Sequence[Tensor], *, masked: Literal["black", "kept"] = "black"
) -> list[Tensor]:
    """Black out pixels of videos [F, 3, H, W] by masks [F, 1 or 3, H, W] of any dtype, set where not 0.

    `masked` says what becomes of the pixels where the mask is set: "black" (the background stays) is what the
    reference's function does; "kept" (the object stays) is what its paper and benchmark describe. Which of the two
    the released weights expect is not documented, so callers who mark the wanted object should try both.
    """
    if masked not in ("black", "kept"):
        raise ValueError(f"masked must be 'black' or 'kept', got {masked!r}")
    keep = [(mask == 0) if masked == "black" else (mask != 0) for mask in masks]
    return [video * k.to(device=video.device, dtype=video.dtype) for video, k in zip(videos, keep, strict=True)]
