"""The graph with a separator that only sleeps: how busy it is kept, what a segment costs, whether memory grows.

Two modes, one JSON line each: `busy FOLDER ACTORS SEGMENTS_EACH SECONDS` and
`memory FOLDER SEGMENTS MINUTES SEGMENTS_PER_EXECUTION`.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile as sf
from bench_pipeline import proportional_bytes
from stub_separator import StubSeparator, intervals

from pipeline import graph
from pipeline.config import JobConfig
from pipeline.context import Context
from pipeline.job import open_job
from pipeline.manifest import read_manifest
from pipeline.plan import Planner
from pipeline.progress import Progress
from pipeline.run import Recorder
from pipeline.schema import StemRow

RATE = 48_000
FILES = 20


def write_archive(folder: Path, assets: int, seconds: float) -> Path:
    """So many assets, of a few short files of noise."""
    (folder / "media").mkdir(parents=True)
    noise = np.random.default_rng(0)
    names = [f"noise-{i:02d}.wav" for i in range(FILES)]
    for name in names:
        sf.write(folder / "media" / name, noise.uniform(-0.1, 0.1, int(seconds * RATE)), RATE, subtype="PCM_16")
    columns = {
        "asset_id": [f"asset-{i:06d}" for i in range(assets)],
        "uri": [str(folder / "media" / names[i % FILES]) for i in range(assets)],
        "duration_seconds": [seconds] * assets,
    }
    pq.write_table(pa.table(columns), folder / "manifest.parquet")
    return folder / "manifest.parquet"


class Line:
    """The pipeline over such an archive, up to the tables, with sleeping actors."""

    def __init__(self, folder: Path, assets: int, actors: int, sleep: float, **settings: Any) -> None:
        self.folder, self.actors = folder, actors
        config = JobConfig(
            manifest=str(write_archive(folder, assets, 1.0)),
            lake=str(folder / "lake"),
            descriptions=("speech",),
            allowed_read_prefixes=(str(folder / "media"),),
            separators=actors,
            progress=False,
            **settings,
        )
        job = open_job(config)
        job.tables.create_missing()
        self.plan = Planner(config, job.store, job.facts, job.config_hash, set()).plan(read_manifest(config.manifest))
        assert len(self.plan.todo) == assets
        self.context = Context(config, job.store.root, config.read_prefixes, job.facts, job.config_hash, "bench", False)
        self.recorder = Recorder(job.tables, config, Progress(assets, self.plan.audio_seconds, False))
        (folder / "busy").mkdir()
        self.separator = partial(StubSeparator, sleep, str(folder / "busy"))

    def run(self, minutes: float = 60, per_execution: int | None = None) -> float:
        """Seconds from the first result to the last: without the start of Ray and of its workers. Ends after so many
        minutes with what is done by then."""
        graph.connect(self.context.config)
        first = last = 0.0
        for result in graph.results(self.context, self.plan.todo, self.separator, per_execution):
            last = time.monotonic()
            first = first or last
            assert result["kind"] == "stem", result
            self.recorder.stem(StemRow.model_validate_json(result["row"]))
            if last - first > minutes * 60:
                break
        self.recorder.flush()
        return last - first


def busy(folder: Path, actors: int, each: int, sleep: float) -> dict[str, Any]:
    """Share of an actor's time, from its second call to the end of its last, that it was in the model.

    The first call is left out, with the gap after it: workers of the other stages are still starting then.
    """
    segments = actors * each
    line = Line(folder, segments, actors, sleep)
    line.run()
    worked = intervals(folder / "busy")
    start, end = min(calls[0][0] for calls in worked), max(calls[-1][1] for calls in worked)
    worked = [calls[1:] for calls in worked]
    shares = [sum(end - start for start, end, _ in calls) / (calls[-1][1] - calls[0][0]) for calls in worked]
    gaps = sorted(b[0] - a[1] for calls in worked for a, b in pairwise(calls))
    return {
        "actors": len(worked),
        "segments": segments,
        "seconds_a_segment": sleep,
        "busy_percent": round(100 * sum(shares) / len(shares), 1),
        "least_busy_actor_percent": round(100 * min(shares), 1),
        "whole_stage_percent": round(100 * segments * sleep / (actors * (end - start)), 1),
        "gap_ms_median": round(gaps[len(gaps) // 2] * 1e3),
        "gap_ms_worst": round(gaps[-1] * 1e3),
    }


def memory(folder: Path, planned: int, minutes: float, per_execution: int) -> dict[str, Any]:
    """Memory (PSS) of the driver, Ray's servers and all workers, sampled by segments done; CPU time a segment."""
    line = Line(folder, planned, 1, 0.0)
    me = psutil.Process()
    done: list[tuple[int, int, int]] = []
    used: list[tuple[int, float]] = []
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(3):
            done.append((line.recorder.progress.committed, proportional_bytes(me), me.memory_info().rss))
            if line.recorder.progress.committed and not used:  # from here on, without the start of the workers
                used.append((line.recorder.progress.committed, family_seconds(me)))

    watcher = threading.Thread(target=sample)
    watcher.start()
    cpu = time.process_time()
    seconds = line.run(minutes, per_execution)
    cpu = time.process_time() - cpu
    ended.set()
    watcher.join()
    segments = line.recorder.progress.committed
    early, before = used[0] if used else (0, 0.0)
    all_cpu = (family_seconds(me) - before) / max(segments - early, 1)
    marks = {}
    for tenths in range(1, 11):
        part = [d for d in done if segments * (tenths - 1) < 10 * d[0] <= segments * tenths]
        if part:
            marks[tenths * 10] = [round(sum(d[k] for d in part) / len(part) / 1e6) for k in (1, 2)]
    first, late = (marks.get(k, next(iter(marks.values()))) for k in (20, 100))
    return {
        "segments_planned": planned,
        "segments": segments,
        "segments_per_execution": per_execution,
        "seconds": round(seconds, 1),
        "ms_a_segment": round(seconds / segments * 1e3, 1),
        "cpu_ms_a_segment": round(all_cpu * 1e3, 1),
        "driver_cpu_ms_a_segment": round(cpu / segments * 1e3, 1),
        "all_mb_by_percent_done": {k: v[0] for k, v in marks.items()},
        "driver_mb_by_percent_done": {k: v[1] for k, v in marks.items()},
        "growth_percent_20_to_100": round(100 * (late[0] - first[0]) / first[0], 1),
    }


def family_seconds(process: psutil.Process) -> float:
    """Processor time of a process and all that it started and that still runs (Ray's servers, workers, helpers)."""
    total = 0.0
    for p in [process, *process.children(recursive=True)]:
        try:
            times = p.cpu_times()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        total += times.user + times.system
    return total


def main() -> None:
    mode, folder, *numbers = sys.argv[1:]
    if mode == "busy":
        found = busy(Path(folder), int(numbers[0]), int(numbers[1]), float(numbers[2]))
    else:
        found = memory(Path(folder), int(numbers[0]), float(numbers[1]), int(numbers[2]))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
