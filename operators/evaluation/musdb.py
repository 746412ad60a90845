"""MUSDB18-HQ: songs with their four stems, as folders of WAV files.

    <folder>/test/<song>/{mixture,vocals,drums,bass,other}.wav      44.1 kHz, stereo

SAM-Audio's setting "instr-pro" is the test songs cut by a table of its own (facebook/sam-audio-musdb18hq-test on the
hub; columns `id`, `start_time`, `end_time`, `description`): give it as `segments`. Signals are averaged to mono and
resampled to 48 kHz, as there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from ..media import decode_range, probe
from .items import Item, SetError, slug

STEMS = ("vocals", "drums", "bass", "other")
# SAM-Audio's descriptions are lower-case noun phrases; "other" names no sound.
PROMPTS = {"vocals": "vocals", "drums": "drums", "bass": "bass"}
SAMPLE_RATE = 48_000
EXCERPT_SECONDS = 10.0
_HOP_SECONDS = 1.0


@dataclass(frozen=True)
class Cut:
    """What one item is cut from: `stop_seconds` None is the song's end; both None: found from the stem."""

    song: Path
    stem: str
    description: str
    start_seconds: float | None = None
    stop_seconds: float | None = None


class Musdb:
    """Vocals, drums and bass of every song of a split.

    segments: a Parquet table as above. Without one, each item is the `excerpt_seconds` in which its stem is loudest
    (so that no item asks for a stem that rests); 0 takes whole songs. settings: some of the descriptions; `limit` items
    of each.
    """

    def __init__(
        self,
        folder: Path,
        *,
        split: str = "test",
        segments: Path | None = None,
        excerpt_seconds: float = EXCERPT_SECONDS,
        settings: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> None:
        root = folder / split
        if not root.is_dir():
            raise SetError(f"{root} is no folder: MUSDB18-HQ has one folder a song in {split}/; give the one above it")
        self.name = f"MUSDB18-HQ {split}"
        self.excerpt_seconds = excerpt_seconds
        self.notes = ["mono, resampled to 48 kHz; SI-SDR and SDR against the mono stem, not museval's tables"]
        if segments is not None:
            self.cuts = _table_cuts(root, segments)
            self.notes.append(f"segments of {segments.name}")
        else:
            songs = sorted(p for p in root.iterdir() if p.is_dir())
            self.cuts = [Cut(song, stem, text) for stem, text in PROMPTS.items() for song in songs]
            if excerpt_seconds:
                self.notes.append(f"of each song the {excerpt_seconds:g} s in which the stem is loudest")
        wanted = list(dict.fromkeys(cut.description for cut in self.cuts)) if settings is None else settings
        by_setting = [[cut for cut in self.cuts if cut.description == setting][:limit] for setting in wanted]
        self.cuts = [cut for cuts in by_setting for cut in cuts]
        if not self.cuts:
            raise SetError(f"{root} holds no songs, or none with {', '.join(wanted) or 'their stems'}")

    def __len__(self) -> int:
        return len(self.cuts)

    def __getitem__(self, index: int) -> Item:
        cut = self.cuts[index]
        start, stop = cut.start_seconds, cut.stop_seconds
        target = None
        if start is None:
            start = 0.0
            if self.excerpt_seconds:
                whole = _read(cut.song / f"{cut.stem}.wav", 0.0, None)
                start = loudest(whole, self.excerpt_seconds)
                stop = start + self.excerpt_seconds
        mixture = _read(cut.song / "mixture.wav", start, stop)
        if cut.stem in STEMS:
            target = _read(cut.song / f"{cut.stem}.wav", start, stop)[: len(mixture)]
        return Item(
            item_id=f"{slug(cut.description)}/{slug(cut.song.name, f'{start:.2f}')}",
            setting=cut.description,
            mixture=mixture,
            sample_rate=SAMPLE_RATE,
            description=cut.description,
            target=target,
            other=None if target is None else mixture - target,
        )


def loudest(wave: np.ndarray, seconds: float) -> float:
    """Start (whole seconds) of the stretch of `seconds` with the most energy; 0 for a shorter wave."""
    hop = round(_HOP_SECONDS * SAMPLE_RATE)
    energy = np.concatenate([[0.0], np.cumsum(np.square(wave[: len(wave) // hop * hop], dtype=np.float64))])[::hop]
    length = round(seconds / _HOP_SECONDS)
    if len(energy) <= length:
        return 0.0
    return float(np.argmax(energy[length:] - energy[: len(energy) - length]) * _HOP_SECONDS)


def _table_cuts(root: Path, segments: Path) -> list[Cut]:
    rows = pq.read_table(segments).to_pylist()
    cuts = []
    for number, row in enumerate(rows):
        missing = {"id", "start_time", "end_time", "description"} - set(row)
        if missing:
            raise SetError(f"{segments}: column {sorted(missing)[0]} is missing; see the head of this module")
        song = root / str(row["id"])
        # The name comes from a table: it may not lead out of the folder.
        if song.resolve().parent != root.resolve() or not song.is_dir():
            raise SetError(f"{segments}: row {number}: column id: {row['id']!r} is no song in {root}")
        description = str(row["description"])
        # The public captions name a stem ("bass", "drums", "vocals"); others have no truth.
        stem = description if description in STEMS else ""
        cuts.append(Cut(song, stem, description, float(row["start_time"]), float(row["end_time"])))
    return cuts


def _read(path: Path, start: float, stop: float | None) -> np.ndarray:
    """Mono [samples] float32 at 48 kHz of a range in seconds."""
    if not path.is_file():
        raise SetError(f"{path} is missing: every song has mixture.wav and {', '.join(s + '.wav' for s in STEMS)}")
    first, last = round(start * SAMPLE_RATE), None if stop is None else round(stop * SAMPLE_RATE)
    with path.open("rb") as file:
        seconds = probe(file, path.name).duration_seconds
        if seconds is not None and last is not None:
            last = min(last, round(seconds * SAMPLE_RATE))
        file.seek(0)
        wave = decode_range(file, str(path), start=first, stop=last, sample_rate=SAMPLE_RATE, expected_seconds=None)
    return wave.mean(0)
