"""Packed audio as `operators.sam_audio.training.fetch` leaves it, from the demo's three recordings."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile as sf

from operators.sam_audio.training.engine import DataEngine

MEDIA = Path(__file__).parents[1] / "jobs" / "demo_media"


def write_pack(folder: Path, split: str = "eval") -> Path:
    """All of it in one split, or in "both"; in "train" every recording stands twice, to train and to validate with."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, audio, at = [], [], 0
    for kind, name in (("speech", "speech"), ("music", "music"), ("sfx", "dog")):
        wave = sf.read(MEDIA / f"{name}.flac", dtype="int16")[0][:, 0]
        # What part a recording belongs to follows from its path.
        by_part = {DataEngine.training_part({"path": f"{name}{i}"}): f"{name}{i}" for i in range(400)}
        paths = [(path, "train") for path in by_part.values()] if split != "eval" else []
        paths += [(name, "eval")] if split != "train" else []
        for path, part in paths:
            row = {"path": path, "kind": kind, "label": name, "speaker": "", "package": "", "flags": ""}
            rows.append({**row, "vad_speech_fraction": 0.0, "split": part, "start": at, "length": len(wave)})
        audio.append(wave)
        at += len(wave)
    np.concatenate(audio).tofile(folder / "audio.i16")
    pq.write_table(pa.Table.from_pylist(rows), folder / "index.parquet")
    return folder
