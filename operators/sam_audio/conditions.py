"""What the network is given besides noise and time.

Source: facebookresearch/sam-audio, `sam_audio/model/` (align, text encoder).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .config import ConfigError, TextEncoderConfig

TextEncoder = Callable[[list[str]], tuple[Tensor, Tensor]]

_TEXTS_KEPT = 1024  # a job has a handful of prompts; this bounds a service that sees many


@dataclass(frozen=True)
class Conditions:
    """Computed once a solve. B rows, T frames, L text tokens, C latent channels, D width."""

    frames: Tensor  # [B, T, D] the constant part of the input: mixture, video, anchors
    memory: Tensor  # [B, L, D] projected text, without time
    mixture: Tensor  # [B, T, 2C] mixture latents twice
    memory_mask: Tensor | None = None  # [B, L]
    padding_mask: Tensor | None = None  # [B, T]

    def repeat(self, times: int) -> Conditions:
        """Every row `times` times, copies next to each other."""

        def rows(tensor: Tensor) -> Tensor:
            return tensor.repeat_interleave(times, dim=0)

        return Conditions(
            rows(self.frames),
            rows(self.memory),
            rows(self.mixture),
            None if self.memory_mask is None else rows(self.memory_mask),
            None if self.padding_mask is None else rows(self.padding_mask),
        )


class AlignMaskedVideo(nn.Module):
    """Video features [B, V, T] to what they add to the frames, [B, T, D] (reference: `AlignModalities`)."""

    def __init__(self, video_dim: int, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(video_dim, dim, kernel_size=1)
        self.layer_norm = nn.LayerNorm(dim)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, video: Tensor) -> Tensor:
        normed: Tensor = self.layer_norm(self.conv(video).transpose(1, 2))
        return torch.tanh(self.gate) * normed


class TextFeatures:
    """Features of descriptions: the encoder is built when first used, every description is encoded once.

    Not a module: the encoder's weights are no part of a checkpoint.
    """

    def __init__(self, config: TextEncoderConfig, encoder: TextEncoder | None = None) -> None:
        self.config = config
        self._encoder = encoder
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    def encoder(self, device: torch.device) -> TextEncoder:
        """The encoder, on `device` where it can be moved."""
        if self._encoder is None:
            self._encoder = _build(self.config)
        if hasattr(self._encoder, "to"):
            self._encoder.to(device)
        return self._encoder

    def __call__(self, descriptions: Sequence[str], like: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, L, dim] and mask [B, L] (True = token), on the device and in the type of `like`.

        Encoded one by one, so that a description's features do not depend on its neighbours.
        """
        for text in descriptions:
            if text not in self._kept:
                features, mask = self.encoder(like.device)([text])
                self._kept[text] = features[0, mask[0]].to(like)
            self._kept.move_to_end(text)
        rows = [self._kept[text].to(like) for text in descriptions]
        while len(self._kept) > _TEXTS_KEPT:
            self._kept.popitem(last=False)
        lengths = torch.tensor([len(row) for row in rows], device=like.device)
        features = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return features, torch.arange(features.shape[1], device=like.device) < lengths[:, None]


def _build(config: TextEncoderConfig) -> TextEncoder:
    if config.kind == "t5":
        from .text import T5TextEncoder

        return T5TextEncoder(config)
    if config.kind == "minilm":
        from .minilm import MiniLMTextEncoder

        return MiniLMTextEncoder(config)
    raise ConfigError(f"text_encoder: kind must be 't5' or 'minilm', got {config.kind!r}")
