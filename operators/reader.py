"""What a media file says of its sound, and a range of it at its own rate.

This is all that parses media of unknown origin for sound. It does without torch, so that the processes it runs in (see
`operators.sandbox`) are small and quick to make.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from operators.container import LENGTH_TOLERANCE_SECONDS, declared_seconds, open_audio, truncated
from operators.rates import source_range
from operators.timeline import read_samples


@dataclass(frozen=True)
class MediaInfo:
    """What a file says about its sound. `codec` and `container` are FFmpeg's names."""

    duration_seconds: float
    sample_rate: int
    channels: int
    codec: str
    container: str
    has_video: bool


@dataclass(frozen=True)
class Excerpt:
    """`samples` `[channels, n]` float32 at `rate` Hz, of which the first is sample `first` of the recording."""

    samples: np.ndarray
    first: int
    rate: int


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


def read_excerpt(
    file: BinaryIO, name: str, *, start: int, stop: int | None, sample_rate: int, expected_seconds: float | None
) -> Excerpt:
    """The file's own samples of which `resample_range` makes the samples [start, stop) at `sample_rate` Hz.

    Causes of AssetError and the meaning of the arguments: `operators.media.decode_range`.
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
    return Excerpt(samples, first, rate)
