"""Masklets in and out: pictures from a video file, masks into a npz that `operators.masks` reads."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib import format as npy
from torch import Tensor

from operators.errors import AssetError
from operators.sam_audio.frames import rgb
from operators.video import open_video

_COPY_BYTES = 1 << 20
# Time stamps of a steady video jitter by the rounding of its clock.
_SLACK_SECONDS = 2e-3


def video_pictures(file: BinaryIO, name: str, *, max_rate: float) -> Iterator[tuple[float, Tensor]]:
    """(seconds after the first picture, uint8 [3, H, W]) of a video file (seekable, binary), upright, one at a time.

    At most `max_rate` a second: of a faster video, the first picture in each such interval. Raises AssetError as
    `open_video` does, and `corrupt` when no picture can be decoded.
    """
    with open_video(file, name) as source:
        due = 0.0
        for shown, frame in source.pictures_from(source.begins):
            seconds = max(0.0, shown - source.begins)
            if seconds >= due - _SLACK_SECONDS:
                due = (math.floor((seconds + _SLACK_SECONDS) * max_rate) + 1) / max_rate
                yield seconds, rgb(frame)
        if due == 0.0:
            raise AssetError(
                "corrupt",
                f"{name} has a video stream, but no picture in it can be decoded",
                "restore the file from its master, or re-export it",
            )


class MaskWriter:
    """Masks one by one, bool [h, w], of one size (later ones of another are stretched to it)."""

    def __init__(self, rows: BinaryIO) -> None:
        self._rows = rows
        self._pack = zlib.compressobj(1)
        self.size: tuple[int, int] | None = None
        self.seconds: list[float] = []
        self.any_set = False

    def add(self, seconds: float, mask: Tensor) -> None:
        if self.size is None:
            self.size = (mask.shape[0], mask.shape[1])
        if tuple(mask.shape) != self.size:
            mask = F.interpolate(mask[None, None].to(torch.uint8), size=self.size, mode="nearest")[0, 0]
        self.any_set = self.any_set or bool(mask.any())
        self.seconds.append(seconds)
        self._rows.write(self._pack.compress(mask.to(torch.uint8).numpy().tobytes()))

    def flush(self) -> None:
        self._rows.write(self._pack.flush())


@contextmanager
def write_masks(path: Path) -> Iterator[MaskWriter]:
    """Write `path`, a npz of `masks` uint8 [F, h, w] (1 = set) and `timestamps_seconds` float64 [F], in bounded memory.

    The file appears when the block ends without an error and at least one mask was added.
    """
    # An array's header says how many rows follow, which nobody knows before the video ends: rows wait in a packed file.
    waiting = path.with_name(f".{path.name}.rows")
    unfinished = path.with_name(f".{path.name}.part")
    try:
        with waiting.open("wb") as rows:
            writer = MaskWriter(rows)
            yield writer
            writer.flush()
        if writer.size is None:
            raise ValueError("no mask was added")
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as archive:
            with archive.open("timestamps_seconds.npy", "w") as out:
                npy.write_array(out, np.asarray(writer.seconds, np.float64))
            with archive.open("masks.npy", "w", force_zip64=True) as out, waiting.open("rb") as rows:
                header = {"descr": "|u1", "fortran_order": False, "shape": (len(writer.seconds), *writer.size)}
                npy.write_array_header_1_0(out, header)
                unpack = zlib.decompressobj()
                while piece := rows.read(_COPY_BYTES):
                    while piece:
                        out.write(unpack.decompress(piece, _COPY_BYTES))
                        piece = unpack.unconsumed_tail
                out.write(unpack.flush())
        unfinished.replace(path)
    finally:
        waiting.unlink(missing_ok=True)
        unfinished.unlink(missing_ok=True)
