"""Stems as files: written while they are made, read back in blocks, neither ever whole in memory."""

from __future__ import annotations

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


@dataclass(frozen=True)
class StemReport:
    """What was written. `clipped` counts samples beyond full scale that the format could not hold."""

    samples: int
    clipped: int
    peak: float


class StemWriter:
    """Writes one stem to the local file `path`, piece by piece; a context manager.

    `format`: `flac` (24-bit), `wav` (32-bit float, which holds samples beyond full scale as they are), `opus` (Ogg, 96
    kbit/s a channel; 8, 12, 16, 24 or 48 kHz). `close()` finishes the file and returns a StemReport; leaving the `with`
    by an error closes and deletes it. `write` raises ValueError for a wrong shape or samples that are not finite.
    """

    def __init__(self, path: str | Path, sample_rate: int, channels: int, format: StemFormat = "flac") -> None:
        if not 1 <= channels <= 8:
            raise ValueError(f"a stem has 1 to 8 channels, not {channels}")
        self.path = Path(path)
        self.channels = channels
        self.report: StemReport | None = None
        self._samples = 0
        self._clipped = 0
        self._peak = 0.0
        self._keeps_overs = format == "wav"
        self._sink: _FFmpegSink | soundfile.SoundFile
        if format == "flac":
            self._sink = soundfile.SoundFile(self.path, "w", sample_rate, channels, "PCM_24", format="FLAC")
        elif format == "wav":
            # `rf64=auto`: a plain WAV header unless the file passes 4 GiB (three hours of stereo).
            self._sink = _FFmpegSink(self.path, sample_rate, channels, "pcm_f32le", "wav", {"rf64": "auto"})
        elif format == "opus":
            if sample_rate not in OPUS_RATES:
                raise ValueError(f"Opus cannot hold {sample_rate} Hz; choose one of {OPUS_RATES}")
            self._sink = _FFmpegSink(self.path, sample_rate, channels, "libopus", "ogg", {})
        else:
            raise ValueError(f"stem format {format!r}; choose flac, wav or opus")

    def write(self, samples: np.ndarray) -> None:
        """Append `samples` `[channels, n]` float32, full scale at 1."""
        if samples.ndim != 2 or samples.shape[0] != self.channels:
            raise ValueError(f"expected [{self.channels}, n] samples, got {samples.shape}")
        if samples.shape[1] == 0:
            return
        peak = float(np.abs(samples).max())
        if not np.isfinite(peak):
            raise ValueError(f"samples that are not finite, after {self._samples} samples of {self.path.name}")
        if peak > 1 and not self._keeps_overs:
            self._clipped += int(np.count_nonzero(np.abs(samples) > 1))
            samples = np.clip(samples, -1, 1)
        self._peak = max(self._peak, peak)
        self._samples += samples.shape[1]
        self._sink.write(np.ascontiguousarray(samples.T, dtype=np.float32))

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
        self.close()
        if error is not None:
            self.path.unlink(missing_ok=True)


class _FFmpegSink:
    """A file written by FFmpeg, with soundfile's `write([n, channels])` and `close()`."""

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
        self._stream = stream
        self._position = 0

    def write(self, samples: np.ndarray) -> None:
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="flt", layout=self._layout)
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
