"""Separators for a judge to hear: real ones at several stages, oracles of several strengths, and ways to fail.

A system turns a batch of mixtures with one request each into outputs. A judge is trained on those of `Systems.seen`; it
meets those of `Systems.held_out` in the evaluation only.
"""

from __future__ import annotations

import copy
import filecmp
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..band_codec import BandCodec
from ..model import SAMAudio
from ..processor import SAMAudioProcessor
from ..sources import SHIPPED
from . import baselines, judge_gains


@dataclass(frozen=True)
class Requests:
    """B mixtures: sources [B, N], what is asked for in words, and whether that is speech."""

    target: Tensor
    other: Tensor
    descriptions: list[str]
    is_speech: Tensor

    @property
    def mixture(self) -> Tensor:
        return self.target + self.other


# Requests and a generator to outputs [B, N].
System = Callable[[Requests, np.random.Generator], Tensor]
# Band gains [B, T, C] to others.
Change = Callable[[Tensor, np.random.Generator], Tensor]


class Systems:
    """All systems by name. `folder` keeps the earlier weights of the shipped model, as the git history holds them."""

    def __init__(self, codec: BandCodec, folder: Path) -> None:
        self.codec = codec
        self._processor = SAMAudioProcessor.from_pretrained("tiny")
        self._current = SAMAudio.from_pretrained("tiny")
        stages = [SAMAudio.from_pretrained(path) for path in earlier_weights(folder)]
        # Without a history (a source archive) the stages are worn copies of what there is.
        self._stages = stages or [self._current]
        self._rnnoise, self._deepfilternet = baselines.rnnoise(), baselines.deepfilternet()
        self.seen: dict[str, System] = {
            "stage": self._stage,
            "worn": self._worn,
            "over-suppressed": lambda requests, rng: self._with_exponent(requests, rng, 2.0, 5.0),
            "under-suppressed": lambda requests, rng: self._with_exponent(requests, rng, 0.2, 0.7),
            "oracle": self._oracle(judge_gains.smeared),
            "oracle-noisy": self._oracle(judge_gains.fluttering),
            "oracle-muffled": self._oracle(judge_gains.muffled),
            "oracle-confused": self._oracle(judge_gains.confused),
            "rnnoise": lambda requests, rng: self._denoised(requests, self._rnnoise),
            "gate": self._gate,
            "remix": _remix,
            "mixture": lambda requests, rng: requests.mixture,
            "silence": lambda requests, rng: requests.mixture * float(10 ** (rng.uniform(-100, -60) / 20)),
        }
        self.held_out: dict[str, System] = {
            "tiny": lambda requests, rng: self._apply(requests, self._gains(self._current, requests, rng)),
            "deepfilternet3": lambda requests, rng: self._denoised(requests, self._deepfilternet),
            "oracle-binary": self._binary_oracle,
            "oracle-bins": self._ratio_mask,
        }

    def _apply(self, requests: Requests, gain: Tensor) -> Tensor:
        """Band gains [B, T, C] on the mixture's spectrum -> [B, N]."""
        spectrum = self.codec.stft(requests.mixture) * (gain @ self.codec.bands.T)
        return self.codec.istft(spectrum, requests.target.shape[-1])

    def _gains(self, model: SAMAudio, requests: Requests, rng: np.random.Generator) -> Tensor:
        """A small model's gains: one solve of all mixtures."""
        batch = self._processor(audios=list(requests.mixture[:, None]), descriptions=requests.descriptions)
        frames = -(-requests.target.shape[-1] // self.codec.hop_length)
        noise = torch.from_numpy(
            rng.standard_normal((len(requests.target), frames, 2 * self.codec.channels), dtype=np.float32)
        )
        target, residual = model.solve(batch, noise).chunk(2, dim=-1)
        return self.codec.target_gain(target, residual)

    def _stage(self, requests: Requests, rng: np.random.Generator) -> Tensor:
        model = self._stages[rng.integers(len(self._stages))]
        return self._apply(requests, self._gains(model, requests, rng))

    def _worn(self, requests: Requests, rng: np.random.Generator) -> Tensor:
        """A stage whose weights went part of the way back to chance."""
        model = worn(self._stages[-1], float(rng.uniform(0.1, 0.5)), rng)
        return self._apply(requests, self._gains(model, requests, rng))

    def _with_exponent(self, requests: Requests, rng: np.random.Generator, low: float, high: float) -> Tensor:
        model = self._stages[rng.integers(len(self._stages))]
        return self._apply(requests, judge_gains.exponent(self._gains(model, requests, rng), rng, low, high))

    def _true_gain(self, requests: Requests) -> Tensor:
        """Wiener gain of the true sources [B, T, C]."""
        a, b = (self.codec.band_power(self.codec.stft(x)) for x in (requests.target, requests.other))
        return (a + 1e-10 * b) / (a + b).clamp_min(1e-14)

    def _oracle(self, change: Change) -> System:
        """The true gains, changed."""
        return lambda requests, rng: self._apply(requests, change(self._true_gain(requests), rng))

    def _binary_oracle(self, requests: Requests, rng: np.random.Generator) -> Tensor:
        return self._apply(requests, (self._true_gain(requests) > 0.5).float())

    def _ratio_mask(self, requests: Requests, rng: np.random.Generator) -> Tensor:
        """The ideal ratio mask of an ordinary STFT (1024 bins, 5 ms): finer in time than any system trained on."""
        window = torch.hann_window(1024)
        a, b = (torch.stft(x, 1024, 256, window=window, return_complex=True) for x in (requests.target, requests.other))
        mask = a.abs().square() / (a.abs().square() + b.abs().square()).clamp_min(1e-14)
        return torch.istft((a + b) * mask, 1024, 256, window=window, length=requests.target.shape[-1])

    def _gate(self, requests: Requests, rng: np.random.Generator) -> Tensor:
        """A noise gate that knows no prompt: what is quiet for its band goes."""
        mixture = requests.mixture
        power = self.codec.band_power(self.codec.stft(mixture))
        threshold = power.quantile(float(rng.uniform(0.2, 0.9)), dim=1, keepdim=True)
        return self._apply(requests, (power > threshold).float().clamp_min(float(10 ** (rng.uniform(-40, -10) / 20))))

    def _denoised(self, requests: Requests, run: baselines.Denoiser) -> Tensor:
        """A speech denoiser; for another sound than speech, what it takes away."""
        mixture = requests.mixture
        speech = torch.from_numpy(np.stack([run(wave) for wave in mixture.numpy()])).float()
        return torch.where(requests.is_speech[:, None], speech, mixture - speech)


def _remix(requests: Requests, rng: np.random.Generator) -> Tensor:
    """The true sources at other levels: nothing is distorted, and too much or too little of each is there."""
    levels = 10 ** (rng.uniform(-30, 0, (2, len(requests.target), 1)) / 20)
    gains = torch.from_numpy(levels.astype(np.float32))
    return gains[0] * requests.target + gains[1] * requests.other


def worn(model: SAMAudio, share: float, rng: np.random.Generator) -> SAMAudio:
    """A copy whose matrices are (1 - share) theirs and `share` noise of the same deviation."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    with torch.no_grad():
        for weight in model.transformer.parameters():
            if weight.ndim == 2:
                noise = torch.randn(weight.shape, generator=generator) * weight.std()
                weight.lerp_(noise, share)
    return model


def earlier_weights(folder: Path) -> list[Path]:
    """The shipped model's earlier weights out of the git history, oldest first, each in a folder below `folder`.

    Empty where there is no history.
    """
    weights = SHIPPED["tiny"]

    def git(*command: str) -> bytes:
        return subprocess.run(["git", "-C", str(weights), *command], check=True, capture_output=True).stdout

    try:
        commits = git("log", "--reverse", "--format=%H", "--", "model.safetensors").decode().split()
    except (OSError, subprocess.CalledProcessError):
        return []
    found: list[Path] = []
    for commit in commits:
        path = folder / commit[:12]
        path.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "model.safetensors"):
            if not (path / name).exists():
                (path / f".{name}.part").write_bytes(git("show", f"{commit}:./{name}"))
                (path / f".{name}.part").replace(path / name)
        if not filecmp.cmp(path / "model.safetensors", weights / "model.safetensors", shallow=False):
            found.append(path)
    return found
