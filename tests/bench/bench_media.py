"""Range decoding per format: x real time beside a sequential decode of the whole file, and bytes read for a late range.

`make bench-media` prints a table and writes out/bench-media.json. Both sides decode and resample to 48 kHz and
hold a minute at a time; x real time is of processor time, so that a busy machine changes it less. `whole` is one pass;
`ranges` opens the file afresh for every minute, as the pipeline does; `late 10 s` starts at 90 % of the file.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import torch
import torchaudio.functional

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from media_files import FORMATS, make_media  # noqa: E402

from operators.media import decode_range, probe  # noqa: E402

RATE = 48_000
KINDS = ("wav", "flac", "mp3", "vbr.mp3", "m4a", "aac", "ogg", "opus", "mp4", "mkv", "mov", "webm")


class CountingFile(io.FileIO):
    bytes_read = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(-1 if size is None else size)
        self.bytes_read += len(data)
        return data


def decode_sequentially(path: Path) -> None:
    """The baseline: the whole file in one pass, a minute at a time decoded, resampled and dropped."""
    pieces: list[np.ndarray] = []
    held = 0

    def flush(rate: int) -> None:
        samples = torch.from_numpy(np.concatenate(pieces, axis=1))
        if rate != RATE:
            torchaudio.functional.resample(samples, rate, RATE)

    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        for frame in container.decode(stream):
            data = frame.to_ndarray()
            if not frame.format.is_planar:
                data = data.reshape(-1, frame.layout.nb_channels).T
            scale = 2.0 ** (1 - 8 * data.dtype.itemsize) if data.dtype.kind == "i" else 1.0
            pieces.append(data.astype(np.float32) * np.float32(scale))
            held += data.shape[1]
            if held >= 60 * stream.rate:
                flush(stream.rate)
                pieces, held = [], 0
        if pieces:
            flush(stream.rate)


def measure(path: Path, kind: str, range_seconds: int) -> dict[str, float | str]:
    begin = time.process_time()
    decode_sequentially(path)
    whole = time.process_time() - begin

    begin = time.perf_counter()
    with path.open("rb") as file:
        seconds = probe(file, path.name).duration_seconds
    probing = time.perf_counter() - begin

    begin = time.process_time()
    step, total = range_seconds * RATE, int(seconds * RATE)
    for start in range(0, total, step):
        stop = min(start + step, total)
        with path.open("rb") as file:
            decode_range(file, path.name, start=start, stop=stop, sample_rate=RATE, expected_seconds=seconds)
    ranges = time.process_time() - begin

    begin = time.perf_counter()
    start = int(0.9 * seconds) * RATE
    with CountingFile(path) as counting:
        decode_range(
            counting, path.name, start=start, stop=start + 10 * RATE, sample_rate=RATE, expected_seconds=seconds
        )
        read = counting.bytes_read
    late = time.perf_counter() - begin
    return {
        "format": kind,
        "file_mb": path.stat().st_size / 1e6,
        "whole_x_real_time": seconds / whole,
        "ranges_x_real_time": seconds / ranges,
        "probe_ms": probing * 1e3,
        "late_10s_ms": late * 1e3,
        "late_10s_mb_read": read / 1e6,
        "ten_seconds_mb": path.stat().st_size / 1e6 * 10 / seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="length of each recording (default 10)")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=KINDS)
    parser.add_argument("--out", type=Path, default=ROOT / "out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    print(
        f"{args.minutes:g} min of stereo at 44.1 kHz (Opus: 48 kHz), to 48 kHz, one thread; "
        f"load of the machine {os.getloadavg()[0]:.1f}"
    )
    print(f"{'':9}{'file':>9}{'whole':>10}{'ranges':>10}{'probe':>10}{'late 10 s':>11}{'read':>10}{'10 s are':>10}")
    with tempfile.TemporaryDirectory() as scratch:
        for kind in args.formats:
            path = make_media(Path(scratch) / f"bench.{kind}", kind, seconds=args.minutes * 60)
            row = measure(path, kind, 60)
            path.unlink()
            rows.append(row)
            print(
                f"{kind:9}{row['file_mb']:>6.1f} MB{row['whole_x_real_time']:>9.0f}x{row['ranges_x_real_time']:>9.0f}x"
                f"{row['probe_ms']:>7.0f} ms{row['late_10s_ms']:>8.0f} ms{row['late_10s_mb_read']:>7.2f} MB"
                f"{row['ten_seconds_mb']:>7.2f} MB",
                flush=True,
            )
    args.out.mkdir(parents=True, exist_ok=True)
    report = {"minutes": args.minutes, "cores": os.cpu_count(), "rows": rows}
    (args.out / "bench-media.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
