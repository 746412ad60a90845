"""Samples [first, last) of an audio stream at its own rate, without decoding what lies before.

Sample 0 is the first sample that a decoder gives from the beginning of the file, so a range read after a seek is
identical to the same range of a sequential decode. Containers that store time in milliseconds (Matroska, WebM) do not
say exactly where a frame lies after a seek; but a codec's frames have lengths with a large common divisor, so the exact
place is the grid point next to the stored time.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
import av.error
import numpy as np
from av.audio.frame import AudioFrame

from operators.container import AudioSource, corrupt
from operators.errors import AssetError

PREROLL_SECONDS = 0.25  # 0.06 s suffice for AAC, MP3 and Vorbis; Opus asks for 0.08
ANCHOR_FRAMES = 16
JITTER_SECONDS = 0.001
LONGEST_VORBIS_BLOCK = 8192
MAX_GAP_SECONDS = 60.0
# A tag after the last frame, or the half packet where a file was cut: its length says what to think of it.
MAX_DAMAGED_AT_END = 2
# PyAV 18 counts the planes of a frame up to a null pointer, which FFmpeg's frames of 8 planes do not have: it would
# read wild memory and end the process.
PLANES_UNSAFE_FROM = 8
# In these, sound follows sound without time stamps of its own: a hole in time means lost data.
WITHOUT_GAPS = {"wav", "w64", "flac", "aiff"}


@dataclass(frozen=True)
class Block:
    """One decoded frame: `samples` `[channels, n]` float32, or None for a packet that could not be decoded."""

    pts: int | None
    samples: np.ndarray | None

    @property
    def length(self) -> int:
        return 0 if self.samples is None else self.samples.shape[1]


def read_samples(source: AudioSource, first: int, last: int | None) -> tuple[np.ndarray, int | None]:
    """Read samples [first, last) (`last` None: to the end).

    Returns (`[channels, n]` float32, end): `end` is the length of the stream in samples when its end was met, None when
    the range was filled. Holes in the time stamps are filled with silence. Raises AssetError `corrupt`,
    `format_change`.
    """
    blocks = _blocks(source)
    head = list(itertools.islice(blocks, ANCHOR_FRAMES))
    clock = _Clock.of(source, head)
    seek_from = first - int(PREROLL_SECONDS * source.rate)
    if clock is None or seek_from <= sum(block.length for block in head):
        return _collect(source, clock, 0, itertools.chain(head, blocks), first, last)
    blocks.close()
    for preroll in (PREROLL_SECONDS, 2.0, 20.0, math.inf):
        target = max(0, first - int(min(preroll * source.rate, first)))
        blocks = _blocks_from(source, clock, target)
        landing = list(itertools.islice(blocks, ANCHOR_FRAMES))
        position = clock.anchor(landing)
        # Some demuxers land late when their index is coarse, and nowhere when the range is beyond the end.
        landed = any(block.length for block in landing)
        if landed and position <= first - int(PREROLL_SECONDS * source.rate / 2):
            break
    return _collect(source, clock, position, itertools.chain(landing, blocks), first, last)


@dataclass(frozen=True)
class _Clock:
    """Turns time stamps into sample positions."""

    origin: int  # time stamp of sample 0
    ticks: Fraction  # samples in one unit of the stream's time base
    exact: bool
    bias: float  # mean of (position - time stamp) over the first frames, in samples
    grid: int
    phase: int

    @classmethod
    def of(cls, source: AudioSource, head: list[Block]) -> _Clock | None:
        stamped = [block for block in head if block.length]
        if not stamped or any(block.pts is None for block in stamped):
            return None
        ticks = source.time_base * source.rate
        origin = stamped[0].pts or 0
        starts = list(itertools.accumulate((block.length for block in stamped), initial=0))
        bias = statistics.median(
            start - float((block.pts - origin) * ticks)  # type: ignore[operator]
            for start, block in zip(starts, stamped, strict=False)
        )
        if source.stream.codec_context.name == "vorbis":
            grid = vorbis_grid(source.stream.codec_context.extradata or b"")
        else:
            grid = math.gcd(*(block.length for block in stamped[1:-1])) if len(stamped) > 3 else 1
        return cls(origin, ticks, ticks.numerator == 1, bias, grid, stamped[0].length % max(grid, 1))

    def place(self, pts: int) -> float:
        offset = (pts - self.origin) * self.ticks
        return float(offset) if self.exact else float(offset) + self.bias

    def jitter(self, source: AudioSource, length: int) -> float:
        """By how many samples a time stamp may differ from the count of samples without meaning a hole.

        A lost packet is a hole of a whole frame. FFmpeg's stamps of Ogg Vorbis are off by less than a long block where
        short and long blocks meet, and right again at the next page.
        """
        frame = LONGEST_VORBIS_BLOCK if source.stream.codec_context.name == "vorbis" else length / 2
        return max(frame, JITTER_SECONDS * source.rate + 2 * float(self.ticks))

    def stamp(self, position: int) -> int:
        return self.origin + math.floor(position / self.ticks)

    def anchor(self, blocks: list[Block]) -> int:
        """Position of the first of some consecutive blocks."""
        stamped = [block for block in blocks if block.length]
        starts = itertools.accumulate((block.length for block in stamped), initial=0)
        guesses = [
            self.place(block.pts) - start
            for start, block in zip(starts, stamped, strict=False)
            if block.pts is not None
        ]
        if not guesses:
            return 0
        if self.exact:
            return statistics.median_low(round(guess) for guess in guesses)
        guess = statistics.median(guesses)
        grid = math.gcd(self.grid, *(block.length for block in stamped[1:-1]))
        if grid <= float(self.ticks):
            return round(guess)
        return self.phase + grid * round((guess - self.phase) / grid)


def vorbis_grid(headers: bytes) -> int:
    """What every frame length of a Vorbis stream is a multiple of: a quarter of its short block (Vorbis I, 4.2.2).

    The frames at hand cannot tell: a quiet passage has long blocks only.
    """
    start = headers.find(b"\x01vorbis")
    return max(1, (1 << (headers[start + 28] & 15)) // 4) if 0 <= start < len(headers) - 28 else 1


def _blocks_from(source: AudioSource, clock: _Clock, position: int) -> Generator[Block, None, None]:
    try:
        if source.format == "matroska" and source.has_video:
            # Its index is of video frames: by the audio stream FFmpeg would read on from the beginning.
            stamp = clock.stamp(position) * source.time_base
            source.container.seek(math.floor(stamp * av.time_base))
        else:
            source.container.seek(clock.stamp(position), stream=source.stream)
    except av.error.FFmpegError:
        return  # there is nothing so late in the file
    yield from _blocks(source)


def _blocks(source: AudioSource) -> Generator[Block, None, None]:
    interleave = av.AudioResampler(format="flt")
    for packet in source.container.demux(source.stream):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            yield Block(None, None)
            continue
        for frame in frames:
            assert isinstance(frame, AudioFrame)
            if (frame.sample_rate, frame.layout.nb_channels) != (source.rate, source.channels):
                raise AssetError(
                    "format_change",
                    f"{source.name} changes from {source.rate} Hz, {source.channels} channels to "
                    f"{frame.sample_rate} Hz, {frame.layout.nb_channels} channels in its middle",
                    "split the recording where its format changes",
                )
            if frame.format.is_planar and source.channels >= PLANES_UNSAFE_FROM:
                samples = np.concatenate([_as_float(packed) for packed in interleave.resample(frame)], axis=1)
            else:
                samples = _as_float(frame)
            yield Block(frame.pts, samples)


def _as_float(frame: AudioFrame) -> np.ndarray:
    data = frame.to_ndarray()
    if not frame.format.is_planar:
        data = data.reshape(-1, frame.layout.nb_channels).T
    if data.dtype == np.uint8:
        return (data.astype(np.float32) - 128) / 128
    if data.dtype.kind == "i":
        return data.astype(np.float32) * np.float32(2.0 ** (1 - 8 * data.dtype.itemsize))
    return data.astype(np.float32)


def _collect(
    source: AudioSource, clock: _Clock | None, position: int, blocks: Iterator[Block], first: int, last: int | None
) -> tuple[np.ndarray, int | None]:
    pieces: list[np.ndarray] = []
    damaged: list[int] = []
    for block in blocks:
        if block.samples is None:
            if position >= first:
                damaged.append(position)
            continue
        if damaged:
            raise _undecodable(source, damaged)
        samples = block.samples
        if clock is not None and block.pts is not None:
            ahead = clock.place(block.pts) - position
            jitter = clock.jitter(source, block.length)
            if ahead > jitter:
                position = _fill(source, pieces, position, position + round(ahead), first, last)
            elif ahead < -MAX_GAP_SECONDS * source.rate:
                raise corrupt(source.name, f"its time stamps jump back at {position / source.rate:.2f} s")
            elif ahead < -jitter:
                samples = samples[:, min(samples.shape[1], round(-ahead)) :]
        begin = max(0, first - position)
        stop = samples.shape[1] if last is None else max(0, last - position)
        if begin < min(stop, samples.shape[1]):
            pieces.append(samples[:, begin:stop])
        position += samples.shape[1]
        if last is not None and position >= last:
            return _joined(source, pieces), None
    if len(damaged) > MAX_DAMAGED_AT_END:
        raise _undecodable(source, damaged)
    return _joined(source, pieces), position


def _undecodable(source: AudioSource, damaged: list[int]) -> AssetError:
    return corrupt(source.name, f"{len(damaged)} packets at {damaged[0] / source.rate:.2f} s cannot be decoded")


def _fill(
    source: AudioSource, pieces: list[np.ndarray], position: int, until: int, first: int, last: int | None
) -> int:
    seconds = (until - position) / source.rate
    if source.format in WITHOUT_GAPS or seconds > MAX_GAP_SECONDS:
        raise corrupt(source.name, f"{seconds:.2f} s of sound are missing at {position / source.rate:.2f} s")
    silence = min(until, until if last is None else last) - max(position, first)
    if silence > 0:
        pieces.append(np.zeros((source.channels, silence), np.float32))
    return until


def _joined(source: AudioSource, pieces: list[np.ndarray]) -> np.ndarray:
    """The pieces as one, channel after channel in memory; each is let go as soon as it is copied."""
    out = np.empty((source.channels, sum(piece.shape[1] for piece in pieces)), np.float32)
    position = out.shape[1]
    while pieces:
        piece = pieces.pop()
        out[:, position - piece.shape[1] : position] = piece
        position -= piece.shape[1]
    return out
