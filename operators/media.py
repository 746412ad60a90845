"""Media in and out: probe a file, decode a range of it, write and read stems.

Files are any seekable binary file objects; of a long file only the bytes of the range asked for are read.
"""

from __future__ import annotations

from typing import BinaryIO

import numpy as np

from operators.encode import StemReport, StemWriter, read_stem, read_stem_blocks
from operators.errors import AssetError
from operators.reader import Excerpt, MediaInfo, probe, read_excerpt
from operators.resample import resample_in_pieces

__all__ = [
    "MediaInfo",
    "StemReport",
    "StemWriter",
    "decode_range",
    "probe",
    "read_stem",
    "read_stem_blocks",
    "resample_excerpt",
]


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
    excerpt = read_excerpt(
        file, name, start=start, stop=stop, sample_rate=sample_rate, expected_seconds=expected_seconds
    )
    return resample_excerpt(excerpt, name, start=start, stop=stop, sample_rate=sample_rate)


def resample_excerpt(excerpt: Excerpt, name: str, *, start: int, stop: int | None, sample_rate: int) -> np.ndarray:
    """Samples [start, stop) at `sample_rate` Hz of what `read_excerpt` read for them. AssetError: `nan_samples`."""
    out = resample_in_pieces(excerpt.samples, excerpt.first, start, stop, excerpt.rate, sample_rate)
    # One pass without a temporary: a sum is finite only if all its terms are (float64 cannot overflow on float32).
    if not np.isfinite(out.sum(dtype=np.float64)):
        bad = int(np.flatnonzero(~np.isfinite(out).all(axis=0))[0])
        raise AssetError(
            "nan_samples",
            f"{name} holds NaN or infinite samples, the first near {(start + bad) / sample_rate:.2f} s",
            "export it again from its source; a float WAV can carry what a faulty plug-in wrote",
        )
    return out
