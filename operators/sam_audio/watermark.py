"""The watermark branch of the DAC-VAE decoder (facebookresearch/dacvae): a 16-bit message hidden in the audio.

The branch listens to the clean audio, adds the message's embedding at 1/320 of the sample rate and returns a
signal to be added to the audio. All its convolutions look backwards only and its LSTMs carry state from the first
sample to the last, so it runs over a recording piece by piece: a `State` keeps, per layer, what the next piece needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .codec_layers import Snake, WNConv1d

MESSAGE_BITS = 16
GAIN = 0.25
# Strides of the branch's four levels, coarsest first; fixed in the reference whatever the decoder's rates are.
STRIDES = (8, 5, 4, 2)
DOWNSAMPLING = math.prod(STRIDES)
_LATENT = 128

State = dict[nn.Module, "Tensor | tuple[Tensor, Tensor]"]


class CausalConv1d(nn.Conv1d):
    """Convolution over (kernel - stride) past samples, zeros before the first, and the present ones."""

    def __init__(self, ins: int, outs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(ins, outs, kernel, stride=stride)
        self.past = kernel - stride

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        """[rows, ins, n] -> [rows, outs, ceil(n / stride)]; only a recording's last piece may need the rounding."""
        x = torch.cat((_recall(self, x, self.past, state), x), dim=-1)
        if state is not None:
            state[self] = x[..., -self.past :].clone()
        x = F.pad(x, (0, -(x.shape[-1] - self.past) % self.stride[0]))
        return super().forward(x)


class CausalConvTranspose1d(nn.ConvTranspose1d):
    """Upsampling by `stride` with a kernel of twice that: every output sees the present and the previous input."""

    def __init__(self, ins: int, outs: int, stride: int) -> None:
        super().__init__(ins, outs, 2 * stride, stride=stride)

    def forward(self, x: Tensor, output_size: list[int] | None = None, state: State | None = None) -> Tensor:
        """[rows, ins, n] -> [rows, outs, n * stride]."""
        n, stride = x.shape[-1], self.stride[0]
        # Computing again from the previous input, rather than keeping its half-finished outputs, adds the bias once.
        x = torch.cat((_recall(self, x, 1, state), x), dim=-1)
        if state is not None:
            state[self] = x[..., -1:].clone()
        return super().forward(x)[..., stride : (n + 1) * stride]


def _recall(layer: nn.Module, x: Tensor, length: int, state: State | None) -> Tensor:
    past = None if state is None else state.get(layer)
    return past if isinstance(past, Tensor) else x.new_zeros(*x.shape[:-1], length)


class EluUnit(nn.Module):
    """ELU, causal convolution of width 3 to half the channels, ELU, pointwise convolution back, plus the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            [
                nn.ELU(),
                CausalConv1d(channels, channels // 2, 3),
                nn.ELU(),
                nn.Conv1d(channels // 2, channels, 1),
            ]
        )

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        out: Tensor = self.block[3](F.elu(self.block[1](F.elu(x), state)))
        return out.add_(x)


class SkipLSTM(nn.Module):
    """Two LSTM layers over time, plus the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(channels, channels, num_layers=2, batch_first=True)

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        memory = None if state is None else state.get(self)
        out, memory = self.lstm(x.transpose(1, 2).contiguous(), memory)
        if state is not None:
            state[self] = memory
        return out.transpose(1, 2) + x


class _Listening(nn.Module):
    """Ends of the way down. `pre` starts with the decoder's own output head, stored here in the reference."""

    def __init__(self, trunk: int, width: int, hidden: int) -> None:
        super().__init__()
        self.pre = nn.Sequential(Snake(trunk), WNConv1d(trunk, 1, 7, padding=3), nn.Tanh(), CausalConv1d(1, width, 7))
        self.post = nn.ModuleList([SkipLSTM(hidden), nn.ELU(), CausalConv1d(hidden, _LATENT, 7)])


class _Speaking(nn.Module):
    """Ends of the way up."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.pre = nn.ModuleList([CausalConv1d(_LATENT, hidden, 7), SkipLSTM(hidden)])
        self.post = nn.ModuleList([nn.ELU(), CausalConv1d(width, 1, 7)])


class _Message(nn.Module):
    """Embedding of the message: row 2i or 2i + 1 of the table for bit i, summed over the bits."""

    def __init__(self) -> None:
        super().__init__()
        self.msg_processor = nn.Embedding(2 * MESSAGE_BITS, _LATENT)

    def forward(self, message: Tensor) -> Tensor:
        """[rows, 16] of 0/1 -> [rows, 128, 1]."""
        bits = 2 * torch.arange(MESSAGE_BITS, device=message.device) + message.long()
        embedded: Tensor = self.msg_processor(bits).sum(dim=1)
        return embedded.unsqueeze(-1)


class Watermark(nn.Module):
    """`decoder.wm_model`: the ends of both ways and the message; the levels between lie in the decoder's blocks."""

    def __init__(self, trunk: int, width: int, hidden: int) -> None:
        super().__init__()
        self.encoder_block = _Listening(trunk, width, hidden)
        self.decoder_block = _Speaking(width, hidden)
        self.msg_processor = _Message()

    def head(self, trunk: Tensor) -> Tensor:
        """Trunk output [rows, channels, N] -> clean audio [rows, 1, N] in -1..1."""
        audio: Tensor = self.encoder_block.pre[:3](trunk)
        return audio

    def forward(
        self, clean: Tensor, message: Tensor, levels: Sequence[nn.ModuleList], state: State | None = None
    ) -> Tensor:
        """The signal to add to `clean` [rows, 1, n], before the gain.

        `levels` are the decoder's blocks, coarsest first. With a `state` (an empty dict for the first piece), n must
        be a multiple of 320 in every piece but the last.
        """
        x = self.encoder_block.pre[3](clean, state)
        for level in reversed(levels):
            x = level[11](F.elu(level[7](x, state)), state)
        lstm, _, conv = self.encoder_block.post
        x = conv(F.elu(lstm(x, state)), state)

        conv, lstm = self.decoder_block.pre
        x = lstm(conv(x + self.msg_processor(message), state), state)
        for level in levels:
            x = level[6](level[3](F.elu(x), state=state), state)
        out: Tensor = self.decoder_block.post[1](F.elu(x), state)
        return out[..., : clean.shape[-1]]


def draw_message(rows: int, generator: torch.Generator | None = None) -> Tensor:
    """Random bits [rows, 16], float 0/1; as in the reference from torch's global CPU generator, unless one is given."""
    device = "cpu" if generator is None else generator.device
    return torch.randint(0, 2, (rows, MESSAGE_BITS), generator=generator, device=device).float()
