"""Small evaluation sets on disk, laid out as the real ones are, from the demo's recordings."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile as sf

MEDIA = Path(__file__).parents[1] / "jobs" / "demo_media"
RATE = 48_000


def recording(name: str, seconds: float, offset: float = 0.0) -> np.ndarray:
    """[samples, 2] float32 of a demo recording (speech, music or dog)."""
    start, frames = int(offset * RATE), int(seconds * RATE)
    return sf.read(MEDIA / f"{name}.flac", start=start, frames=frames, dtype="float32")[0]


def write_musdb(folder: Path, seconds: float = 14.0, rate: int = 44_100) -> Path:
    """Two songs of MUSDB18-HQ's layout; their "vocals" sound only from the fifth second on."""
    for song in ("A Band - First", "A Band - Second"):
        path = folder / "test" / song
        path.mkdir(parents=True)
        n = int(seconds * rate)
        t = np.arange(n) / rate
        vocals = np.resize(recording("speech", seconds), (n, 2)) * (t > 5)[:, None]
        drums = np.resize(recording("dog", seconds), (n, 2))
        bass = np.repeat(0.1 * np.sin(2 * np.pi * 55 * t)[:, None], 2, axis=1)
        other = 0.5 * np.resize(recording("music", seconds), (n, 2))
        stems = {"vocals": vocals, "drums": drums, "bass": bass, "other": other}
        for name, wave in [*stems.items(), ("mixture", sum(stems.values()))]:
            sf.write(path / f"{name}.wav", wave, rate, subtype="FLOAT")
    return folder


def write_bench(folder: Path) -> Path:
    """SAM-Audio-Bench's layout: one table, a whole recording and one that is cut already, spans and a mask."""
    (folder / "data").mkdir(parents=True)
    (folder / "kino").mkdir()
    (folder / "street").mkdir()
    (folder / "kino" / "film one.mp4").write_bytes((MEDIA / "demo.mp4").read_bytes())
    (folder / "street" / "clip_2000_6000.mp4").write_bytes(_shortened(MEDIA / "demo.mp4", 4.0))
    with av.open(str(MEDIA / "demo.mp4")) as container:
        video = container.streams.video[0]
        height, width = video.height, video.width
    masks = np.zeros((30, height, width), np.uint8)
    masks[:, :, : width // 2] = 1
    packed = io.BytesIO()
    np.savez_compressed(packed, video_masklet=masks)
    rows = [
        {
            "video_id": "film one", "source_dataset": "kino", "start_offset": 1.0, "end_offset": 5.0,
            "description": "man speaking", "spans": [[0.5, 2.0], [3.0, 3.5]], "mask_bytes": packed.getvalue(),
            "paper_eval_sets": [
                "speech-clean-50:text-only", "speech-clean-50:text+span", "spk-onscreen-50:visual-only"
            ],
        },
        {
            "video_id": "clip", "source_dataset": "street", "start_offset": 2.0, "end_offset": 6.0,
            "description": "music", "spans": [], "mask_bytes": None, "paper_eval_sets": ["music-clean-50:text-only"],
        },
        {
            "video_id": "gone", "source_dataset": "street", "start_offset": 0.0, "end_offset": 4.0,
            "description": "dog barking", "spans": None, "mask_bytes": None, "paper_eval_sets": ["others-50:text-only"],
        },
        {
            "video_id": "../film one", "source_dataset": "kino", "start_offset": 0.0, "end_offset": 4.0,
            "description": "piano", "spans": None, "mask_bytes": None, "paper_eval_sets": ["instr-50:text-only"],
        },
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), folder / "data" / "test-00000-of-00001.parquet", row_group_size=1)
    return folder


def _shortened(path: Path, seconds: float) -> bytes:
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-t", str(seconds), "-c", "copy", "-f", "mp4"]
    options = ["-movflags", "frag_keyframe+empty_moov", "pipe:1"]
    return subprocess.run([*command, *options], check=True, capture_output=True).stdout
