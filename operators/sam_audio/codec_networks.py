"""The networks of the DAC-VAE codec: encoder, bottleneck and decoder (facebookresearch/dacvae, `model/dacvae.py`).

Names of attributes are those of the released checkpoints.
"""

from __future__ import annotations

from torch import Tensor, nn

from .codec_layers import Snake, WNConv, WNConv1d, WNConvTranspose1d, convolutions, residual_units
from .config import ConfigError, DACVAEConfig
from .watermark import STRIDES, CausalConv1d, CausalConvTranspose1d, EluUnit, Watermark


class _EncoderBlock(nn.Module):
    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        down = WNConv1d(channels, 2 * channels, 2 * stride, stride=stride, padding=stride // 2)
        self.block = nn.Sequential(*residual_units(channels), Snake(channels), down)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        return out


class Encoder(nn.Module):
    def __init__(self, config: DACVAEConfig) -> None:
        super().__init__()
        width = config.encoder_dim
        layers: list[nn.Module] = [WNConv1d(1, width, 7, padding=3)]
        for stride in config.encoder_rates:
            layers.append(_EncoderBlock(width, stride))
            width *= 2
        layers += [Snake(width), WNConv1d(width, config.latent_dim, 3, padding=1)]
        self.block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        return out

    def convolutions(self) -> list[WNConv1d]:
        return [conv for conv in convolutions([self]) if isinstance(conv, WNConv1d)]


class _DecoderBlock(nn.Module):
    """One level of the decoder: entries 0, 1, 4, 5, 8 make audio, the others belong to the watermark."""

    def __init__(self, ins: int, outs: int, stride: int, watermark_stride: int) -> None:
        super().__init__()
        first, second, third = residual_units(outs)
        hidden, width = ins // 3, outs // 3
        self.block = nn.ModuleList(
            [
                Snake(ins),
                WNConvTranspose1d(ins, outs, stride),
                nn.ELU(),
                CausalConvTranspose1d(hidden, width, watermark_stride),
                first,
                second,
                EluUnit(width),
                EluUnit(width),
                third,
                nn.Identity(),
                nn.ELU(),
                CausalConv1d(width, hidden, 2 * watermark_stride, watermark_stride),
            ]
        )
        self.trunk = (0, 1, 4, 5, 8)

    def forward(self, x: Tensor) -> Tensor:
        for index in self.trunk:
            x = self.block[index](x)
        return x


class Decoder(nn.Module):
    def __init__(self, config: DACVAEConfig) -> None:
        super().__init__()
        if len(config.decoder_rates) != len(STRIDES):
            raise ConfigError(
                f"audio_codec: decoder_rates must have {len(STRIDES)} entries, as many as the watermark has levels, "
                f"got {list(config.decoder_rates)}"
            )
        widths = [config.decoder_dim // 2**i for i in range(len(STRIDES) + 1)]
        layers: list[nn.Module] = [WNConv1d(config.latent_dim, widths[0], 7, padding=3)]
        for i, (rate, stride) in enumerate(zip(config.decoder_rates, STRIDES, strict=True)):
            layers.append(_DecoderBlock(widths[i], widths[i + 1], rate, stride))
        self.model = nn.Sequential(*layers)
        self.wm_model = Watermark(trunk=widths[-1], width=widths[-1] // 3, hidden=widths[0] // 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        return out

    def levels(self) -> list[nn.ModuleList]:
        return [level.block for level in self._blocks()]

    def convolutions(self) -> list[WNConv]:
        """The convolutions from latents to clean audio."""
        path: list[nn.Module] = [self.model[0]]
        for level in self._blocks():
            path += [level.block[i] for i in level.trunk]
        return convolutions([*path, self.wm_model.encoder_block.pre[1]])

    def _blocks(self) -> list[_DecoderBlock]:
        return [level for level in self.model if isinstance(level, _DecoderBlock)]


class Bottleneck(nn.Module):
    def __init__(self, latent_dim: int, channels: int) -> None:
        super().__init__()
        self.in_proj = WNConv1d(latent_dim, 2 * channels, 1)
        self.out_proj = WNConv1d(channels, latent_dim, 1)
