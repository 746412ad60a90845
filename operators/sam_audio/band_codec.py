"""The small model's codec: log energies of 128 ERB-like bands at 25 Hz, decoded as a Wiener gain on the mixture.

It has the DAC-VAE's frame rate and latent shape, but needs no learned weights, keeps the full band and works on every
channel of the mixture. Target and residual gains add up to one, so the two stems sum to the mixture.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import BandCodecConfig

FLOOR_DB = -90.0  # below the noise floor of 16-bit audio in one band
CENTRE_DB, SCALE_DB = -50.0, 20.0  # latents of ordinary programme have about zero mean and unit deviation
# Sum of band-power ratios as a logit: latents are in units of SCALE_DB.
LOGIT_PER_LATENT = SCALE_DB * math.log(10) / 10


def band_matrix(n_bands: int, n_bins: int, sample_rate: int) -> Tensor:
    """Triangular bands [n_bins, n_bands] whose weights sum to one in every bin.

    Centres are equally spaced on the ERB-rate scale (Glasberg & Moore 1990), but never closer than one bin: at the low
    end an ERB third is narrower than the STFT's resolution.
    """
    bin_hz = sample_rate / 2 / (n_bins - 1)

    def erb_rate(hz: np.ndarray | float) -> np.ndarray:
        return 21.4 * np.log10(1 + 0.00437 * np.asarray(hz))

    def centres(step: float) -> np.ndarray:
        out = [0.0]
        for _ in range(n_bands - 1):
            hz = (10 ** ((erb_rate(out[-1] * bin_hz) + step) / 21.4) - 1) / 0.00437
            out.append(max(out[-1] + 1, float(hz) / bin_hz))
        return np.array(out)

    low, high = 0.0, 10.0
    for _ in range(60):
        step = (low + high) / 2
        low, high = (step, high) if centres(step)[-1] < n_bins - 1 else (low, step)
    c = centres(high)
    c[-1] = n_bins - 1
    bins = np.arange(n_bins)
    right = np.clip(np.searchsorted(c, bins, side="right"), 1, n_bands - 1)
    share = (bins - c[right - 1]) / (c[right] - c[right - 1])
    matrix = np.zeros((n_bins, n_bands), dtype=np.float32)
    matrix[bins, right - 1] = 1 - share
    matrix[bins, right] += share
    return torch.from_numpy(matrix)


class BandCodec(nn.Module):
    bands: Tensor
    window: Tensor

    def __init__(self, config: BandCodecConfig) -> None:
        super().__init__()
        self.config = config
        self.sample_rate, self.hop_length, self.channels = (
            config.sample_rate,
            config.hop_length,
            config.n_bands,
        )
        n_bins = config.n_fft // 2 + 1
        # Rebuilt from the config, so not in the checkpoint; real even when the model is built on the meta device.
        self.register_buffer("window", torch.hann_window(config.n_fft, device="cpu"), persistent=False)
        self.register_buffer("bands", band_matrix(config.n_bands, n_bins, config.sample_rate), persistent=False)

    @property
    def context_frames(self) -> int:
        """Frames on either side whose samples reach into a frame: what a piece needs around it to be exact."""
        return -(-(self.config.n_fft - self.hop_length) // self.hop_length)

    def stft(self, wav: Tensor) -> Tensor:
        """wav [..., N] -> spectrum [..., T, F], T = ceil(N / hop); frame t is centred on samples [t, t + 1) * hop."""
        n_fft, hop = self.config.n_fft, self.hop_length
        frames = -(-wav.shape[-1] // hop)
        left = (n_fft - hop) // 2
        right = (frames - 1) * hop + n_fft - left - wav.shape[-1]
        padded = F.pad(wav, (left, right))
        return torch.fft.rfft(padded.unfold(-1, n_fft, hop) * self.window)

    def istft(self, spectrum: Tensor, n_samples: int) -> Tensor:
        """Least-squares inverse of `stft`: spectrum [..., T, F] -> [..., n_samples]."""
        n_fft, hop = self.config.n_fft, self.hop_length
        frames = torch.fft.irfft(spectrum, n=n_fft) * self.window  # [..., T, n_fft]
        lead, t = frames.shape[:-2], frames.shape[-2]
        size = (t - 1) * hop + n_fft

        def overlap_add(x: Tensor) -> Tensor:  # [rows, T, n_fft] -> [rows, size]
            out = F.fold(x.transpose(1, 2), (1, size), (1, n_fft), stride=(1, hop))
            return out[:, 0, 0]

        wave = overlap_add(frames.reshape(-1, t, n_fft))
        envelope = overlap_add(self.window.square().expand(1, t, n_fft))
        left = (n_fft - hop) // 2
        cut = slice(left, left + n_samples)
        return (wave[:, cut] / envelope[:, cut]).reshape(*lead, n_samples)

    def latents_of_power(self, power: Tensor) -> Tensor:
        """Band powers [..., C] (1 = full-scale sine, about) -> latents, 20 dB a unit."""
        db = 10 * torch.log10(power.clamp_min(10 ** (FLOOR_DB / 10)))
        return (db - CENTRE_DB) / SCALE_DB

    def band_power(self, spectrum: Tensor) -> Tensor:
        """Spectrum [..., F] -> power per band [..., C]."""
        norm = (2 / self.window.sum()) ** 2
        return (spectrum.real.square() + spectrum.imag.square()) @ self.bands * norm

    @torch.no_grad()
    def encode(self, wav: Tensor) -> Tensor:
        """wav [B, 1, N] at `sample_rate` -> latents [B, C, T], T = ceil(N / hop)."""
        out = [self.latents_of_power(self.band_power(self.stft(row))) for row in wav]
        return torch.stack(out)[:, 0].transpose(1, 2)

    @staticmethod
    def target_gain(target: Tensor, residual: Tensor) -> Tensor:
        """Wiener gain of the target from the two stems' latents (same shape, 0..1)."""
        return torch.sigmoid(LOGIT_PER_LATENT * (target - residual))

    @torch.no_grad()
    def decode_stems(
        self,
        latents: Tensor,
        mixture: Tensor,
        *,
        message: Tensor | None = None,
        generator: torch.Generator | None = None,
        n_samples: int | None = None,
    ) -> Tensor:
        """Latents [B, 2, C, T] (target, residual) and mixture [B, ch, N] -> stems [B, 2, ch, n_samples or N].

        The watermark arguments of the codec interface have no meaning here: nothing is synthesised.
        """
        n = mixture.shape[-1] if n_samples is None else n_samples
        stems = mixture.new_empty(mixture.shape[0], 2, mixture.shape[1], n)
        for row, (pair, mix) in enumerate(zip(latents, mixture, strict=True)):
            gain = self.target_gain(pair[0], pair[1]).transpose(0, 1).to(mix.dtype) @ self.bands.T  # [T, F]
            for channel in range(mix.shape[0]):
                # One channel at a time: the spectrum is four times the size of its audio.
                spectrum = self.stft(mix[channel]) * gain
                stems[row, 0, channel] = self.istft(spectrum, n)
        stems[:, 1] = mixture[..., :n] - stems[:, 0]
        return stems
