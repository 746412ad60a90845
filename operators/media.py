"""Media in and out: probe a file, decode a range of it, write and read stems.

Files are any seekable binary file objects; of a long file only the bytes of the range asked for are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from operators.container import LENGTH_TOLERANCE_SECONDS, declared_seconds, open_audio, truncated
from operators.encode import StemReport, StemWriter, read_stem, read_stem_blocks
from operators.errors import AssetError
from operators.resample import resample_range, source_range
from operators.timeline import read_samples

__all__ = [
    "MediaInfo",
    "StemReport",
    "StemWriter",
    "decode_range",
    "probe",
    "read_stem",
    "read_stem_blocks",
]


@dataclass(frozen=True)
class MediaInfo:
    """What a file says about its sound. `codec` and `container` are FFmpeg's names."""

    duration_seconds: float
    sample_rate: int
    channels: int
    codec: str
    container: str
    has_video: bool


def probe(file: BinaryIO, name: str) -> MediaInfo:
    """Describe `file` (seekable, binary) from its headers, decoding nothing but its first frames.

    Raises AssetError with one of the causes `empty_file`, `mislabelled`, `corrupt`, `truncated`, `no_audio`,
    `bad_duration`, `unsupported_codec`, `unsupported_channels`, `unsupported_sample_rate`, `unreadable`.
    """
    with open_audio(file, name) as source:
        return MediaInfo(
            duration_seconds=declared_seconds(source),
            sample_rate=source.rate,
            channels=source.channels,
            codec=source.stream.codec_context.codec.canonical_name,
            container=source.container.format.name,
            has_video=source.has_video,
        )


def decode_range(
    file: BinaryIO,
    name: str,
    *,
    start: int,
    stop: int | None,
    sample_rate: int,
    expected_seconds: float | None,
) -> np.ndarray:
    """Samples [start, stop) of the recording at `sample_rate` Hz, as `[channels, <= stop - start]` float32.

    `start` and `stop` count samples of the whole recording at `sample_rate`; `stop=None` reads to the end. All channels
    come back, in the file's order. Adjacent ranges join exactly: each equals the same range of the whole recording
    decoded and resampled at once. The result is shorter only where the recording ends; if that is before
    `expected_seconds` (the manifest's duration; None: the file's own), it is AssetError `truncated`. Further causes:
    those of `probe`, `nan_samples`, `format_change`. Memory is that of the range.
    """
    if expected_seconds is None:
        with open_audio(file, name) as source:
            expected_seconds = declared_seconds(source)
    with open_audio(file, name) as source:
        rate = source.rate
        first, last = source_range(start, stop, rate, sample_rate)
        samples, end = read_samples(source, first, last)
        if end is not None and end / rate < expected_seconds - LENGTH_TOLERANCE_SECONDS:
            raise truncated(name, f"{expected_seconds:.2f} s expected, the sound ends at {end / rate:.2f} s")
    out = resample_range(samples, first, start, stop, rate, sample_rate)
    # One pass without a temporary: a sum is finite only if all its terms are (float64 cannot overflow on float32).
    if not np.isfinite(out.sum(dtype=np.float64)):
        bad = int(np.flatnonzero(~np.isfinite(out).all(axis=0))[0])
        raise AssetError(
            "nan_samples",
            f"{name} holds NaN or infinite samples, the first near {(start + bad) / sample_rate:.2f} s",
            "export it again from its source; a float WAV can carry what a faulty plug-in wrote",
        )
    return out
