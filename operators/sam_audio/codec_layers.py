"""Building blocks of the DAC-VAE codec (facebookresearch/dacvae, `model/` and `nn/`), under its parameter names.

Everything works on `[rows, channels, time]`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Snake(nn.Module):
    """x + sin(alpha x)^2 / (alpha + 1e-9), one alpha per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        # 1e-9 is zero in half precision, so the reciprocal is taken in float32.
        inverse = (self.alpha.float() + 1e-9).reciprocal().to(x.dtype)
        # In place: one fresh tensor instead of five. At full rate these are the largest tensors of the codec.
        return (self.alpha * x).sin_().square_().mul_(inverse).add_(x)


class WNConv1d(nn.Conv1d):
    """Convolution stored as direction and length (`weight_v`, `weight_g`); `fold` merges them into `weight`."""

    def __init__(self, ins: int, outs: int, kernel: int, *, stride: int = 1, padding: int = 0, dilation: int = 1):
        super().__init__(ins, outs, kernel, stride=stride, padding=padding, dilation=dilation)
        _split(self)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, _weight(self), self.bias, self.stride, self.padding, self.dilation)


class WNConvTranspose1d(nn.ConvTranspose1d):
    """Transposed counterpart of WNConv1d, upsampling by exactly `stride` for odd strides as well.

    Its lengths `weight_g` belong to *input* channels, which are dimension 0 of a transposed weight.
    """

    def __init__(self, ins: int, outs: int, stride: int):
        super().__init__(ins, outs, 2 * stride, stride=stride, padding=(stride + 1) // 2, output_padding=stride % 2)
        _split(self)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return F.conv_transpose1d(x, _weight(self), self.bias, self.stride, self.padding, self.output_padding)


def _split(conv: nn.Conv1d | nn.ConvTranspose1d) -> None:
    weight = conv.weight.detach()
    del conv.weight
    conv.weight_g = nn.Parameter(torch.linalg.vector_norm(weight, dim=(1, 2), keepdim=True))
    conv.weight_v = nn.Parameter(weight.clone())


def _weight(conv: nn.Conv1d | nn.ConvTranspose1d) -> Tensor:
    if "weight" in conv._parameters:
        return conv.weight
    return torch._weight_norm(conv.weight_v, conv.weight_g, 0)


def fold_weight_norm(module: nn.Module) -> None:
    """Replace `weight_g`, `weight_v` by `weight` in every weight-normalised convolution under `module`.

    Saves the normalisation on every call and half of the parameters' memory. One way: load the state dict before.
    """
    for conv in module.modules():
        if isinstance(conv, (WNConv1d, WNConvTranspose1d)) and "weight" not in conv._parameters:
            g, v = conv.weight_g, conv.weight_v
            weight = torch._weight_norm(v.detach().float(), g.detach().float(), 0).to(v.dtype)
            del conv.weight_g, conv.weight_v
            conv.weight = nn.Parameter(weight, requires_grad=False)


class ResidualUnit(nn.Module):
    """Snake, dilated convolution of width 7, Snake, pointwise convolution, plus the input."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            Snake(channels),
            WNConv1d(channels, channels, 7, padding=3 * dilation, dilation=dilation),
            Snake(channels),
            WNConv1d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        return out + x


def residual_units(channels: int) -> list[ResidualUnit]:
    return [ResidualUnit(channels, dilation) for dilation in (1, 3, 9)]
