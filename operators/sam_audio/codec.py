"""DAC-VAE, the released codec: mono waveform to 25 latent frames a second and back (facebookresearch/dacvae).

Parameter names are those of the released checkpoints under `audio_codec.`. Everything runs in pieces of bounded
size: `encode` and the decoder's convolutions with exactly the context that each piece's outputs depend on, the
watermark with its state carried from piece to piece. Pieces and whole differ by float rounding only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import codec_layers
from .codec_layers import reach
from .codec_networks import Bottleneck, Decoder, Encoder
from .config import DACVAEConfig
from .watermark import DOWNSAMPLING, GAIN, MESSAGE_BITS, State, draw_message

# Row-frames that go through the network at once, unless the caller says otherwise. The decoder of the released size
# holds about 6 MB for each in float32.
CALL_FRAMES_CPU = 128
CALL_FRAMES_DEVICE = 1024


class DACVAE(nn.Module):
    """The codec. `sample_rate` in Hz, `hop_length` in samples a frame, `channels` of a latent frame."""

    def __init__(self, config: DACVAEConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or DACVAEConfig()
        self.sample_rate = config.sample_rate
        self.hop_length = config.hop_length
        self.channels = config.channels
        self.encoder = Encoder(config)
        self.quantizer = Bottleneck(config.latent_dim, config.codebook_dim)
        self.decoder = Decoder(config)
        self.upsampling = math.prod(config.decoder_rates)

    def fold_weight_norm(self) -> DACVAE:
        """Merge the weight-norm pairs, for speed and memory; state dicts no longer load afterwards."""
        codec_layers.fold_weight_norm(self)
        return self

    # Encoding

    @torch.no_grad()
    def encode(self, wav: Tensor, *, call_frames: int | None = None) -> Tensor:
        """[B, 1, N] at `sample_rate` -> mean latents [B, C, T], T = ceil(N / hop) for even rates.

        The end is filled up to a whole frame by reflection; a sound too short to reflect (where the reference fails)
        is filled with zeros. At most about `call_frames` row-frames are worked on at once. ValueError if N is 0.
        """
        if wav.dim() != 3 or wav.shape[1] != 1 or not wav.shape[-1]:
            raise ValueError(f"wav must be [B, 1, N] with N > 0, got {list(wav.shape)}; average the channels first")
        wav = wav.to(self._weight().dtype)
        missing = -wav.shape[-1] % self.hop_length
        wav = F.pad(wav, (0, missing), mode="reflect" if missing < wav.shape[-1] else "constant")

        samples, convs = wav.shape[-1], self.encoder.convolutions()
        total = samples
        for conv in convs:
            total = conv.length(total)
        total = max(total, 0)  # odd rates round down: a frame or so may be all there is
        latents = wav.new_empty(wav.shape[0], self.channels, total)
        budget = self._budget(wav, call_frames)
        context = -(-reach(convs, 0, 1)[1] // self.hop_length)
        with _exact_convolutions(wav.device):
            for rows in _rows(wav.shape[0], budget, total):
                for start, end in _pieces(total, budget, context):
                    low, high = reach(convs, start, end)
                    # On the hop grid, so that every strided layer keeps the phase it has in the whole.
                    low = max(0, low // self.hop_length)
                    piece = self.encoder(wav[rows, :, low * self.hop_length : min(high, samples)])
                    # First half of the channels: the mean. The scale half is for sampling in training.
                    mean = self.quantizer.in_proj(piece)[:, : self.channels]
                    latents[rows, :, start:end] = mean[..., start - low : end - low]
        return latents

    # Decoding

    @torch.no_grad()
    def trunk(self, latents: Tensor) -> Tensor:
        """[rows, C, T] -> what the output head reads, [rows, decoder_dim / 16, T * hop], in one piece."""
        return self._trunk(latents.to(self._weight().dtype))

    @torch.no_grad()
    def decode_clean(self, latents: Tensor, *, call_frames: int | None = None) -> Tensor:
        """[rows, C, T] -> audio [rows, 1, T * hop] without the watermark."""
        return self._decode(latents, None, call_frames)

    @torch.no_grad()
    def decode(
        self,
        latents: Tensor,
        *,
        message: Tensor | None = None,
        generator: torch.Generator | None = None,
        call_frames: int | None = None,
    ) -> Tensor:
        """[rows, C, T] -> audio [rows, 1, T * hop] with the watermark, at most about `call_frames` row-frames at once.

        `message` [rows, 16] of 0/1. Without one the bits are drawn from `generator`, by default torch's global CPU
        generator as in the reference: then equal audio needs that generator seeded, whatever device this runs on.
        """
        if message is None:
            message = draw_message(latents.shape[0], generator)
        if list(message.shape) != [latents.shape[0], MESSAGE_BITS]:
            raise ValueError(
                f"message must be [{latents.shape[0]}, {MESSAGE_BITS}] (one a row), got {list(message.shape)}"
            )
        return self._decode(latents, message.to(latents.device), call_frames)

    @torch.no_grad()
    def decode_stems(
        self,
        latents: Tensor,
        mixture: Tensor | None = None,
        *,
        message: Tensor | None = None,
        generator: torch.Generator | None = None,
        n_samples: int | None = None,
        call_frames: int | None = None,
    ) -> Tensor:
        """Latents of S stems [B, S, C, T] -> [B, S, 1, T * hop], cut to `n_samples` where given.

        `message` [B * S, 16], rows item by item. The mixture is not used: this codec's stems are what it decodes.
        """
        items, stems = latents.shape[:2]
        audio = self.decode(latents.flatten(0, 1), message=message, generator=generator, call_frames=call_frames)
        return audio.unflatten(0, (items, stems))[..., :n_samples]

    def _decode(self, latents: Tensor, message: Tensor | None, call_frames: int | None) -> Tensor:
        latents = latents.to(self._weight().dtype)
        total, hop, convs = latents.shape[-1], self.upsampling, self.decoder.convolutions()
        audio = latents.new_empty(latents.shape[0], 1, total * hop)
        budget = self._budget(latents, call_frames)
        context = reach(convs, 0, hop)[1]
        # Watermark state passes on at its coarsest grid, so pieces must be whole numbers of its steps.
        grain = DOWNSAMPLING // math.gcd(DOWNSAMPLING, hop)
        levels, wm = self.decoder.levels(), self.decoder.wm_model
        for rows in _rows(latents.shape[0], budget, total):
            state: State = {}
            for start, end in _pieces(total, budget, context, grain):
                low, high = reach(convs, start * hop, end * hop)
                low, high = max(0, low), min(total, high)
                clean = wm.head(self._trunk(latents[rows, :, low:high]))
                clean = clean[..., (start - low) * hop : (end - low) * hop]
                if message is not None:
                    clean = clean + GAIN * wm(clean, message[rows], levels, state)
                audio[rows, :, start * hop : end * hop] = clean
        return audio

    def _trunk(self, latents: Tensor) -> Tensor:
        out: Tensor = self.decoder(self.quantizer.out_proj(latents))
        return out

    def _weight(self) -> Tensor:
        weight = self.quantizer.out_proj.bias
        assert weight is not None
        return weight

    def _budget(self, x: Tensor, call_frames: int | None) -> int:
        return call_frames or (CALL_FRAMES_CPU if x.device.type == "cpu" else CALL_FRAMES_DEVICE)

    # Index helpers. Integers throughout: the reference's float32 is exact up to 2^24 samples (six minutes) only.

    def feature_idx_to_wav_idx(self, index: int | Tensor, sample_rate: int | None = None) -> int | Tensor:
        """First sample of latent frame `index`, counted at `sample_rate` (default the codec's), rounded down.

        Tensors come back as int32, as in the reference.
        """
        rate = sample_rate or self.sample_rate
        if isinstance(index, Tensor):
            return (index.long() * self.hop_length * rate // self.sample_rate).int()
        return index * self.hop_length * rate // self.sample_rate

    def wav_idx_to_feature_idx(self, index: int | Tensor, sample_rate: int | None = None) -> int | Tensor:
        """Latent frames that `index` samples at `sample_rate` (default the codec's) fill or begin to fill."""
        rate = sample_rate or self.sample_rate
        whole = index.long() if isinstance(index, Tensor) else index
        samples = (whole * self.sample_rate + rate - 1) // rate
        frames = (samples + self.hop_length - 1) // self.hop_length
        return frames.int() if isinstance(frames, Tensor) else frames


def _rows(count: int, budget: int, total: int) -> Iterator[slice]:
    group = max(1, budget // max(1, total))
    for start in range(0, count, group):
        yield slice(start, min(start + group, count))


def _pieces(total: int, budget: int, context: int, grain: int = 1) -> Iterator[tuple[int, int]]:
    """[0, total) frames in pieces that with their context stay inside the budget, and are not all context."""
    width = max(total if total <= budget else max(budget - 2 * context, context), 1)
    width = -(-width // grain) * grain
    for start in range(0, total, width):
        yield start, min(start + width, total)


@contextmanager
def _exact_convolutions(device: torch.device) -> Iterator[None]:
    """cuDNN without TF32, its default, which would leave three digits of the latents.

    The reference switches cuDNN off for encoding, which avoids it as well.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
