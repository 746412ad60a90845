"""Building blocks of the DAC-VAE codec (facebookresearch/dacvae, `model/` and `nn/`), under its parameter names.

Everything works on `[rows, channels, time]`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Snake(nn.Module):
    """x + sin(alpha x)^2 / (alpha + 1e-9), one alpha per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        # 1e-9 is zero in half precision, so the reciprocal is taken in float32 at least.
        inverse = (self.alpha.to(torch.promote_types(x.dtype, torch.float32)) + 1e-9).reciprocal().to(x.dtype)
        # In place: one fresh tensor instead of five. At full rate these are the largest tensors of the codec.
        return (self.alpha * x).sin_().square_().mul_(inverse).add_(x)


class WNConv1d(nn.Conv1d):
    """Convolution stored as direction and length (`weight_v`, `weight_g`), merged into `weight` by folding."""

    weight_g: nn.Parameter
    weight_v: nn.Parameter

    def __init__(
        self, ins: int, outs: int, kernel: int, *, stride: int = 1, padding: int = 0, dilation: int = 1
    ) -> None:
        super().__init__(ins, outs, kernel, stride=stride, padding=padding, dilation=dilation)
        self.pad = padding
        self.span = dilation * (kernel - 1) + 1
        _split(self)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, _weight(self), self.bias, self.stride, self.pad, self.dilation)

    def length(self, inputs: int) -> int:
        """How many outputs `inputs` samples give."""
        return (inputs + 2 * self.pad - self.span) // self.stride[0] + 1

    def reach(self, start: int, end: int) -> tuple[int, int]:
        """The inputs [low, high) that outputs [start, end) depend on; may lie outside the signal (zeros there)."""
        low = start * self.stride[0] - self.pad
        return low, (end - 1) * self.stride[0] - self.pad + self.span


class WNConvTranspose1d(nn.ConvTranspose1d):
    """Transposed counterpart of WNConv1d, upsampling by exactly `stride`, also when that is odd.

    Its lengths `weight_g` belong to *input* channels, which are dimension 0 of a transposed weight.
    """

    weight_g: nn.Parameter
    weight_v: nn.Parameter

    def __init__(self, ins: int, outs: int, stride: int) -> None:
        self.pad = (stride + 1) // 2
        super().__init__(ins, outs, 2 * stride, stride=stride, padding=self.pad, output_padding=stride % 2)
        _split(self)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return F.conv_transpose1d(x, _weight(self), self.bias, self.stride, self.pad, self.output_padding)

    def reach(self, start: int, end: int) -> tuple[int, int]:
        """As in WNConv1d."""
        stride, width = self.stride[0], self.kernel_size[0]
        low = -(-(start + self.pad - width + 1) // stride)
        return low, (end - 1 + self.pad) // stride + 1


WNConv = WNConv1d | WNConvTranspose1d


def _split(conv: WNConv) -> None:
    weight = conv.weight.detach()
    del conv.weight
    conv.weight_g = nn.Parameter(torch.linalg.vector_norm(weight, dim=(1, 2), keepdim=True))
    conv.weight_v = nn.Parameter(weight.clone())


def _weight(conv: WNConv) -> Tensor:
    if "weight" in conv._parameters:
        return conv.weight
    return torch._weight_norm(conv.weight_v, conv.weight_g, 0)


def fold_weight_norm(module: nn.Module) -> None:
    """Replace `weight_g`, `weight_v` by `weight` in every weight-normalised convolution under `module`.

    Saves the normalisation on every call and half of the parameters' memory. One way: load the state dict before.
    """
    for conv in module.modules():
        if isinstance(conv, (WNConv1d, WNConvTranspose1d)) and "weight" not in conv._parameters:
            g, v = conv.weight_g.detach(), conv.weight_v.detach()
            precise = torch.promote_types(v.dtype, torch.float32)
            weight = torch._weight_norm(v.to(precise), g.to(precise), 0).to(v.dtype)
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


def convolutions(parts: Iterable[nn.Module]) -> list[WNConv]:
    """The weight-normalised convolutions inside `parts`, in the order in which they run."""
    return [conv for part in parts for conv in part.modules() if isinstance(conv, (WNConv1d, WNConvTranspose1d))]


def reach(convs: Sequence[WNConv], start: int, end: int) -> tuple[int, int]:
    """The inputs [low, high) of a chain of convolutions that its outputs [start, end) depend on."""
    for conv in reversed(convs):
        start, end = conv.reach(start, end)
    return start, end
