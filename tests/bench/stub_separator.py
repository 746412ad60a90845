"""A separator of known cost: it sleeps, hands the sound through, and writes down when it was busy."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from operators.separator import SegmentRequest, SegmentStems


class StubSeparator:
    """Sleeps `seconds` for each segment; every call appends its start and end (seconds) to a file of its process."""

    def __init__(self, seconds: float, folder: str) -> None:
        self.seconds = seconds
        self.log = Path(folder) / f"busy-{os.getpid()}.txt"

    def __call__(self, requests: Sequence[SegmentRequest]) -> list[SegmentStems]:
        started = time.time()
        time.sleep(self.seconds * len(requests))
        stems = [SegmentStems(r.waveform, np.zeros_like(r.waveform)) for r in requests]
        with self.log.open("a") as log:
            log.write(f"{started} {time.time()} {len(requests)}\n")
        return stems


def intervals(folder: Path) -> list[list[tuple[float, float, int]]]:
    """Of every actor: (start, end, segments) of its calls, in order."""
    actors = []
    for log in sorted(folder.glob("busy-*.txt")):
        calls = [line.split() for line in log.read_text().splitlines()]
        actors.append([(float(start), float(end), int(count)) for start, end, count in calls])
    return actors
