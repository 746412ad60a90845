"""Stems as they come from the model, turned into files as they were asked for: rate, level, format; and measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from operators.encode import StemFormat, StemReport, StemWriter, bit_depth_of, sample_rate_for
from operators.loudness import Loudness, LoudnessMeter
from operators.resample import StreamResampler

OversRule = Literal["scale", "clip"]
# What stems that go beyond full scale are turned down to: two steps of 16 bits below it leave room for the dither.
CEILING = 1 - 2.0**-14
BLOCK = 1 << 18

# The stems of one item, piece after piece: each is one array [channels, n] a stem.
Pieces = Iterable[Sequence[np.ndarray]]


@dataclass(frozen=True)
class Output:
    """How stems are stored. `bit_depth` None is the format's own (`encode.BIT_DEPTHS`)."""

    stem_format: StemFormat
    sample_rate: int
    bit_depth: int | None = None
    on_overs: OversRule = "scale"


@dataclass(frozen=True)
class Rendered:
    """What was written: reports and loudness are one a stem; `gain_db` was put on all of them."""

    reports: tuple[StemReport, ...]
    loudness: tuple[Loudness, ...]
    sample_rate: int
    bit_depth: int | None
    channels: int
    gain_db: float

    @property
    def duration_seconds(self) -> float:
        return self.reports[0].samples / self.sample_rate


def render(paths: Sequence[Path], pieces: Callable[[], Pieces], sample_rate: int, output: Output) -> Rendered:
    """Write the stems of one item, `pieces()` at `sample_rate`, to `paths`.

    Where a stem goes beyond full scale, in a format that cannot hold that, and `output.on_overs` is `scale`, all stems
    are turned down by the same gain, so that their sum stays the recording in proportion: `pieces` is then called a
    second time. Levels are those of the files (for Opus, of what its encoder was given). Beside the pieces, memory is
    that of a few seconds. Opus stores a rate that it lacks at the next higher one.
    """
    written = _write(paths, pieces(), sample_rate, output, 1.0)
    peak = max(report.peak for report in written.reports)
    if output.on_overs == "clip" or written.bit_depth == 32 or peak <= 1:
        return written
    return _write(paths, pieces(), sample_rate, output, CEILING / peak)


def _write(paths: Sequence[Path], pieces: Pieces, rate_in: int, output: Output, gain: float) -> Rendered:
    rate = sample_rate_for(output.stem_format, output.sample_rate)
    stems: list[_Stem] = []
    with ExitStack() as files:
        for piece in pieces:
            if not stems:
                for seed, (path, samples) in enumerate(zip(paths, piece, strict=True)):
                    writer = StemWriter(path, rate, samples.shape[0], output.stem_format, output.bit_depth, seed)
                    files.enter_context(writer)
                    stems.append(_Stem(writer, rate_in, rate, gain))
            for stem, samples in zip(stems, piece, strict=True):
                stem.add(samples)
        results = [stem.finish() for stem in stems]
    if not results:
        raise ValueError("an item without sound: there is no piece to write")
    return Rendered(
        reports=tuple(report for report, _ in results),
        loudness=tuple(loudness for _, loudness in results),
        sample_rate=rate,
        bit_depth=bit_depth_of(output.stem_format, output.bit_depth),
        channels=stems[0].writer.channels,
        gain_db=20 * math.log10(gain),
    )


class _Stem:
    """One stem on its way into its file."""

    def __init__(self, writer: StemWriter, rate_in: int, rate_out: int, gain: float) -> None:
        self.writer = writer
        self._resampler = StreamResampler(rate_in, rate_out)
        self._meter = LoudnessMeter(rate_out, writer.channels)
        self._gain = np.float32(gain)

    def add(self, samples: np.ndarray) -> None:
        # A piece may be a segment of many minutes, and every step below makes copies.
        for begin in range(0, samples.shape[1], BLOCK):
            self._put(self._resampler.add(samples[:, begin : begin + BLOCK]))

    def finish(self) -> tuple[StemReport, Loudness]:
        rest = self._resampler.finish()
        if rest.size:
            self._put(rest)
        return self.writer.close(), self._meter.close()

    def _put(self, samples: np.ndarray) -> None:
        if self._gain != 1:
            samples = samples * self._gain
        self.writer.write(samples)  # first: it refuses what is not finite
        self._meter.add(samples if self.writer.keeps_overs else np.clip(samples, -1, 1))
