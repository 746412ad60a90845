"""Training examples from recordings: what is mixed is planned from a number, and rendered from decoded pieces.

Source: the SAM-Audio paper, data engine: real multi-stem mixtures and synthetic ones, level offsets of ±5 dB within
music and ±15 dB for speech and sounds, span prompts from activity (silence: under -40 dB for at least 250 ms),
paraphrased descriptions, and dropout of each kind of prompt. Example k of a run is a function of the recordings, the
seed and k: whoever makes it, wherever and however often, makes the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ..anchors import Anchor
from ..config import ConfigError
from ..ranking_activity import active_spans
from . import prompts
from .objective import example_generator

KINDS = ("speech", "music", "sfx")


@dataclass(frozen=True)
class Source:
    """One sound: a recording of it alone, or a stem of a mixture. `mask_uri`: masks of it in the recording's video."""

    uri: str
    kind: str
    label: str
    seconds: float
    descriptions: tuple[str, ...] = ()
    mask_uri: str | None = None

    @property
    def name(self) -> str:
        """What tells sounds apart: two of one name are never put into the same mixture as target and residual."""
        return self.label or self.kind


@dataclass(frozen=True)
class Mixture:
    """Aligned stems that were heard together."""

    stems: tuple[Source, ...]

    @property
    def seconds(self) -> float:
        return min(stem.seconds for stem in self.stems)


@dataclass(frozen=True)
class Collection:
    """All that examples are drawn from. Sounds are drawn by name first, so that frequent ones do not drown the rare."""

    sources: tuple[Source, ...]
    mixtures: tuple[Mixture, ...]

    def __post_init__(self) -> None:
        if not self.mixtures and len(self.by_name) < 2:
            raise ConfigError(
                "the training manifest holds neither mixtures with stems nor recordings of two different labels: "
                "add some (column stems, or label), as a sound is learned against other sounds"
            )

    @cached_property
    def by_name(self) -> dict[str, list[Source]]:
        found: dict[str, list[Source]] = {}
        for source in self.sources:
            found.setdefault(source.name, []).append(source)
        return found

    @cached_property
    def names_by_kind(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name, sources in self.by_name.items():
            found.setdefault(sources[0].kind, []).append(name)
        return found


@dataclass(frozen=True)
class MixingOptions:
    """How examples are made. Shares and dropouts are probabilities.

    real_share: of examples from real mixtures, where there are any. absent_share: of synthetic mixtures that lack the
    sound asked for. complement_share: of prompts for everything but a sound. text is only ever left out where spans or
    video are given. music_db, sound_db: largest level offset of the target within music, and otherwise.
    """

    clip_seconds: float = 6.0
    real_share: float = 0.5
    three_share: float = 0.25
    absent_share: float = 0.05
    complement_share: float = 0.05
    music_db: float = 5.0
    sound_db: float = 15.0
    text_dropout: float = 0.1
    span_dropout: float = 0.5
    video_dropout: float = 0.3
    negative_spans: float = 0.25
    loudest_db: float = -15.0
    quietest_db: float = -40.0

    def __post_init__(self) -> None:
        if not self.clip_seconds > 0 or self.quietest_db > self.loudest_db or min(self.music_db, self.sound_db) < 0:
            raise ConfigError("mixing: clip_seconds must be positive, level ranges not reversed, offsets not negative")


@dataclass(frozen=True)
class Piece:
    """Samples [start, start + length) of a recording, heard from sample `at` of the example on."""

    source: Source
    start: int
    length: int
    at: int


@dataclass(frozen=True)
class Voice:
    """One sound in an example. `db`: its level, relative to the others'; `normalised`: its own level is taken out."""

    pieces: tuple[Piece, ...]
    db: float
    normalised: bool


@dataclass(frozen=True)
class Plan:
    """Example `number`: what is heard, how loud the mixture is (dB of full scale), and what is told of the target.

    video: the piece of the target whose masked video is shown.
    """

    number: int
    samples: int
    target: tuple[Voice, ...]
    residual: tuple[Voice, ...]
    loudness_db: float
    description: str
    spans: bool = False
    negative_spans: bool = False
    video: Piece | None = None


def plan(
    collection: Collection,
    options: MixingOptions,
    seed: int,
    number: int,
    *,
    sample_rate: int,
    hop: int,
    again: int = 0,
) -> Plan:
    """What example `number` holds; `again` draws another one in its place (a recording may be unreadable)."""
    rng = example_generator(seed, number, purpose=2 + again)
    samples = max(1, round(options.clip_seconds * sample_rate / hop)) * hop
    loudness = float(rng.uniform(options.quietest_db, options.loudest_db))
    grid = _Grid(rng, samples, sample_rate, hop)
    if collection.mixtures and (not collection.sources or rng.random() < options.real_share):
        asked, target, residual = _real(collection, options, rng, grid)
    else:
        asked, target, residual = _synthetic(collection, options, rng, grid)
    texts = prompts.wordings(asked.kind, asked.label, asked.descriptions)
    description = texts[rng.integers(len(texts))]
    if not target:
        return Plan(number, samples, target, residual, loudness, description)
    if rng.random() < options.complement_share:
        texts = prompts.complements(asked.kind, description)
        return Plan(number, samples, residual, target, loudness, texts[rng.integers(len(texts))])
    spans = bool(rng.random() >= options.span_dropout)
    piece = target[0].pieces[0]
    video = None
    # A picture of the sound alone, from the first sample to the last.
    if asked.mask_uri and piece.length == samples and rng.random() >= options.video_dropout:
        video = piece
    if (spans or video) and rng.random() < options.text_dropout:
        description = ""
    negative = bool(rng.random() < options.negative_spans)
    return Plan(number, samples, target, residual, loudness, description, spans, negative, video)


@dataclass(frozen=True)
class _Grid:
    rng: np.random.Generator
    samples: int
    sample_rate: int
    hop: int

    def cut(self, seconds: float, room: int) -> tuple[int, int]:
        """Start and length of a piece of at most `room` samples, beginning where a latent frame does."""
        total = int(seconds * self.sample_rate)
        length = min(room, total)
        return int(self.rng.integers((total - length) // self.hop + 1)) * self.hop, length

    def voice(self, source: Source, db: float, pauses: bool) -> Voice:
        """A sound that fills the example; one that is shorter comes again, after pauses."""
        rng, at, pieces = self.rng, 0, []
        if pauses and rng.random() < 0.4:
            at = int(rng.integers(self.samples // 3 + 1))
        while at < self.samples:
            start, length = self.cut(source.seconds, self.samples - at)
            if not length:
                break
            pieces.append(Piece(source, start, length, at))
            at += length + (int(rng.exponential(0.5) * self.sample_rate) if pauses else 0)
        return Voice(tuple(pieces), db, normalised=True)


def _offset(options: MixingOptions, rng: np.random.Generator, kinds: Sequence[str]) -> float:
    """Level of a target over the rest, dB: less apart within music. Equal levels in three of ten."""
    largest = options.music_db if set(kinds) == {"music"} else options.sound_db
    return float(rng.uniform(-largest, largest)) if rng.random() < 0.7 else 0.0


def _real(
    collection: Collection, options: MixingOptions, rng: np.random.Generator, grid: _Grid
) -> tuple[Source, tuple[Voice, ...], tuple[Voice, ...]]:
    """One stem of a mixture against the others, in half of the examples at the levels that they were recorded with."""
    mixture = collection.mixtures[rng.integers(len(collection.mixtures))]
    start, length = grid.cut(mixture.seconds, grid.samples)
    chosen = int(rng.integers(len(mixture.stems)))
    db = _offset(options, rng, [stem.kind for stem in mixture.stems]) if rng.random() < 0.5 else 0.0
    voices = [
        Voice((Piece(stem, start, length, 0),), db if i == chosen else 0.0, normalised=False)
        for i, stem in enumerate(mixture.stems)
    ]
    return mixture.stems[chosen], (voices.pop(chosen),), tuple(voices)


def _synthetic(
    collection: Collection, options: MixingOptions, rng: np.random.Generator, grid: _Grid
) -> tuple[Source, tuple[Voice, ...], tuple[Voice, ...]]:
    """One sound against one or two of other names; of kinds first, so that effects do not crowd out speech."""
    by_name, by_kind = collection.by_name, collection.names_by_kind

    def draw(without: set[str]) -> Source:
        kinds = [kind for kind in sorted(by_kind) if set(by_kind[kind]) - without]
        names = sorted(set(by_kind[kinds[rng.integers(len(kinds))]]) - without)
        sources = by_name[names[rng.integers(len(names))]]
        return sources[rng.integers(len(sources))]

    count = min(len(by_name), 3 if rng.random() < options.three_share else 2)
    drawn: list[Source] = []
    for _ in range(count):
        drawn.append(draw({source.name for source in drawn}))
    asked, *others = drawn
    residual = tuple(
        grid.voice(other, -_offset(options, rng, [asked.kind, other.kind]), other.kind != "music") for other in others
    )
    if rng.random() < options.absent_share:
        return asked, (), residual
    return asked, (grid.voice(asked, 0.0, asked.kind != "music"),), residual


Read = Callable[[Piece], np.ndarray]


def render(plan: Plan, read: Read, sample_rate: int) -> tuple[np.ndarray, np.ndarray, list[Anchor]]:
    """Target and residual [samples] float32, and the span prompt, of a plan.

    read: a piece's samples, [<= length] float32 mono at `sample_rate`; it may raise AssetError, which passes.
    """
    target, residual = (
        sum((_sound(voice, plan.samples, read) for voice in voices), np.zeros(plan.samples, np.float32))
        for voices in (plan.target, plan.residual)
    )
    level = float(np.sqrt(np.mean(np.square(target + residual))))
    gain = 10 ** (plan.loudness_db / 20) / level if level > 1e-6 else 1.0
    target, residual = (target * gain).astype(np.float32), (residual * gain).astype(np.float32)
    return target, residual, span_prompt(target, sample_rate, plan.negative_spans) if plan.spans else []


def span_prompt(target: np.ndarray, sample_rate: int, negative: bool) -> list[Anchor]:
    """`+` where the target sounds, and with `negative` also `-` in its pauses.

    Silence is at least 250 ms under -40 dB relative to the loudest 250 ms: recordings of an archive are not levelled,
    and for one that is, this is the paper's -40 dBFS.
    """
    heard = active_spans(torch.from_numpy(target), sample_rate) if target.any() else []
    anchors: list[Anchor] = [("+", start, end) for start, end in heard]
    if negative and heard:
        edges = [0.0, *(edge for span in heard for edge in span), len(target) / sample_rate]
        pauses = zip(edges[::2], edges[1::2], strict=True)
        anchors += [("-", start, end) for start, end in pauses if end - start >= 0.25]
    return anchors


def _sound(voice: Voice, samples: int, read: Read) -> np.ndarray:
    out = np.zeros(samples, np.float32)
    for piece in voice.pieces:
        wave = read(piece)[: samples - piece.at]
        out[piece.at : piece.at + len(wave)] += wave
    if voice.normalised:
        # Over what sounds: pauses say nothing of how loud a sound is.
        active = np.abs(out) > 1e-3 * max(float(np.abs(out).max()), 1e-9)
        level = float(np.sqrt(np.mean(np.square(out[active])))) if active.any() else 0.0
        out /= max(level, 1e-6)
    return (out * 10 ** (voice.db / 20)).astype(np.float32)
