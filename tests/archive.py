"""A small archive of real recordings, good and broken, and the settings to run over it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile as sf

MEDIA = Path(__file__).parents[1] / "jobs" / "demo_media"
RATE = 48_000


def mixture(seconds: float, offset: float = 0.0) -> np.ndarray:
    """Speech over music, [samples, 2] float32, from the demo's recordings."""
    start, n = int(offset * RATE), int(seconds * RATE)
    speech, music = (sf.read(MEDIA / f"{name}.flac", start=start, frames=n, dtype="float32")[0] for name in NAMES)
    return speech + music


NAMES = ("speech", "music")


def write_good(folder: Path) -> list[str]:
    """Three good recordings: stereo WAV of 9 s, mono FLAC of 26 s at 44.1 kHz, MP4 of 10 s with video."""
    folder.mkdir(parents=True, exist_ok=True)
    sf.write(folder / "short.wav", mixture(9), RATE, subtype="PCM_16")
    sf.write(folder / "long.flac", mixture(26).mean(1), 44_100)
    (folder / "film.mp4").write_bytes((MEDIA / "demo.mp4").read_bytes())
    return ["film.mp4", "long.flac", "short.wav"]


def write_broken(folder: Path) -> dict[str, str]:
    """Broken files by name, with the cause that each must be given."""
    whole = (folder / "short.wav").read_bytes()
    (folder / "cut.wav").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.mp3").write_bytes(b"")
    (folder / "text.wav").write_text("a shopping list\n" * 99)
    nan = mixture(3)
    nan[70_000] = np.nan
    sf.write(folder / "nan.wav", nan, RATE, subtype="FLOAT")
    return {
        "cut.wav": "truncated",
        "empty.mp3": "empty_file",
        "text.wav": "mislabelled",
        "nan.wav": "nan_samples",
        "missing.flac": "not_found",
    }


def write_manifest(folder: Path | str, names: list[str], path: Path, **columns: list) -> Path:
    """A manifest of nothing but ids and URIs: everything else has to be probed."""
    table = {"asset_id": names, "uri": [f"{folder}/{name}" for name in names], **columns}
    pq.write_table(pa.table(table), path)
    return path


def read_stems(row: dict, fs_open) -> tuple[np.ndarray, np.ndarray]:
    """Target and residual of a stems row, [samples, channels] float32; `fs_open(url, "rb")` opens them."""
    stems = []
    for column in ("target_uri", "residual_uri"):
        with fs_open(row[column], "rb") as file:
            stems.append(sf.read(file, dtype="float32", always_2d=True)[0])
    return stems[0], stems[1]
