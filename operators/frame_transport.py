"""Frames on their way from the machines that decode to the machines with a GPU: lossless, and small enough to travel.

A minute of 336 x 336 frames at 25 Hz is 508 MB raw. As a lossless H.264 stream it is about 15 MB where much of the
picture stands still, as in most edited or masked video, and 200 to 300 MB under film grain and sensor noise, which no
lossless coding can shrink. The red, green and blue planes travel as the three planes of a 4:4:4 picture, so that there
is no colour conversion at either end.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import av
import av.error
import torch
from av.video.stream import VideoStream
from torch import Tensor

# Lossless, the slower presets take two to six times as long, at both ends, and win 10 % at best.
_ENCODER = {"qp": "0", "preset": "ultrafast"}
_PLANES = "yuv444p"
_RATE = 25  # of no meaning to the frames: they come back in order, one by one


def pack(frames: Iterable[Tensor]) -> bytes:
    """Groups of frames, uint8 [n, 3, H, W] each, as one block of bytes; b"" when there is no frame.

    Takes one group at a time. Bit-exact: `unpack` gives back every value. Raises ValueError for frames of another
    type, or of another size than the first.
    """
    out = io.BytesIO()
    stream: VideoStream | None = None
    # Without the flag every file gets a random id: equal frames are to be equal bytes.
    with av.open(out, "w", format="matroska", container_options={"fflags": "+bitexact"}) as container:
        count = 0
        for group in frames:
            if group.dtype != torch.uint8 or group.dim() != 4 or group.shape[1] != 3:
                raise ValueError(f"frames must be uint8 [n, 3, height, width], got {group.dtype} {list(group.shape)}")
            if not len(group):
                continue
            height, width = group.shape[-2:]
            if stream is None:
                stream = container.add_stream("libx264", rate=_RATE, options=dict(_ENCODER))
                stream.pix_fmt, stream.width, stream.height = _PLANES, width, height
                stream.codec_context.thread_count = 1  # a worker owns one core
            elif (stream.height, stream.width) != (height, width):
                raise ValueError(f"frames of {width} x {height} follow frames of {stream.width} x {stream.height}")
            for planes in group.contiguous().cpu().numpy():
                frame = av.VideoFrame.from_ndarray(planes, format=_PLANES)
                frame.pts = count
                count += 1
                container.mux(stream.encode(frame))
        if stream is None:
            return b""
        container.mux(stream.encode(None))
    return out.getvalue()


def unpack(data: bytes, group: int = 300, *, threads: int = 1) -> Iterator[Tensor]:
    """The frames of `pack`, uint8 [<= group, 3, H, W] on the CPU, in order; all groups but the last are full.

    `threads` decode at once. Raises ValueError when `data` is not what `pack` made.
    """
    if group < 1:
        raise ValueError(f"group must be at least 1, got {group}")
    if not data:
        return
    try:
        with av.open(io.BytesIO(data), "r", format="matroska") as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = threads
            held: list[Tensor] = []
            for frame in container.decode(stream):
                if frame.format.name != _PLANES:
                    raise ValueError(f"the packed frames are {frame.format.name}, not {_PLANES}")
                held.append(torch.from_numpy(frame.to_ndarray()))
                if len(held) == group:
                    yield torch.stack(held)
                    held.clear()
            if held:
                yield torch.stack(held)
    except (av.error.FFmpegError, IndexError) as error:
        raise ValueError(f"{len(data):,} bytes hold no packed frames: {error}") from error


@dataclass(frozen=True, eq=False)
class PackedFrames:
    """The frames of `pack`, unpacked anew by every iteration, in groups."""

    data: bytes

    def __iter__(self) -> Iterator[Tensor]:
        return unpack(self.data)
