"""What must hold of any trained separator, whatever its weights are: checks with known answers, none with goldens.

Each check returns what it measured, raises `Failed` when that is wrong and `Skipped` when the model has no such part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import soundfile as sf
import torch
import torchaudio.functional
from torch import Tensor

from operators.judge_scores import SCORES
from operators.sam_audio import Excerpt, SAMAudio, SAMAudioProcessor, separate_long
from operators.sam_audio.codec import DACVAE
from operators.sam_audio.config import SIZES, LongFormConfig
from operators.sam_audio.judge import SAMAudioJudgeModel
from operators.sam_audio.long_form import exact_halo_frames
from operators.segments import FADE_FRAMES, Joiner, cut

DEMO = Path(__file__).parent / "demo_media"
PRESENT, ABSENT = "speech", "church bells"


class Failed(Exception):
    """A check's answer is wrong; the message says what was found and what was expected."""


class Skipped(Exception):
    """A check does not apply, or what it needs is not to be had; the message says why."""


@dataclass
class Subject:
    """A model and what it is checked with: speech alone and speech under music, [n] at the model's rate."""

    name: str
    model: SAMAudio
    seconds: float = 10.0
    judge_name: str | None = None
    speech: Tensor = field(init=False)
    mixture: Tensor = field(init=False)
    stems: dict[str, Tensor] = field(default_factory=dict)  # kept from one check to the next, [2, n] each

    def __post_init__(self) -> None:
        self.speech = self._clip("speech.flac")
        self.mixture = self.speech + self._clip("music.flac")

    def _clip(self, name: str) -> Tensor:
        samples, rate = sf.read(DEMO / name, dtype="float32", always_2d=True)
        mono = torch.from_numpy(samples).mean(1)
        whole = torchaudio.functional.resample(mono, rate, self.model.sample_rate)
        # Whole frames, so that no check depends on how an end is filled up.
        hop = self.model.config.audio_codec.hop_length
        frames = min(int(self.seconds * self.model.sample_rate), len(whole)) // hop
        return whole[: frames * hop]

    def separate(self, audio: Tensor, description: str) -> Tensor:
        """[2, n]: target and residual, on the CPU; same noise and watermark for every call."""
        processor = SAMAudioProcessor.from_config(self.model.config)
        result = self.model.separate(
            processor([description], [audio[None]]), seeds=["verify"], message=torch.zeros(2, 16)
        )
        return torch.stack([result.target[0], result.residual[0]]).float().cpu()

    @property
    def precise(self) -> bool:
        """Whether the network computes in float32."""
        return self.model.proj.weight.dtype == torch.float32


def size(subject: Subject) -> str:
    named = next((s for s in SIZES if f"sam-audio-{s}" in subject.name), None)
    parameters = sum(p.numel() for p in subject.model.parameters())
    said = f"{parameters / 1e6:.0f} M parameters"
    if named is None:
        raise Skipped(f"{said}; the name is of no released size")
    expected, found = SIZES[named].transformer, subject.model.config.transformer
    if (found.dim, found.n_heads, found.n_layers) != (expected.dim, expected.n_heads, expected.n_layers):
        raise Failed(
            f"{found.dim} x {found.n_layers}, {found.n_heads} heads; {named} is {expected.dim} x {expected.n_layers}"
        )
    return f"{said}, {found.dim} x {found.n_layers} as released"


def text(subject: Subject) -> str:
    features, mask = subject.model.encode_text([PRESENT, ABSENT])
    if features.shape[-1] != subject.model.config.text_encoder.dim or not torch.isfinite(features).all():
        raise Failed(f"features {list(features.shape)}, finite: {bool(torch.isfinite(features).all())}")
    return f"features {list(features.shape)}, {int(mask.sum())} tokens"


def vision(subject: Subject) -> str:
    config = subject.model.config.vision_encoder
    if config is None:
        raise Skipped("the model takes no video")
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (2, 3, 90, 160), dtype=torch.uint8, generator=generator)
    features = subject.model.encode_frames(frames).float()
    norms = features.norm(dim=-1)
    if features.shape != (2, config.dim) or not torch.isfinite(features).all():
        raise Failed(f"features {list(features.shape)}, expected {[2, config.dim]}, finite")
    if config.normalize_feature and not torch.allclose(norms, torch.ones_like(norms), atol=2e-2):
        raise Failed(f"feature lengths {norms.tolist()}, expected 1")
    return f"features {list(features.shape)} of length {norms.mean():.3f}"


def codec(subject: Subject) -> str:
    audio_codec = subject.model.audio_codec
    if not isinstance(audio_codec, DACVAE):
        raise Skipped("this codec gives back shares of a mixture, not a waveform of its own")
    back = audio_codec.decode_clean(audio_codec.encode(subject.speech[None, None].to(subject.model.device)))
    level = decibels(back[0, 0]) - decibels(subject.speech)
    likeness = envelope_correlation(back[0, 0].cpu(), subject.speech, subject.model.sample_rate)
    return require(
        abs(level) < 3 and likeness > 0.9,
        f"speech comes back at {level:+.1f} dB, envelope correlation {likeness:.3f}",
        "within 3 dB and over 0.9",
    )


def shapes(subject: Subject) -> str:
    stems = subject.stems["mixture"] = subject.separate(subject.mixture, PRESENT)
    return require(
        stems.shape == (2, len(subject.mixture)), f"stems {list(stems.shape)}", f"{[2, len(subject.mixture)]}"
    )


def finite(subject: Subject) -> str:
    stems = subject.stems["mixture"]
    peak = float(stems.abs().max())
    return require(bool(torch.isfinite(stems).all()) and 0 < peak < 4, f"peak {peak:.3f}", "finite, over 0 and under 4")


def completeness(subject: Subject) -> str:
    total = subject.stems["mixture"].sum(0)
    level = decibels(total) - decibels(subject.mixture)
    return require(abs(level) < 3, f"target + residual {level:+.2f} dB from the mixture", "within 3 dB")


def separation(subject: Subject) -> str:
    before = si_sdr(subject.mixture, subject.speech)
    after = si_sdr(subject.stems["mixture"][0], subject.speech)
    return require(
        after > before + 1,
        f"SI-SDR of {PRESENT!r} under music {before:.1f} -> {after:.1f} dB",
        "better by over 1 dB",
    )


def prompting(subject: Subject) -> str:
    levels = {}
    for description in (PRESENT, ABSENT):
        stems = subject.stems[description] = subject.separate(subject.speech, description)
        levels[description] = decibels(stems[0]) - decibels(subject.speech)
    return require(
        levels[ABSENT] < levels[PRESENT] - 1,
        f"target of speech: {PRESENT!r} {levels[PRESENT]:+.1f} dB, {ABSENT!r} {levels[ABSENT]:+.1f} dB",
        "the absent sound lower by over 1 dB",
    )


def determinism(subject: Subject) -> str:
    first = subject.stems["mixture"]
    difference = decibels(subject.separate(subject.mixture, PRESENT) - first) - decibels(first)
    return require(difference < -60, f"a second run differs by {difference:.0f} dB", "under -60 dB")


def chunking(subject: Subject) -> str:
    model, config = subject.model, subject.model.config
    hop, total = config.audio_codec.hop_length, len(subject.mixture) // config.audio_codec.hop_length
    try:
        # Windows of two seconds: the clip then holds several, cut off by the segments' ends.
        model.config = replace(config, long_form=LongFormConfig(50, 40))
        halo = exact_halo_frames(model, FADE_FRAMES)
        results = []
        for core in (total, -(-total // 3)):
            joiner, parts = Joiner(hop), []
            for segment in cut(total, core, halo):
                waveform = subject.mixture[None, segment.start * hop : segment.end * hop]
                excerpt = Excerpt("verify", waveform, PRESENT, start_frame=segment.start, total_frames=total)
                stems = separate_long(model, [excerpt])[0]
                parts.append(joiner.add(segment, torch.stack([stems.target, stems.residual]).numpy()))
            results.append(torch.from_numpy(np.concatenate(parts, axis=-1)))
    finally:
        model.config = config
    difference = decibels(results[1] - results[0]) - decibels(subject.mixture)
    limit = -60 if subject.precise else -30
    return require(difference < limit, f"three segments and one differ by {difference:.0f} dB", f"under {limit} dB")


def spans(subject: Subject) -> str:
    model = subject.model
    if model.config.span_predictor is None:
        raise Skipped("the config names no span predictor")
    latents = model.audio_codec.encode(subject.speech[None, None].to(model.device)).transpose(1, 2)
    shares = {
        description: float((model.span_predictor.logits(latents, None, [description]).sigmoid() > 0.3).float().mean())
        for description in (PRESENT, ABSENT)
    }
    return require(
        shares[PRESENT] > shares[ABSENT],
        f"frames of speech with {PRESENT!r} {shares[PRESENT]:.0%}, with {ABSENT!r} {shares[ABSENT]:.0%}",
        "more of the sound that is there",
    )


def judge(subject: Subject) -> str:
    if subject.judge_name is None:
        raise Skipped("no judge was asked for")
    model = SAMAudioJudgeModel.from_pretrained(subject.judge_name, device=subject.model.device)

    def heard(audio: Tensor) -> Tensor:
        return torchaudio.functional.resample(audio, subject.model.sample_rate, model.sample_rate).to(model.device)

    rows = [
        (subject.mixture, subject.stems["mixture"][0], PRESENT),
        (subject.speech, subject.stems[PRESENT][0], PRESENT),
        (subject.speech, subject.stems[PRESENT][0], ABSENT),
    ]
    scores = model.score([heard(a) for a, _, _ in rows], [heard(t) for _, t, _ in rows], [d for _, _, d in rows]).cpu()
    said = "speech out of music: " + ", ".join(f"{n} {s:.2f}" for n, s in zip(SCORES, scores[0].tolist(), strict=True))
    right, wrong = float(scores[1, 0]), float(scores[2, 0])
    return require(
        bool(torch.isfinite(scores).all()) and right > wrong,
        f"{said}; speech called {PRESENT!r} {right:.2f}, called {ABSENT!r} {wrong:.2f}",
        "the right name higher",
    )


CHECKS: dict[str, Callable[[Subject], str]] = {
    check.__name__: check
    for check in (
        size, text, vision, codec, shapes, finite, completeness, separation, prompting, determinism, chunking, spans,
        judge,
    )
}  # fmt: skip


def require(holds: bool, found: str, expected: str) -> str:
    if not holds:
        raise Failed(f"{found}; expected {expected}")
    return found


def decibels(audio: Tensor) -> float:
    """Level of a signal in dB re full scale; -200 for silence."""
    return float(10 * torch.log10(audio.double().square().mean().clamp_min(1e-20)))


def si_sdr(estimate: Tensor, truth: Tensor) -> float:
    """Scale-invariant signal-to-distortion ratio in dB, of signals [n]."""
    a, b = estimate.double(), truth.double()
    projection = (a @ b) / (b @ b) * b
    return decibels(projection) - decibels(a - projection)


def envelope_correlation(a: Tensor, b: Tensor, sample_rate: int) -> float:
    """Correlation of two signals' levels in steps of 20 ms."""
    step = sample_rate // 50
    n = min(len(a), len(b)) // step * step
    rows = torch.stack([x[:n].double().unflatten(0, (-1, step)).square().mean(1).sqrt() for x in (a, b)])
    return float(torch.corrcoef(rows)[0, 1])
