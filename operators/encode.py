"""Stems as files: written while they are made, read back in blocks, neither ever whole in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import av
import numpy as np
import soundfile
from av.audio.stream import AudioStream

StemFormat = Literal["flac", "wav", "opus"]
OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)
OPUS_BITS_PER_CHANNEL = 96_000
# The channel orders that a layout of so many channels has in FLAC, WAV and Opus alike.
LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "quad", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
READ_BLOCK = 1 << 18
# What a format can hold, its default first; 32 is float. Opus has no bit depth.
BIT_DEPTHS: dict[StemFormat, tuple[int, ...]] = {"flac": (24, 16), "wav": (32, 24, 16), "opus": ()}


def bit_depth_of(format: StemFormat, bit_depth: int | None = None) -> int | None:
    """The bit depth that files of `format` get when `bit_depth` is asked for (None: the format's own).

    None for Opus, which has none. Raises ValueError for one that the format does not have.
    """
    if format not in BIT_DEPTHS:
        raise ValueError(f"stem format {format!r}; choose flac, wav or opus")
    choices = BIT_DEPTHS[format]
    if bit_depth is None:
        return choices[0] if choices else None
    if bit_depth not in choices:
        raise ValueError(
            f"bit depth {bit_depth} in {format}; choose {' or '.join(map(str, sorted(choices)))}, or leave it out"
            if choices
            else f"bit depth {bit_depth} in {format}, which has none; leave it out"
        )
    return bit_depth


def sample_rate_for(format: StemFormat, sample_rate: int) -> int:
    """The rate to store a stem of `sample_rate` at: Opus has five, of which the next higher one loses nothing."""
    if format != "opus":
        return sample_rate
    return next((rate for rate in OPUS_RATES if rate >= sample_rate), OPUS_RATES[-1])


@dataclass(frozen=True)
class StemReport:
    """What was written. `clipped` counts samples beyond full scale that the format could not hold.

    `peak` is the largest absolute sample that was given, before clipping.
    """

    samples: int
    clipped: int
    peak: float


class StemWriter:
    """Writes one stem to the local file `path`, piece by piece; a context manager.

    `format`: `flac` (24 or 16 bit), `wav` (32-bit float, which holds samples beyond full scale as they are, or 24 or 16
    bit), `opus` (Ogg, 96 kbit/s a channel; 8, 12, 16, 24 or 48 kHz). `bit_depth` None is the first named. 16 bits are
    dithered; stems of one item get different `dither_seed`s, or their dither would add up when they are mixed again.
    `close()` finishes the file and returns a StemReport; leaving the `with` by an error closes and deletes it. `write`
    raises ValueError for a wrong shape or samples that are not finite.
    """

    def __init__(
        self,
        path: str | Path,
        sample_rate: int,
        channels: int,
        format: StemFormat = "flac",
        bit_depth: int | None = None,
        dither_seed: int = 0,
    ) -> None:
        if not 1 <= channels <= 8:
            raise ValueError(f"a stem has 1 to 8 channels, not {channels}")
        depth = bit_depth_of(format, bit_depth)
        self.path = Path(path)
        self.channels = channels
        self.keeps_overs = depth == 32
        self.report: StemReport | None = None
        self._samples = 0
        self._clipped = 0
        self._peak = 0.0
        self._quantiser = Quantiser(depth, dither_seed) if depth in (16, 24) else None
        self._sink: _FFmpegSink | _FLACSink
        if format == "flac":
            self._sink = _FLACSink(self.path, sample_rate, channels, f"PCM_{depth}")
        elif format == "wav":
            codec = {16: "pcm_s16le", 24: "pcm_s24le", 32: "pcm_f32le"}[depth or 32]
            # `rf64=auto`: a plain WAV header unless the file passes 4 GiB (four hours of stereo at 24 bit).
            self._sink = _FFmpegSink(self.path, sample_rate, channels, codec, "wav", {"rf64": "auto"})
        else:
            if sample_rate not in OPUS_RATES:
                raise ValueError(f"Opus cannot hold {sample_rate} Hz; choose one of {OPUS_RATES}")
            self._sink = _FFmpegSink(self.path, sample_rate, channels, "libopus", "ogg", {})

    def write(self, samples: np.ndarray) -> None:
        """Append `samples` `[channels, n]` float32, full scale at 1."""
        if samples.ndim != 2 or samples.shape[0] != self.channels:
            raise ValueError(f"expected [{self.channels}, n] samples, got {samples.shape}")
        if samples.shape[1] == 0:
            return
        peak = float(np.abs(samples).max())
        if not np.isfinite(peak):
            raise ValueError(f"samples that are not finite, after {self._samples} samples of {self.path.name}")
        if peak > 1 and not self.keeps_overs:
            self._clipped += int(np.count_nonzero(np.abs(samples) > 1))
            samples = np.clip(samples, -1, 1)
        self._peak = max(self._peak, peak)
        self._samples += samples.shape[1]
        interleaved = np.ascontiguousarray(samples.T, dtype=np.float32)
        self._sink.write(interleaved if self._quantiser is None else self._quantiser(interleaved))

    def close(self) -> StemReport:
        """Finish the file. A second call returns the same report."""
        if self.report is None:
            self._sink.close()
            self.report = StemReport(self._samples, self._clipped, self._peak)
        return self.report

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        with contextlib.suppress(Exception):  # the first error is the one to tell: `close` itself may have raised it
            self.close()
        self.path.unlink(missing_ok=True)


class Quantiser:
    """Float samples, full scale at 1, as integers of `bits` bits in the high bits of an int32.

    16 bits get triangular dither of two steps' width (TPDF): the error is then noise that does not follow the signal.
    Digital silence stays silence. The dither is the same for every run, however the samples are cut into pieces.
    """

    def __init__(self, bits: int, seed: int = 0) -> None:
        self._scale = float(1 << (bits - 1))
        self._shift = 32 - bits
        self._dither = np.random.Generator(np.random.Philox(key=seed)) if bits == 16 else None

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """`samples` `[n, channels]` float32 within [-1, 1] -> int32 of the same shape."""
        steps = samples * np.float32(self._scale)
        if self._dither is not None:
            uniform = self._dither.random((*samples.shape, 2), dtype=np.float32)
            steps += np.where(samples == 0, np.float32(0), uniform[..., 0] - uniform[..., 1])
        steps = np.clip(np.rint(steps), -self._scale, self._scale - 1)
        return np.ascontiguousarray(steps.astype(np.int32) << self._shift)


class _FLACSink:
    """A FLAC file by libsndfile, which does not say what the disk said, and at the end of a file not even that it
    failed: so the disk is written to here. `write` and `close` raise the disk's OSError."""

    def __init__(self, path: Path, sample_rate: int, channels: int, subtype: str) -> None:
        self._disk = _Disk(path)
        with self._disk.errors():
            self._sound = soundfile.SoundFile(self._disk, "w", sample_rate, channels, subtype, format="FLAC")

    def write(self, samples: np.ndarray) -> None:
        with self._disk.errors():
            self._sound.write(samples)

    def close(self) -> None:
        with self._disk.file, self._disk.errors():
            self._sound.close()


class _Disk:
    """What libsndfile takes for a file; keeps the first error, which cannot pass through its C code."""

    def __init__(self, path: Path) -> None:
        self.file = file = path.open("w+b", buffering=0)  # a buffer would fail when it is moved away from, too
        self.seek, self.tell, self.read, self.readinto = file.seek, file.tell, file.read, file.readinto
        self._error: OSError | None = None

    def write(self, data: bytes) -> int:
        written = 0
        try:
            while written < len(data):
                written += self.file.write(data[written:])
        except OSError as error:
            self._error = self._error or error
        return written

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        try:
            yield
        except (soundfile.LibsndfileError, AssertionError):  # soundfile asserts that all samples were taken
            if self._error is None:
                raise
        if self._error is not None:
            raise self._error


class _FFmpegSink:
    """A file written by FFmpeg, with soundfile's `write([n, channels])` of float32 or int32, and `close()`."""

    def __init__(
        self, path: Path, sample_rate: int, channels: int, codec: str, container: str, options: dict[str, str]
    ) -> None:
        self._rate = sample_rate
        self._layout = LAYOUTS[channels]
        self._container = av.open(str(path), "w", format=container, options=options)
        stream = self._container.add_stream(codec, rate=sample_rate, layout=self._layout)
        assert isinstance(stream, AudioStream)
        if codec == "libopus":
            stream.bit_rate = OPUS_BITS_PER_CHANNEL * channels
        # The sample formats that these encoders take.
        self._format = {"pcm_s16le": "s16", "pcm_s24le": "s32"}.get(codec, "flt")
        self._stream = stream
        self._position = 0

    def write(self, samples: np.ndarray) -> None:
        packed = samples.reshape(1, -1)
        if self._format == "s16":
            packed = (packed >> 16).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(packed, format=self._format, layout=self._layout)
        frame.sample_rate = self._rate
        frame.pts = self._position
        self._position += samples.shape[0]
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        self._container.mux(self._stream.encode(None))
        self._container.close()


def read_stem_blocks(path: str | Path, block: int = READ_BLOCK) -> Iterator[np.ndarray]:
    """The samples of a FLAC, WAV or Ogg file of ours in pieces `[channels, <= block]` float32."""
    with soundfile.SoundFile(Path(path)) as file:
        for samples in file.blocks(block, dtype="float32", always_2d=True):
            yield np.ascontiguousarray(samples.T)


def read_stem(path: str | Path) -> np.ndarray:
    """All samples of a FLAC, WAV or Ogg file of ours as `[channels, n]` float32."""
    samples, _ = soundfile.read(Path(path), dtype="float32", always_2d=True)
    return np.ascontiguousarray(samples.T)
