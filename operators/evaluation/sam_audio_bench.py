"""SAM-Audio-Bench: real recordings with text, span and visual prompts, and no truth.

    <folder>/**/*.parquet                                  the hub's facebook/sam-audio-bench, split "test"
    <folder>/<source_dataset>/<video_id>.mp4               media, fetched by the user from each source; or cut already:
    <folder>/<source_dataset>/<video_id>_<start>_<end>.mp4 (seconds, or milliseconds), <video_id>.<start>_<end>.mp4

Columns: `video_id`, `source_dataset`, `start_offset`, `end_offset` (seconds), `description`, `spans` (list of start and
end in seconds of the clip), `mask_bytes` (an npz with `video_masklet` [F, H, W]), `paper_eval_sets` (list of tags).
Source: the public evaluation code of facebookresearch/sam-audio, which names tables, tags and paths; the table itself
is gated and was not seen here. Unsure, and taken as that code does it: visual settings keep the description beside the
video; masks keep the object and black out the rest.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ..errors import AssetError
from ..media import decode_range
from ..sam_audio.anchors import Anchor
from ..sam_audio.frames import Nearest, latent_times, rgb
from ..sam_audio.vision import mask_videos, resize_frames
from ..video_source import open_video
from .items import Item, SetError, slug

SAMPLE_RATE = 48_000
FRAME_HOP = 1920  # one picture a latent frame
PICTURE = 336  # side, as the released image tower takes it
_COLUMNS = ("video_id", "source_dataset", "start_offset", "end_offset", "description", "spans", "paper_eval_sets")

# Setting -> (tag in paper_eval_sets, prompt beside the description). "instr-pro" is MUSDB18-HQ: see `musdb`.
SETTINGS: dict[str, tuple[str, str]] = {
    "sfx": ("others-50:text-only", ""),
    "speech": ("speech-clean-50:text-only", ""),
    "speaker": ("spk-50:text-only", ""),
    "music": ("music-clean-50:text-only", ""),
    "instr-wild": ("instr-50:text-only", ""),
    "sfx-span": ("others-50:text+span", "spans"),
    "speech-span": ("speech-clean-50:text+span", "spans"),
    "speaker-span": ("spk-50:text+span", "spans"),
    "music-span": ("music-clean-50:text+span", "spans"),
    "instr-wild-span": ("instr-50:text+span", "spans"),
    "sfx-visual": ("others-onscreen-50:visual-only", "video"),
    "speaker-visual": ("spk-onscreen-50:visual-only", "video"),
    "instr-wild-visual": ("instr-onscreen-50:visual-only", "video"),
}


class SamAudioBench:
    """The items of some settings (default: all that the table has), in the table's order; `limit` a setting."""

    def __init__(self, folder: Path, *, settings: Sequence[str] | None = None, limit: int | None = None) -> None:
        unknown = sorted(set(settings or ()) - set(SETTINGS))
        if unknown:
            hint = " (MUSDB18-HQ: use that set)" if unknown[0] == "instr-pro" else ""
            raise SetError(f"unknown setting {unknown[0]!r}{hint}; known are {', '.join(SETTINGS)}")
        self.folder, self.name = folder, "SAM-Audio-Bench"
        self.notes = [
            "reference-free: no truth exists; settings and tags as in facebookresearch/sam-audio's evaluation code",
            "visual settings keep the description and show the object alone, as that code does; the paper calls them "
            "visual-only",
        ]
        self._tables = [pq.ParquetFile(path) for path in sorted(folder.rglob("*.parquet"))]
        if not self._tables:
            raise SetError(f"{folder} holds no Parquet table: download facebook/sam-audio-bench into it")
        for table in self._tables:
            missing = [c for c in _COLUMNS if c not in table.schema_arrow.names]
            if missing:
                raise SetError(f"{folder}: column {missing[0]} is missing from a table; it is not SAM-Audio-Bench")
        # Tags first: masks are megabytes and are read item by item.
        tags = [t.read(columns=["paper_eval_sets"]).column(0).to_pylist() for t in self._tables]
        self._rows: list[tuple[str, int, int]] = []
        for setting in settings or SETTINGS:
            of_setting = (
                (setting, table, row)
                for table, of_table in enumerate(tags)
                for row, found in enumerate(of_table)
                if SETTINGS[setting][0] in (found or [])
            )
            self._rows += islice(of_setting, limit)
        if not self._rows:
            raise SetError(f"{folder}: column paper_eval_sets: no row is of {', '.join(settings or SETTINGS)}")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Item:
        setting, table, number = self._rows[index]
        prompt = SETTINGS[setting][1]
        row = _row(self._tables[table], number, with_mask=prompt == "video")
        start, stop = float(row["start_offset"]), float(row["end_offset"])
        path, cut = self._media(row)
        first, last = (0.0, stop - start) if cut else (start, stop)
        with path.open("rb") as file:
            wave = decode_range(
                file,
                str(path),
                start=round(first * SAMPLE_RATE),
                stop=round(last * SAMPLE_RATE),
                sample_rate=SAMPLE_RATE,
                # Clips are cut at key frames and end a little early: what is there is what is heard.
                expected_seconds=first,
            ).mean(0)
        if not len(wave):
            raise AssetError("truncated", f"{path} has no sound at {first:.2f} s", "fetch the recording again")
        return Item(
            item_id=f"{setting}/{slug(row['source_dataset'], row['video_id'], f'{start:.2f}', number)}",
            setting=setting,
            mixture=wave,
            sample_rate=SAMPLE_RATE,
            description=str(row["description"] or ""),
            kind="speech" if setting in ("speech", "speech-span") else "",
            anchors=_anchors(row["spans"]) if prompt == "spans" else (),
            masked_video=_masked(path, row, first, len(wave)) if prompt == "video" else None,
        )

    def _media(self, row: Mapping[str, Any]) -> tuple[Path, bool]:
        """The recording, and whether it is cut to the item's range already."""
        name, source = str(row["video_id"]), str(row["source_dataset"])
        if any(part in ("", ".", "..") or "/" in part or "\\" in part for part in (name, source)):
            raise SetError(f"{self.folder}: columns video_id, source_dataset: {name!r} in {source!r} is no file name")
        folder = self.folder / source
        start, stop = float(row["start_offset"]), float(row["end_offset"])
        ms = int(start * 1000), int(stop * 1000)
        whole = folder / f"{name}.mp4"
        if whole.is_file():
            return whole, False
        for cut in (
            f"{name}_{ms[0]}_{ms[1]}.mp4",
            f"{name}_{int(start)}_{int(stop)}.mp4",
            f"{name}.{ms[0]:08d}_{ms[1]:08d}.mp4",
        ):
            if (folder / cut).is_file():
                return folder / cut, True
        raise AssetError("not_found", f"{whole} is missing, and so are its cuts", "fetch it from its source data set")


def _row(table: pq.ParquetFile, number: int, *, with_mask: bool) -> dict[str, Any]:
    columns = [*_COLUMNS, *(["mask_bytes"] if with_mask else [])]
    for group in range(table.num_row_groups):
        rows = table.metadata.row_group(group).num_rows
        if number < rows:
            found: dict[str, Any] = table.read_row_group(group, columns=columns).slice(number, 1).to_pylist()[0]
            return found
        number -= rows
    raise IndexError(number)


def _anchors(spans: Any) -> tuple[Anchor, ...]:
    return tuple(("+", float(span[0]), float(span[1])) for span in spans or ())


def _masked(path: Path, row: Mapping[str, Any], start: float, samples: int) -> Tensor:
    """The object alone on black, one picture a latent frame: uint8 [T, 3, side, side]."""
    if row.get("mask_bytes") is None:
        raise AssetError("bad_mask", f"{path}: its row has no mask_bytes", "leave the visual settings out")
    with np.load(io.BytesIO(row["mask_bytes"]), allow_pickle=False) as archive:
        masks = torch.from_numpy(np.ascontiguousarray(archive["video_masklet"]))
    if masks.ndim != 3 or not len(masks):
        raise AssetError("bad_mask", f"{path}: video_masklet is {list(masks.shape)}, not [F, H, W]", "fetch it again")
    count = -(-samples // FRAME_HOP)
    times = latent_times(0, count, hop_length=FRAME_HOP, sample_rate=SAMPLE_RATE).tolist()
    pictures: list[Tensor] = []
    with path.open("rb") as file, open_video(file, str(path)) as source:
        frames = Nearest(source.pictures_from(source.begins + start))
        for index, time in enumerate(times):
            found = frames.at(source.begins + start + time)
            if found is None:
                raise AssetError("corrupt", f"{path}: no picture in it can be decoded", "fetch the recording again")
            # The masks span the clip, whatever its number of pictures.
            mask = masks[round(index * (len(masks) - 1) / max(count - 1, 1))][None, None]
            picture = rgb(found[1])[None]
            mask = torch.nn.functional.interpolate(mask.float(), size=picture.shape[-2:])
            (shown,) = mask_videos([picture], [mask], masked="kept")
            pictures.append(resize_frames(shown, PICTURE, "BICUBIC"))
    return torch.cat(pictures)
