"""Masks over a video, from the files people keep them in: a mask video, or NumPy's npz and npy.

Mask times count from the video's first picture. Of a file only what the range needs is read: a npy by its rows, a npz
as a stream, a video from the nearest key frame on.
"""

from __future__ import annotations

import errno
import io
import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from tokenize import TokenError
from typing import BinaryIO, Protocol

import numpy as np
import torch
from av.video.frame import VideoFrame
from numpy.lib import format as npy
from torch import Tensor

from operators.errors import AssetError
from operators.sam_audio.frames import Nearest, rgb
from operators.video_source import VideoSource, open_video, readable

FIELD = "mask_uri"
# A mask that ends this much before a picture that needs it is a mask of something else.
END_TOLERANCE_SECONDS = 1.0
MAX_MASK_PIXELS = 64_000_000
MAX_MASKS = 10_000_000  # 46 hours at 60 a second
MAX_HEADER_BYTES = 1 << 16
# Codecs leave traces around the edges of black and white areas; both sides of this are far from it.
VIDEO_THRESHOLD = 128


class Masks(Protocol):
    """Masks in time. Ask in ascending order."""

    def at(self, seconds: float) -> Tensor:
        """The mask nearest to `seconds` after the video's first picture: bool [h, w], True where set."""
        ...


@contextmanager
def open_masks(file: BinaryIO, name: str, video_seconds: float) -> Iterator[Masks]:
    """Open a mask file (seekable, binary) of a video that lasts `video_seconds`. Its kind shows in its first bytes.

    A video: set where a channel is 128 or more; its first picture belongs to the video's first.
    npz: `masks` bool or integer [F, H, W] (or [F, 1, H, W]), set where not 0, and `timestamps_seconds` [F], ascending.
    npy, and npz without time stamps: such masks alone, spread evenly over the video.
    The masks may be of any size, and of another shape than the picture: they are stretched over it.

    Raises AssetError about `mask_uri`, here and from `at`: `bad_mask` (not an array of masks), `mask_too_short` (ends
    over a second before a picture that needs it), and the causes of `open_video`.
    """
    with _archive_readable(name):
        file.seek(0)
        head = file.read(8)
        file.seek(0)
    if head.startswith(b"PK\x03\x04"):
        with _archive_readable(name):
            archive = zipfile.ZipFile(file)
            times = _time_stamps(archive, name)
            rows = _member(archive, "masks", name)
        with archive, rows:
            yield _ArrayMasks(rows, name, times, video_seconds)
    elif head.startswith(npy.MAGIC_PREFIX):
        yield _ArrayMasks(file, name, None, video_seconds)
    else:
        with open_video(file, name, field=FIELD) as source:
            yield _VideoMasks(source)


class _VideoMasks:
    def __init__(self, source: VideoSource) -> None:
        self._source = source
        self._pictures: Nearest[VideoFrame] | None = None
        self._seconds = math.nan
        self._mask: Tensor | None = None

    def at(self, seconds: float) -> Tensor:
        source = self._source
        if self._pictures is None:  # the first time asked for says where to begin
            self._pictures = Nearest(source.pictures_from(source.begins + seconds))
        found = self._pictures.at(source.begins + seconds)
        if found is None:
            raise _bad(source.name, "no picture in it can be decoded")
        if found[0] - source.begins < seconds - END_TOLERANCE_SECONDS and self._pictures.ended:
            raise _too_short(source.name, found[0] - source.begins, seconds)
        if self._mask is None or found[0] != self._seconds:
            self._seconds = found[0]
            self._mask = (rgb(found[1]) >= VIDEO_THRESHOLD).any(0)
        return self._mask


class _ArrayMasks:
    def __init__(self, file: BinaryIO, name: str, times: np.ndarray | None, video_seconds: float) -> None:
        self._file, self._name = file, name
        with _archive_readable(name):
            shape, fortran, self._dtype = _header(file, name)
        self._rows_begin = file.tell()
        if len(shape) == 4 and shape[1] == 1:
            shape = (shape[0], *shape[2:])
        if len(shape) != 3 or min(shape) < 1 or fortran or self._dtype.kind not in "bui":
            kind = f"{self._dtype} {list(shape)}" + (" in Fortran order" if fortran else "")
            raise _bad(name, f"its masks are {kind}, not bool or integer [frames, height, width]")
        if shape[1] * shape[2] > MAX_MASK_PIXELS:
            raise _bad(name, f"a mask of {shape[2]} x {shape[1]} pixels is too large")
        if shape[0] > MAX_MASKS:
            raise _bad(name, f"{shape[0]:,} masks are too many")
        if times is None:
            if video_seconds <= 0:
                raise _bad(name, "it has no timestamps_seconds, and the video does not say how long it is")
            times = np.arange(shape[0]) * (video_seconds / shape[0])
        elif times.shape != shape[:1]:
            raise _bad(name, f"it holds {shape[0]} masks and {times.size} timestamps_seconds")
        self._times, self._size = times, shape[1:]
        # A mask lasts until the next one would come.
        self._end = times[-1] + (float(np.median(np.diff(times))) if len(times) > 1 else math.inf)
        self._index = -1
        self._mask: Tensor | None = None

    def at(self, seconds: float) -> Tensor:
        if seconds > self._end + END_TOLERANCE_SECONDS:
            raise _too_short(self._name, self._end, seconds)
        index = int(np.abs(self._times - seconds).argmin())
        if self._mask is None or index != self._index:
            self._index, self._mask = index, self._read(index)
        return self._mask

    def _read(self, index: int) -> Tensor:
        length = self._size[0] * self._size[1] * self._dtype.itemsize
        with _archive_readable(self._name):
            # Inside an archive this reads over what lies between, piece by piece.
            self._file.seek(self._rows_begin + index * length)
            data = self._file.read(length)
        if len(data) != length:
            raise _bad(self._name, f"it is cut short: mask {index} of {len(self._times)} is missing")
        return torch.from_numpy(np.frombuffer(data, self._dtype).reshape(self._size) != 0)


def _time_stamps(archive: zipfile.ZipFile, name: str) -> np.ndarray | None:
    if "timestamps_seconds.npy" not in archive.namelist():
        return None
    with _member(archive, "timestamps_seconds", name) as file:
        shape, _, dtype = _header(file, name)
        if len(shape) != 1 or not 1 <= shape[0] <= MAX_MASKS or dtype.kind not in "fiu":
            raise _bad(name, f"its timestamps_seconds are {dtype} {list(shape)}, not one number a mask")
        times = np.frombuffer(file.read(shape[0] * dtype.itemsize), dtype).astype(np.float64)
    if times.shape != shape or not np.isfinite(times).all() or (np.diff(times) < 0).any():
        raise _bad(name, "its timestamps_seconds are not finite and ascending")
    return times


def _member(archive: zipfile.ZipFile, key: str, name: str) -> BinaryIO:
    try:
        return archive.open(f"{key}.npy")  # type: ignore[return-value]
    except (KeyError, NotImplementedError, RuntimeError) as error:
        raise _bad(name, f"no array `{key}` can be read from it") from error


def _header(file: BinaryIO, name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    try:
        version = npy.read_magic(file)
        # Never more than a header that is one: NumPy would read as much as the length says, up to 4 GiB.
        begin = file.read(2 if version == (1, 0) else 4)
        text = file.read(min(int.from_bytes(begin, "little"), MAX_HEADER_BYTES))
        head = io.BytesIO(begin + text)
        shape, fortran, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(head)
    except (ValueError, SyntaxError, TokenError, RecursionError, MemoryError) as error:  # its parser on nonsense
        raise _bad(name, f"its array header is damaged ({str(error)[:200]})") from error
    return shape, fortran, dtype


@contextmanager
def _archive_readable(name: str) -> Iterator[None]:
    try:
        with readable(name, FIELD):
            try:
                yield
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                raise _bad(name, "its archive points to a place before its beginning") from error
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise _bad(name, f"its archive is damaged ({error})") from error


def _bad(name: str, what: str) -> AssetError:
    return AssetError(
        "bad_mask",
        f"the masks {name} cannot be used: {what}",
        "store a mask video, or a npz with `masks` (bool or uint8 [frames, height, width]) and `timestamps_seconds`",
        field=FIELD,
    )


def _too_short(name: str, end: float, seconds: float) -> AssetError:
    return AssetError(
        "mask_too_short",
        f"the masks {name} end at {end:.2f} s, and the video has a picture at {seconds:.2f} s",
        "check that the masks belong to this video, and make them for all of it",
        field=FIELD,
    )
