"""The whole job on one long recording: x real time and peak memory, beside the same model in one plain process.

`make bench-pipeline` prints a table and writes out/bench-pipeline.json. Memory is the proportional set size of the
driver and of everything it started (Ray's server processes and workers), sampled twice a second.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import soundfile as sf

from jobs import build_manifest, demo

ROOT = Path(__file__).parents[2]
PLAIN = """
import sys, soundfile, torch
from operators.separator import SegmentRequest, Separator, SeparatorOptions
wave, rate = soundfile.read(sys.argv[1], dtype="float32", always_2d=True)
separator = Separator("tiny", options=SeparatorOptions(judge="tiny"))  # as the job has it
frames = -(-len(wave) // separator.hop_length)
request = SegmentRequest("bench", wave.T.copy(), 0, frames, "speech", ())
stems = separator([request])[0]
for name in ("target", "residual"):
    soundfile.write(sys.argv[2] + name + ".flac", getattr(stems, name).T, rate, subtype="PCM_24")
"""


def proportional_bytes(process: psutil.Process) -> int:
    total = 0
    for p in [process, *process.children(recursive=True)]:
        try:
            total += p.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def measure(command: list[str]) -> tuple[float, int]:
    """(seconds, peak bytes) of a command and its children. Raises CalledProcessError when it fails."""
    started, peak = time.monotonic(), 0
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as child:
        process = psutil.Process(child.pid)
        while child.poll() is None:
            try:
                peak = max(peak, proportional_bytes(process))
            except psutil.NoSuchProcess:
                break
            time.sleep(0.5)
    if child.wait():
        raise subprocess.CalledProcessError(child.returncode, command)
    return time.monotonic() - started, peak


def write_programme(path: Path, minutes: int) -> None:
    """The demo's twelve-minute programme, repeated to `minutes`, as a stereo FLAC file."""
    mixture, _ = demo.programme(*(demo.read(f"{n}.flac") for n in ("speech", "music", "dog")))
    sixteen = (mixture * 32767).astype(np.int16)
    with sf.SoundFile(path, "w", demo.RATE, 2, "PCM_16") as out:
        left = minutes * 60 * demo.RATE
        while left > 0:
            out.write(sixteen[:left])
            left -= len(sixteen)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=int, nargs="+", default=[12, 180])
    parser.add_argument("--out", type=Path, default=ROOT / "out")
    args = parser.parse_args()
    rows: list[dict[str, float | str]] = []
    print(f"{'system':16}{'recording':>12}{'wall':>9}{'x real time':>13}{'peak memory':>13}", flush=True)
    for minutes in args.minutes:
        folder = args.out.resolve() / f"bench-pipeline-{minutes}"
        (folder / "media").mkdir(parents=True, exist_ok=True)
        source = folder / "media" / "programme.flac"
        write_programme(source, minutes)
        manifest = folder / "manifest.parquet"
        build_manifest.main(["--media", str(folder / "media"), "--out", str(manifest)])
        lake = folder / f"lake-{time.time_ns()}"
        job = [sys.executable, "jobs/dialogue_extract.py", "--manifest", str(manifest), "--lake", str(lake)]
        job += ["--allowed-read-prefixes", str(folder / "media")]
        runs = {"pipeline": job}
        if minutes <= 15:  # the plain process holds the whole recording in memory
            runs["plain process"] = [sys.executable, "-c", PLAIN, str(source), str(folder / "plain-")]
        for name, command in runs.items():
            seconds, peak = measure(command)
            row = {
                "system": name,
                "minutes": minutes,
                "seconds": round(seconds, 1),
                "x_real_time": round(minutes * 60 / seconds, 1),
                "peak_memory_gb": round(peak / 1e9, 2),
            }
            rows.append(row)
            (args.out / "bench-pipeline.json").write_text(json.dumps(rows, indent=1))
            line = (
                f"{name:16}{minutes:>8} min{seconds:>8.0f}s{row['x_real_time']:>13.1f}{row['peak_memory_gb']:>10.2f} GB"
            )
            print(line, flush=True)


if __name__ == "__main__":
    main()
