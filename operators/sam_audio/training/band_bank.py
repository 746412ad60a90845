"""Band powers of the training recordings: mixtures are then sums of them, without an FFT in the loop.

Those of a recording are made when it is first drawn, and kept beside the audio (256 bytes a frame).
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ..band_codec import CENTRE_DB, FLOOR_DB, SCALE_DB, BandCodec
from .engine import SAMPLE_RATE, DataEngine, usable

GROUPED_BY = {"speech": "speaker", "music": "package", "sfx": "label"}
# Much of one recording, or of one speaker, teaches little more: variety is worth the time.
RECORDING_SECONDS, GROUP_SECONDS = 15.0, 420.0


@dataclass(frozen=True)
class Piece:
    """A stretch of one recording: samples of the pack, and where its frames lie in the bank."""

    kind: str
    group: str
    start: int
    samples: int
    first_frame: int
    frames: int
    index: int


def choose(rows: list[dict[str, Any]], part: str, hop_length: int) -> list[Piece]:
    """Stretches of a part's usable recordings (train, validation or eval; see DataEngine)."""
    used: dict[tuple[str, str], float] = defaultdict(float)
    pieces: list[Piece] = []
    at = 0
    for row in sorted(rows, key=lambda row: zlib.crc32(row["path"].encode())):
        kind, group = row["kind"], row[GROUPED_BY[row["kind"]]] or ""
        if not usable(row, "eval" if part == "eval" else "train"):
            continue
        if (part != "eval" and DataEngine.training_part(row) != part) or used[kind, group] >= GROUP_SECONDS:
            continue
        samples = min(row["length"], int(RECORDING_SECONDS * SAMPLE_RATE))
        used[kind, group] += samples / SAMPLE_RATE
        frames = -(-samples // hop_length)
        # From the middle: recordings begin with silence and end with fades.
        start = row["start"] + (row["length"] - samples) // 2
        pieces.append(Piece(kind, group, start, samples, at, frames, len(pieces)))
        at += frames
    return pieces


class BandBank:
    """Band powers of the pieces of one part of `data_dir` (see fetch.py), kept in its folder `bands`."""

    def __init__(self, data_dir: Path, codec: BandCodec, *, part: str = "train") -> None:
        self.pieces = choose(pq.read_table(data_dir / "index.parquet").to_pylist(), part, codec.hop_length)
        if not self.pieces:
            raise ValueError(
                f"{data_dir} holds no recording of the {part} part: fetch the training audio into it first"
            )
        self._codec = codec
        self._audio = np.memmap(data_dir / "audio.i16", dtype=np.int16, mode="r")
        # Other recordings or another codec go into other files.
        facts = json.dumps([[(p.start, p.samples) for p in self.pieces], vars(codec.config)])
        name = f"{part}-{hashlib.sha256(facts.encode()).hexdigest()[:8]}"
        folder = data_dir / "bands"
        folder.mkdir(exist_ok=True)
        frames = self.pieces[-1].first_frame + self.pieces[-1].frames
        self._latents = _mapped(folder / f"{name}.f16", np.float16, (frames, codec.channels))
        self._made = _mapped(folder / f"{name}.made", np.uint8, (len(self.pieces),))

    def power(self, piece: Piece, first: int, frames: int) -> Tensor:
        """Band powers [up to `frames`, C] of `piece` from its frame `first`; what lay under the codec's floor is 0."""
        end = piece.first_frame + piece.frames
        if not self._made[piece.index]:
            wave = self._audio[piece.start : piece.start + piece.samples].astype(np.float32) / 32768
            codec = self._codec
            latents = codec.latents_of_power(codec.band_power(codec.stft(torch.from_numpy(wave))))
            self._latents[piece.first_frame : end] = latents.numpy()
            self._made[piece.index] = 1
        start = piece.first_frame + first
        db = torch.from_numpy(self._latents[start : min(start + frames, end)].astype(np.float32))
        db = db * SCALE_DB + CENTRE_DB
        return torch.where(db > FLOOR_DB + 0.5, 10 ** (db / 10), 0.0)


def _mapped(path: Path, kind: type[np.generic], shape: tuple[int, ...]) -> np.ndarray:
    """A file as a writable array; zeros when it is new."""
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    if not path.exists() or path.stat().st_size != size:
        with path.open("wb") as stream:
            stream.truncate(size)
    return np.memmap(path, dtype=kind, mode="r+", shape=shape)
