"""The pictures that belong to a range of latent frames: nearest in time, masked, resized for the vision tower.

Sound, video and mask meet on the container's clock: latent frame 0 begins with the first sample of the sound, as
`operators.media.decode_range` counts, so a video that begins earlier or later than its sound stays in step with it.
Of a long file only the range asked for is read and decoded. Memory is that of a few pictures and one group of results.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import BinaryIO, Literal

import av.error
import torch
from av.audio.stream import AudioStream
from torch import Tensor

from operators.errors import AssetError
from operators.masks import open_masks
from operators.sam_audio.frames import Nearest, latent_times, rgb
from operators.sam_audio.vision import mask_videos, resize_frames
from operators.video_source import VideoSource, open_video, readable

GROUP = 64


def masked_frames(
    video: BinaryIO,
    video_name: str,
    mask: BinaryIO | None,
    mask_name: str,
    *,
    start: int,
    end: int,
    hop_length: int,
    sample_rate: int,
    image_size: int,
    interpolation: str,
    masked: Literal["black", "kept"] = "black",
) -> Iterator[Tensor]:
    """The masked picture of each latent frame [start, end), as uint8 [<= 64, 3, image_size, image_size] groups.

    `video` and `mask` are seekable binary files; without a mask the pictures come as they are. Latent frame k shows the
    picture nearest to k * hop_length / sample_rate seconds after the sound begins (the earlier on a tie; past the end
    the last picture stays), and the mask nearest to that picture's own time: see `operators.masks.open_masks` for the
    files a mask may come in. `masked` is `vision.mask_videos`'s. Masks apply at the picture's own size; the result is
    then resized as `VisionEncoder.preprocess` does (`interpolation` is `VisionEncoderConfig.interpolation_mode`), which
    finds nothing left to do. Ranges join: each equals that part of a larger range.

    Raises AssetError: the causes of `open_video` about `uri`, those of `open_masks` about `mask_uri`.
    """
    with open_video(video, video_name) as source:
        origin = _sound_begins(source)
        times = (latent_times(start, end - start, hop_length=hop_length, sample_rate=sample_rate) + origin).tolist()
        with nullcontext() if mask is None else open_masks(mask, mask_name, source.seconds) as masks:
            frames = Nearest(source.pictures_from(times[0] if times else 0.0))
            group: list[Tensor] = []
            shown, result = None, None
            for time in times:
                found = frames.at(time)
                if found is None:
                    raise AssetError(
                        "corrupt",
                        f"{video_name} has a video stream, but no picture in it can be decoded",
                        "restore the file from its master, or clear mask_uri",
                    )
                seconds, frame = found
                if result is None or seconds != shown:
                    result, shown = rgb(frame)[None], seconds
                    if masks is not None:
                        mask_now = _stretched(masks.at(seconds - source.begins), result.shape[-2], result.shape[-1])
                        (result,) = mask_videos([result], [mask_now], masked=masked)
                    # One picture at a time: in float32, which resizing needs, a group of large ones fills a machine.
                    result = resize_frames(result, image_size, interpolation)
                group.append(result)
                if len(group) == GROUP:
                    yield torch.cat(group)
                    group.clear()
            if group:
                yield torch.cat(group)


def _stretched(mask: Tensor, height: int, width: int) -> Tensor:
    """A mask [h, w] as [1, 1, height, width], each pixel taking its nearest."""
    rows = torch.arange(height) * mask.shape[0] // height
    columns = torch.arange(width) * mask.shape[1] // width
    # Columns first: there are fewer rows to stretch while the mask is small, and whole rows are then copied at once.
    return mask.index_select(1, columns).index_select(0, rows)[None, None]


def _sound_begins(source: VideoSource) -> float:
    """Seconds on the container's clock of the first decoded sample; without sound, of the first of all streams."""
    stream = source.container.streams.best("audio")
    if not isinstance(stream, AudioStream) or stream.codec_context is None:
        return source.clock_begins
    with readable(source.name, source.field):
        for packet in source.container.demux(stream):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                continue
            for frame in frames:
                if frame.samples and frame.pts is not None and frame.time_base is not None:
                    return float(frame.pts * frame.time_base)
    return source.clock_begins
