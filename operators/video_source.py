"""Opening a video of unknown origin, and reading its pictures from any time on.

Whatever is wrong with the file becomes an AssetError about the manifest field it was named in.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import BinaryIO

import av
import av.error
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from operators.container import DEMUXERS
from operators.errors import AssetError
from operators.headers import mp4_bytes_missing, other_kind
from operators.sam_audio.frames import pictures

# How far before the time asked for to look for a picture to begin with, when an index is coarse or absent.
_STEPS_BACK_SECONDS = (0.0, 2.0, 20.0)


@dataclass(frozen=True)
class VideoSource:
    """An open container and the video stream that is read from it. `field` is the manifest's, for messages."""

    name: str
    field: str
    container: InputContainer
    stream: VideoStream

    @cached_property
    def begins(self) -> float:
        """Seconds on the container's clock at which the first picture is shown. Raises as `pictures_from`.

        Decoded, not read from the header: AVI states the time of the first packet, which is not shown first.
        """
        with readable(self.name, self.field):
            self._rewind()
            first = next(pictures(self.container, self.stream), None)
        return 0.0 if first is None else first[0]

    @property
    def seconds(self) -> float:
        """How long the pictures last, as the file states it; 0 when it does not."""
        if self.stream.duration and self.stream.time_base:
            return float(self.stream.duration * self.stream.time_base)
        tag = next((v for k, v in self.stream.metadata.items() if k.upper().startswith("DURATION")), "")
        if match := re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", tag.strip()):  # Matroska: when the last one ends
            hours, minutes, seconds = match.groups()
            return int(hours) * 3600 + int(minutes) * 60 + float(seconds) - self.begins
        whole = self.container.duration
        return whole / av.time_base + self.clock_begins - self.begins if whole else 0.0

    @property
    def clock_begins(self) -> float:
        return (self.container.start_time or 0) / av.time_base

    def pictures_from(self, seconds: float) -> Iterator[tuple[float, VideoFrame]]:
        """(time, picture) in order, beginning with one shown at or before `seconds` where there is one.

        Raises AssetError `corrupt`, `unreadable`.
        """
        with readable(self.name, self.field):
            for back in _STEPS_BACK_SECONDS:
                if seconds - back <= self.begins or not self._seek(seconds - back):
                    break
                found = pictures(self.container, self.stream)
                first = next(found, None)
                if first is not None and first[0] <= seconds:
                    yield first
                    yield from found
                    return
            self._rewind()
            yield from pictures(self.container, self.stream)

    def _rewind(self) -> None:
        self.container.seek(min(0, self.container.start_time or 0))

    def _seek(self, seconds: float) -> bool:
        """To the last key frame before `seconds`; False when the file's index knows none."""
        assert self.stream.time_base is not None
        try:
            self.container.seek(math.floor(seconds / self.stream.time_base), stream=self.stream)
        except av.error.FFmpegError:
            return False
        return True


@contextmanager
def readable(name: str, field: str) -> Iterator[None]:
    """Turn what FFmpeg and the storage raise into AssetError `corrupt` or `unreadable` about `name`."""
    try:
        yield
    except av.error.FFmpegError as error:
        raise AssetError(
            "corrupt",
            f"the pictures of {name} cannot be read: {error.strerror}",
            "restore the file from its master or re-export it",
            field=field,
        ) from error
    except OSError as error:
        raise AssetError(
            "unreadable",
            f"{name} could not be read: {type(error).__name__}: {error}",
            "check that the file exists, that the job may read it, and that the storage answers",
            field=field,
        ) from error


@contextmanager
def open_video(file: BinaryIO, name: str, *, field: str = "uri") -> Iterator[VideoSource]:
    """Open `file` (seekable, binary) at its best video stream; cover art does not count.

    Raises AssetError about `field`: `empty_file`, `mislabelled`, `truncated`, `corrupt`, `no_video`, `unreadable`.
    """
    with readable(name, field):
        container = _open(file, name, field)
    with container:
        yield VideoSource(name, field, container, _moving_pictures(container, name, field))


def _open(file: BinaryIO, name: str, field: str) -> InputContainer:
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(4096)
    if size == 0:
        raise AssetError("empty_file", f"{name} has 0 bytes", "upload it again, or clear the field", field=field)
    if (what := other_kind(head)) is not None:
        suffix = PurePosixPath(name).suffix or "a video"
        message = f"{name} is named {suffix} but holds {what}"
        raise AssetError("mislabelled", message, "replace it by the video, or clear the field", field=field)
    file.seek(0)
    options = {"format_whitelist": DEMUXERS, "protocol_whitelist": ""}
    try:
        return av.open(file, "r", options=options, metadata_errors="replace")
    except av.error.FFmpegError:
        if head[4:8] == b"ftyp" and (missing := mp4_bytes_missing(file, size)) > 0:
            message = f"{name} is cut short: {missing:,} bytes of its MP4 boxes are missing"
            raise AssetError("truncated", message, "copy or download the file again", field=field) from None
        raise


def _moving_pictures(container: InputContainer, name: str, field: str) -> VideoStream:
    still = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
    best = container.streams.best("video")
    candidates = ([best] if isinstance(best, VideoStream) else []) + list(container.streams.video)
    stream = next((s for s in candidates if not s.disposition & still and s.codec_context is not None), None)
    if stream is None:
        raise AssetError(
            "no_video",
            f"{name} holds no moving pictures that can be decoded here",
            "clear mask_uri to separate by the other prompts, or point to the file with the pictures",
            field=field,
        )
    stream.codec_context.thread_count = 1  # a worker owns one core
    return stream
