"""Frames of a video file at the times of latent frames, decoded one by one and no further than needed.

Source of the rule: facebookresearch/sam-audio, `processor.py`, which decodes the whole video with torchcodec and takes
the frames whose presentation times are nearest. The pixels here are torchcodec's, bit by bit; PyAV reads them, because
torchcodec either scans the whole file for time stamps or derives them from the average frame rate, which is wrong for
video of variable rate.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:  # FFmpeg's libraries are loaded where a file is opened
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

T = TypeVar("T")


def latent_times(first: int, count: int, *, hop_length: int, sample_rate: int) -> Tensor:
    """Seconds [count] of the latent frames from `first` on: k * hop_length / sample_rate, as float64.

    The reference computes them in float32, which decides where two video frames are equally near (12.5 frames a
    second: every other latent frame lies midway); so they are rounded to float32 here too.
    """
    return (torch.arange(first, first + count) * hop_length / sample_rate).double()


def pictures(container: InputContainer, stream: VideoStream) -> Iterator[tuple[float, VideoFrame]]:
    """(seconds on the container's clock, frame) from where the container stands, each later than the one before.

    A frame without a time stamp follows its predecessor by the average frame period. Raises PyAV's errors.
    """
    period = 1 / float(stream.average_rate or stream.guessed_rate or 25)
    last = None
    for frame in container.decode(stream):
        if frame.pts is not None and frame.time_base is not None:
            seconds = float(frame.pts * frame.time_base)
        else:
            seconds = 0.0 if last is None else last + period
        if last is None or seconds > last:
            last = seconds
            yield seconds, frame


class Nearest(Generic[T]):
    """Picks the entry nearest in time out of stamped entries: the earlier on a tie, the last one past the end.

    Ask for times in ascending order. Holds two entries at once and reads one past the time asked for, no more.
    """

    def __init__(self, entries: Iterator[tuple[float, T]]) -> None:
        self._entries = entries
        self._current = next(entries, None)
        self._following = next(entries, None)

    @property
    def ended(self) -> bool:
        """Whether the current entry is the last one."""
        return self._following is None

    def at(self, time: float) -> tuple[float, T] | None:
        """The stamp and the entry nearest to `time`; None when there are none at all."""
        while (
            self._current is not None
            and self._following is not None
            and abs(self._following[0] - time) < abs(self._current[0] - time)
        ):
            self._current, self._following = self._following, next(self._entries, None)
        return self._current


def rgb(frame: VideoFrame) -> Tensor:
    """The picture as uint8 [3, H, W], upright: a phone's rotation mark is applied, as torchcodec does."""
    if max(component.bits for component in frame.format.components) > 8:
        frame = _filtered(frame)  # here alone, FFmpeg's scale filter, which torchcodec uses, rounds differently
    pixels = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4
    return torch.from_numpy(np.ascontiguousarray(np.rot90(pixels, turns).transpose(2, 0, 1)))


def _filtered(frame: VideoFrame) -> VideoFrame:
    from av.filter import Graph

    graph = Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    scale = graph.add("scale", "flags=bicubic")
    convert = graph.add("format", "pix_fmts=rgb24")
    sink = graph.add("buffersink")
    source.link_to(scale)
    scale.link_to(convert)
    convert.link_to(sink)
    graph.configure()
    graph.push(frame)
    return graph.vpull()


def read_frames(path: str | Path, size: int, *, hop_length: int, sample_rate: int) -> Tensor:
    """One frame of the video file for each of `size` latent frames, uint8 [size, 3, H, W].

    Time 0 is the container's, as in the reference. Decoding stops at the last frame needed. Raises FileNotFoundError
    and ValueError, naming the file.
    """
    out: Tensor | None = None
    shown: float | None = None
    video = Nearest(_open_pictures(path))
    times = latent_times(0, size, hop_length=hop_length, sample_rate=sample_rate).tolist()
    for index, time in enumerate(times):
        found = video.at(time)
        if found is None:
            raise _no_picture(path)
        seconds, frame = found
        if out is not None and seconds == shown:
            out[index] = out[index - 1]
            continue
        pixels = rgb(frame)
        if out is None:
            out = pixels.new_empty(size, *pixels.shape)
        elif pixels.shape != out.shape[1:]:
            raise ValueError(f"processor: the pictures of {str(path)!r} change their size at {seconds:.2f} s")
        out[index], shown = pixels, seconds
    if out is None:
        raise ValueError(f"processor: a recording has at least one frame, got size {size}")
    return out


def read_all(path: str | Path) -> Tensor:
    """Every frame of a video file, uint8 [F, 3, H, W]. Errors as `read_frames`; the whole video is in memory."""
    frames = [rgb(frame) for _, frame in _open_pictures(path)]
    if not frames:
        raise _no_picture(path)
    return torch.stack(frames)


def _no_picture(path: str | Path) -> ValueError:
    return ValueError(f"processor: {str(path)!r} holds no picture that could be decoded")


def _open_pictures(path: str | Path) -> Iterator[tuple[float, VideoFrame]]:
    import av
    import av.error

    if not Path(path).is_file():
        raise FileNotFoundError(f"processor: no video file at {str(path)!r}")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"processor: {str(path)!r} holds no video")
            stream = container.streams.best("video") or container.streams.video[0]
            assert isinstance(stream, av.VideoStream)
            yield from pictures(container, stream)
    except av.error.FFmpegError as error:
        raise ValueError(f"processor: the video {str(path)!r} cannot be decoded: {error.strerror}") from error
