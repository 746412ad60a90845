"""The data engine: real recordings in, training mixtures out, on the CPU or wholly on one GPU.

Sources are cut, levelled and spectrally shaped at random, then mixed in the STFT domain, where the band codec's powers
of both stems and of the mixture come from the same spectra. Every pair of sources gives two examples: either may be
the target.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ..band_codec import BandCodec
from . import prompts
from .fetch import catalogue

SAMPLE_RATE = 48_000
# Below this level (dB relative to the clip's peak frame) a source counts as silent: the paper's activity threshold.
SILENCE_DB = -40.0
NOT = {"speech": prompts.NOT_SPEECH, "music": prompts.NOT_MUSIC, "sfx": prompts.NOT_EFFECTS}


@dataclass
class TrainingBatch:
    """Latents [B, C, T] of mixture and stems, exact gains and mixture power [B, C, T], prompt ids, anchors [B, T]."""

    mixture: Tensor
    target: Tensor
    residual: Tensor
    gain: Tensor
    power: Tensor
    prompt: Tensor
    anchor: Tensor


class Pool:
    """Recordings of one kind, drawn with probability by the square root of their length, per speaker or label."""

    def __init__(self, rows: list[dict], group: str) -> None:
        self.groups: dict[str, list[dict]] = {}
        for row in rows:
            self.groups.setdefault(row[group] or "", []).append(row)
        self.names = sorted(self.groups)
        seconds = [sum(r["length"] for r in self.groups[n]) / SAMPLE_RATE for n in self.names]
        self.weights = np.sqrt(np.minimum(seconds, 1200.0))
        self.weights /= self.weights.sum()
        self.lengths = {n: np.cumsum([float(r["length"]) for r in self.groups[n]]) for n in self.names}

    def draw_group(self, rng: np.random.Generator) -> str:
        return self.names[rng.choice(len(self.names), p=self.weights)]

    def draw(self, group: str, rng: np.random.Generator) -> dict:
        cumulative = self.lengths[group]
        return self.groups[group][int(np.searchsorted(cumulative, rng.random() * cumulative[-1]))]


def usable(row: dict, split: str) -> bool:
    """Whether a catalogue row may serve as an isolated example of its kind."""
    if row["split"] != split:
        return False
    flags, label = row["flags"] or "", row["label"] or ""
    if row["kind"] == "sfx":
        return (
            "vad_speech" not in flags
            and label not in ("scream_voice", "laugh", "crowd_street", "applause")
            and (row["vad_speech_fraction"] or 0) < 0.1
        )
    if row["kind"] == "music":
        return "singing" not in flags and "drum_hit" not in label
    return True


class DataEngine:
    """Draws batches from the recordings of `data_dir` (see fetch.py) that lie in one part: train, validation or eval.

    Validation recordings are a fixed fiftieth of the train split, so the eval split is never looked at in training.
    """

    def __init__(self, data_dir: Path, codec: BandCodec, *, part: str = "train", frames: int = 150) -> None:
        self.audio = np.memmap(data_dir / "audio.i16", dtype=np.int16, mode="r")
        rows = [
            r
            for r in pq.read_table(data_dir / "index.parquet").to_pylist()
            if usable(r, "eval" if part == "eval" else "train") and part in ("eval", self.training_part(r))
        ]
        by_kind = {k: [r for r in rows if r["kind"] == k] for k in ("speech", "music", "sfx")}
        self.pools = {
            "speech": Pool(by_kind["speech"], "speaker"),
            "music": Pool(by_kind["music"], "package"),
            "sfx": Pool(by_kind["sfx"], "label"),
        }
        self.hours = {k: sum(r["length"] for r in v) / SAMPLE_RATE / 3600 for k, v in by_kind.items()}
        self.vocabulary = prompts.vocabulary([r["label"] or "" for r in catalogue() if r["kind"] == "sfx"])
        self.prompt_id = {p: i for i, p in enumerate(self.vocabulary)}
        self.codec, self.frames = codec, frames
        self.samples = frames * codec.hop_length
        self.codec_centres = codec.bands.argmax(0)

    @staticmethod
    def training_part(row: dict) -> str:
        return "validation" if zlib.crc32(row["path"].encode()) % 50 == 0 else "train"

    def cut(self, row: dict, n: int, rng: np.random.Generator) -> np.ndarray:
        offset = int(rng.integers(max(row["length"] - n, 0) + 1))
        start = row["start"] + offset
        return self.audio[start : start + min(n, row["length"])].astype(np.float32) / 32768

    def source(self, kind: str, rng: np.random.Generator, *, gaps: bool = True) -> tuple[np.ndarray, str]:
        """One source [samples] float32 of unit RMS over its active parts, and its group. Gaps make spans matter."""
        pool, n = self.pools[kind], self.samples
        group = pool.draw_group(rng)
        out = np.zeros(n, np.float32)
        # Music plays on; speech and effects come in stretches with pauses of up to seconds.
        at = int(rng.integers(n // 3)) if gaps and rng.random() < 0.4 else 0
        end = n - int(rng.integers(n // 3)) if gaps and rng.random() < 0.25 else n
        while at < end:
            piece = self.cut(pool.draw(group, rng), end - at, rng)
            rms = float(np.sqrt(np.mean(piece**2))) if len(piece) else 0.0
            if rms > 1e-4:
                out[at : at + len(piece)] += piece / rms
            at += max(len(piece), 1)
            if gaps and kind != "music":
                at += int(rng.exponential(0.35 if kind == "speech" else 0.5) * SAMPLE_RATE)
        active = np.abs(out) > 1e-3
        scale = np.sqrt(np.mean(out[active] ** 2)) if active.any() else 1.0
        return out / scale, group

    def shape(self, spectrum: Tensor, rng: np.random.Generator) -> Tensor:
        """Random smooth equaliser, and sometimes a low-pass: bandwidth must never tell speech from music."""
        n_bands = self.codec.channels
        knots = torch.from_numpy(rng.normal(0, 3.0, 10).astype(np.float32)).to(spectrum.device)
        db = torch.nn.functional.interpolate(knots[None, None], n_bands, mode="linear", align_corners=True)[0, 0]
        gain = 10 ** (db / 20)
        if rng.random() < 0.3:
            hz = np.exp(rng.uniform(np.log(3000), np.log(16000)))
            bin_of_cut = hz / (SAMPLE_RATE / self.codec.config.n_fft)
            gain = gain * torch.where(self.codec_centres.to(gain.device) > bin_of_cut, 1e-3, 1.0)
        return spectrum * (gain @ self.codec.bands.T)

    def draw_phrase(self, kind: str, label: str, rng: np.random.Generator) -> str:
        if kind == "speech":
            options = prompts.SPEECH
        elif kind == "music":
            options = prompts.MUSIC
        else:
            options = prompts.EFFECTS if rng.random() < 0.5 else prompts.label_phrases(label)
        return options[rng.integers(len(options))]

    def batch(self, size: int, rng: np.random.Generator) -> TrainingBatch:
        """`size` examples: size / 2 mixtures, each with either of its halves as the target."""
        rows: list[tuple[Tensor, ...]] = []
        phrases: list[str] = []
        bands = self.codec.bands
        norm = (2 / self.codec.window.sum()) ** 2
        for _ in range(size // 2):
            kinds = list(rng.permutation(["speech", "music", "sfx"])[:2])
            if "speech" not in kinds and rng.random() < 0.5:
                kinds[0] = "speech"  # dialogue is what most archives ask for
            three = rng.random() < 0.25
            if three:
                kinds = ["speech", *rng.permutation(["music", "sfx"])]
            drawn = [self.source(k, rng) for k in kinds]
            waves = torch.from_numpy(np.stack([w for w, _ in drawn])).to(bands.device)
            spectra = self.codec.stft(waves)  # [S, T, F]
            levels = rng.uniform(-15, 15, len(kinds)) / 2 if rng.random() < 0.7 else np.zeros(len(kinds))
            if rng.random() < 0.05:
                levels[0] = -100.0  # an absent sound: its stem is silence
            master = rng.uniform(-40, -15)
            spectra = torch.stack(
                [self.shape(s, rng) * 10 ** ((level + master) / 20) for s, level in zip(spectra, levels, strict=True)]
            )
            a, b = spectra[0], spectra[1:].sum(0)
            mix = a + b
            power = (
                torch.stack(
                    [s.real.square() + s.imag.square() for s in (a, b, mix)] + [a.real * mix.real + a.imag * mix.imag]
                )
                @ bands
                * norm
            )  # [4, T, C]
            gain_a = (power[3] / power[2].clamp_min(1e-12)).clamp(0, 1)
            first = self.draw_phrase(kinds[0], drawn[0][1], rng)
            if three or rng.random() < 0.1:
                rest = NOT[kinds[0]]
                second = rest[rng.integers(len(rest))]
            else:
                second = self.draw_phrase(kinds[1], drawn[1][1], rng)
            latents = self.codec.latents_of_power(power[:3])
            rows.append((latents[2], latents[0], latents[1], gain_a, power[2], power[0]))
            rows.append((latents[2], latents[1], latents[0], 1 - gain_a, power[2], power[1]))
            phrases += [first, second]
        mixture, target, residual, gain, mix_power = (
            torch.stack([r[i] for r in rows]).transpose(1, 2) for i in range(5)
        )
        # Stems far below the mixture are inaudible and cannot be inferred: their latents stop 40 dB under it.
        floor = mixture - 40 / 20
        ids = torch.tensor([self.prompt_id[p] for p in phrases], device=bands.device)
        activity = torch.stack([r[5].sum(-1) for r in rows])
        anchor = self.spans(activity, rng)
        return TrainingBatch(
            mixture,
            torch.maximum(target, floor),
            torch.maximum(residual, floor),
            gain,
            mix_power,
            ids,
            anchor,
        )

    def spans(self, activity: Tensor, rng: np.random.Generator) -> Tensor:
        """Anchor token of every frame [B, T]: `+` (1) where the target sounds, in half of the examples, else 0."""
        loud = activity > activity.amax(-1, keepdim=True).clamp_min(1e-9) * 10 ** (SILENCE_DB / 10)
        # Pauses under 250 ms are part of the sound: close gaps of up to six frames.
        closed = torch.nn.functional.max_pool1d(loud.float()[:, None], 7, 1, 3)
        closed = -torch.nn.functional.max_pool1d(-closed, 7, 1, 3)
        given = torch.from_numpy(rng.random(len(activity)) < 0.5).to(activity.device)
        return (closed[:, 0].bool() & given[:, None]).long()
