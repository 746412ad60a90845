"""Measure the small model on held-out mixes, beside DeepFilterNet3 and RNNoise on the same mixes.

    python -m operators.sam_audio.training.evaluate DATA_DIR [--model tiny] [--mixes 100] [--out out/eval-tiny.json]

Mixes of 8 s at 0 dB from recordings of the eval split, which training never sees. Figures: SI-SDR improvement
(Le Roux et al., 2019) in dB; "obeyed": the share of mixes whose target is nearer to the sound asked
for than to the other.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..band_codec import BandCodec
from ..model import SAMAudio
from ..processor import SAMAudioProcessor
from . import baselines
from .engine import SAMPLE_RATE, SILENCE_DB, DataEngine
from .prompts import label_phrases

PAIRS = [("speech", "music"), ("speech", "sfx"), ("music", "speech"), ("sfx", "music")]
PROMPTS = {"speech": "speech", "music": "music"}
MIX_DBFS = -23.0  # programme level, so that nothing depends on clipping or on very quiet input


@dataclass(frozen=True)
class Mix:
    target: np.ndarray  # [samples] float32
    other: np.ndarray
    description: str

    @property
    def mixture(self) -> np.ndarray:
        return self.target + self.other


def si_sdr(estimate: np.ndarray, reference: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio in dB; both [samples]."""
    estimate, reference = estimate - estimate.mean(), reference - reference.mean()
    projection = np.dot(estimate, reference) / max(np.dot(reference, reference), 1e-12) * reference
    noise = estimate - projection
    return float(10 * np.log10(max(np.dot(projection, projection), 1e-12) / max(np.dot(noise, noise), 1e-12)))


def mixes(engine: DataEngine, target: str, other: str, count: int) -> Iterator[Mix]:
    """`count` mixes of equal power, the same ones at every call; sources run on without pauses."""
    rng = np.random.default_rng([ord(c) for c in target + other])
    for _ in range(count):
        (a, label), (b, _) = engine.source(target, rng, gaps=False), engine.source(other, rng, gaps=False)
        level = 10 ** (MIX_DBFS / 20)
        a, b = (x * level / max(float(np.sqrt(np.mean(x**2))), 1e-6) for x in (a, b))
        yield Mix(a.astype(np.float32), b.astype(np.float32), PROMPTS.get(target) or label_phrases(label)[0])


def active_spans(wave: np.ndarray) -> list[tuple[str, float, float]]:
    """`+` spans (seconds) where the wave's 100 ms power is within 40 dB of its peak; gaps under 250 ms closed."""
    hop = SAMPLE_RATE // 10
    power = np.square(wave[: len(wave) // hop * hop].reshape(-1, hop)).mean(1)
    loud = power > power.max() * 10 ** (SILENCE_DB / 10)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], loud, [0]])))
    spans: list[tuple[str, float, float]] = []
    for start, end in zip(edges[::2] / 10, edges[1::2] / 10, strict=True):
        if spans and start - spans[-1][2] < 0.25:
            spans[-1] = ("+", spans[-1][1], float(end))
        else:
            spans.append(("+", float(start), float(end)))
    return spans


class Model:
    def __init__(self, name: str) -> None:
        self.model = SAMAudio.from_pretrained(name)
        self.processor = SAMAudioProcessor.from_pretrained(name)

    def __call__(self, mix: Mix, spans: bool) -> np.ndarray:
        batch = self.processor(
            audios=[torch.from_numpy(mix.mixture)[None]],
            descriptions=[mix.description],
            anchors=[active_spans(mix.target)] if spans else None,
        )
        return self.model.separate(batch, seeds=["eval"]).target[0].numpy()[: len(mix.target)]


def oracle(codec: BandCodec, mix: Mix) -> np.ndarray:
    """What the codec gives with the true latents: the bound for any model on it."""
    a, b, m = (torch.from_numpy(x)[None, None] for x in (mix.target, mix.other, mix.mixture))
    return codec.decode_stems(torch.stack([codec.encode(a), codec.encode(b)], 1), m)[0, 0, 0].numpy()


def evaluate(data_dir: Path, name: str, count: int) -> dict[str, Any]:
    model = Model(name)
    codec = model.model.audio_codec
    engine = DataEngine(data_dir, codec, part="eval", frames=200)
    denoisers = {"DeepFilterNet3": baselines.deepfilternet(), "RNNoise": baselines.rnnoise()}
    report: dict[str, Any] = {"model": name, "mixes_per_pair": count, "hours": engine.hours, "pairs": {}}
    seconds = audio = 0.0
    for target, other in PAIRS:
        rows: dict[str, list[float]] = {}
        obeyed = []
        for mix in mixes(engine, target, other, count):
            before = si_sdr(mix.mixture, mix.target)
            started = time.perf_counter()
            out = model(mix, spans=False)
            seconds += time.perf_counter() - started
            audio += len(mix.target) / SAMPLE_RATE
            obeyed.append(si_sdr(out, mix.target) > si_sdr(out, mix.other))
            outputs = {"tiny": out, "tiny + spans": model(mix, spans=True), "oracle": oracle(codec, mix)}
            if target == "speech":
                outputs |= {k: run(mix.mixture) for k, run in denoisers.items()}
            for system, wave in outputs.items():
                rows.setdefault(system, []).append(si_sdr(wave, mix.target) - before)
        report["pairs"][f"{target} in {other}"] = {
            "si_sdri_db": {k: float(np.mean(v)) for k, v in rows.items()},
            "standard_error_db": {k: float(np.std(v) / np.sqrt(len(v))) for k, v in rows.items()},
            "obeyed": float(np.mean(obeyed)),
        }
    report["x_real_time"] = audio / seconds
    report["threads"] = torch.get_num_threads()
    return report


def table(report: dict[str, Any]) -> str:
    systems = ["tiny", "tiny + spans", "DeepFilterNet3", "RNNoise", "oracle"]
    lines = [f"{'SI-SDR improvement, dB':24}" + "".join(f"{s:>16}" for s in systems) + f"{'obeyed':>9}"]
    for pair, row in report["pairs"].items():
        cells = [row["si_sdri_db"].get(s) for s in systems]
        text = "".join(f"{'-':>16}" if c is None else f"{c:16.2f}" for c in cells)
        lines.append(f"{pair:24}{text}{row['obeyed']:>9.0%}")
    error = max(max(row["standard_error_db"].values()) for row in report["pairs"].values())
    lines.append(
        f"{report['mixes_per_pair']} mixes of 8 s a pair at 0 dB, standard error at most {error:.2f} dB; "
        f"{report['x_real_time']:.0f} x real time on {report['threads']} CPU threads"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--mixes", type=int, default=100, help="mixes a pair")
    parser.add_argument("--out", type=Path, default=Path("out/eval-tiny.json"))
    args = parser.parse_args()
    report = evaluate(args.data_dir, args.model, args.mixes)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1))
    print(table(report))


if __name__ == "__main__":
    main()
