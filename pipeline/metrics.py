"""What a monitoring system sees of a run: counters, gauges and histograms, exported by Ray on every node.

Each process records its own (driver, decode and write tasks, model actors), and Ray's agent on its node serves them to
Prometheus as `ray_sam_pipeline_<name>`. Labels have few values: stages, causes, directions; never an asset. Without a
connected Ray nothing is exported; counts of before the connection (rejected rows) are kept and added after it.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

PREFIX = "sam_pipeline_"
# From a short clip on a GPU to a long segment on a CPU.
SECONDS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)


@dataclass(frozen=True)
class Measure:
    """One metric: what it is and which labels it has. Names follow Prometheus: unit last, `_total` for counters."""

    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


MEASURES: Mapping[str, Measure] = {
    "items_committed_total": Measure("counter", "Items committed (driver)"),
    "items_failed_total": Measure("counter", "Items recorded as failed (driver)", ("stage", "cause")),
    "items_open": Measure("gauge", "Items of this run that have no answer yet (driver)"),
    "audio_seconds_total": Measure("counter", "Seconds of audio finished, once an item (driver)"),
    "audio_open_seconds": Measure("gauge", "Seconds of audio of this run that are still to do (driver)"),
    "last_result_timestamp_seconds": Measure("gauge", "When the last segment was finished, Unix time (driver)"),
    "table_commit_seconds": Measure("histogram", "Seconds of one commit to the tables (driver)"),
    "segments_total": Measure("counter", "Segments that a stage worked on (write: a segment of an item)", ("stage",)),
    "stage_seconds": Measure("histogram", "Seconds of a stage for one segment", ("stage",)),
    "separator_seconds_total": Measure("counter", "Seconds of model actors, in the model or not", ("state",)),
    "windows_total": Measure("counter", "Multi-diffusion windows, integrated or skipped", ("outcome",)),
    "bytes_total": Measure("counter", "Bytes of media read, bytes of parts and stems written", ("direction",)),
    "retries_total": Measure("counter", "Tries of work that ended its worker before", ("stage",)),
}

Labels = tuple[tuple[str, str], ...]
_early: dict[tuple[str, Labels], float] = {}
_lock = threading.Lock()


def count(name: str, value: float = 1, **labels: str) -> None:
    """Add to a counter; also before Ray is connected."""
    if value <= 0:
        return
    if not _connected():
        with _lock:
            key = name, tuple(labels.items())
            _early[key] = _early.get(key, 0) + value
        return
    if _early:
        with _lock:
            waiting = dict(_early)
            _early.clear()
        for (early, of), amount in waiting.items():
            _metric(early).inc(amount, tags=dict(of))
    _metric(name).inc(value, tags=labels)


def gauge(name: str, value: float, **labels: str) -> None:
    """Set a gauge; nothing without Ray."""
    if _connected():
        _metric(name).set(value, tags=labels)


def observe(name: str, value: float, **labels: str) -> None:
    """Add one value to a histogram; nothing without Ray."""
    if _connected():
        _metric(name).observe(value, tags=labels)


@contextmanager
def timed(name: str, **labels: str) -> Iterator[None]:
    """Observe the seconds that the block takes, when it ends without an error."""
    started = time.perf_counter()
    yield
    observe(name, time.perf_counter() - started, **labels)


def measured(stage: str) -> Callable[[Callable[[Any, Any], Any]], Callable[[Any, Any], Any]]:
    """Decorates a stage's `__call__(self, row)`: its segments and their seconds. Failures passed on are not work."""

    def decorate(call: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        @functools.wraps(call)
        def measuring(self: Any, row: Any) -> Any:
            started = time.perf_counter()
            out = call(self, row)
            _worked(stage, _segments(row), time.perf_counter() - started)
            return out

        return measuring

    return decorate


def measured_batches(stage: str) -> Callable[[Callable[[Any, Any], Any]], Callable[[Any, Any], Any]]:
    """As `measured`, of a stage that is a generator over batches: what takes its rows is not timed."""

    def decorate(call: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        @functools.wraps(call)
        def measuring(self: Any, batch: Any) -> Iterator[Any]:
            seconds, rows = 0.0, call(self, batch)
            while True:
                started = time.perf_counter()
                out = next(rows, None)
                seconds += time.perf_counter() - started
                if out is None:
                    break
                yield out
            _worked(stage, _segments(batch), seconds)

        return measuring

    return decorate


def _segments(row: Any) -> int:
    """Work in a row or batch: what has not failed in an earlier stage."""
    failures = row.get("failure", "")
    return int(not failures) if isinstance(failures, str) else sum(not failure for failure in failures)


def _worked(stage: str, segments: int, seconds: float) -> None:
    count("segments_total", segments, stage=stage)
    for _ in range(segments):
        observe("stage_seconds", seconds / segments, stage=stage)


class BusyClock:
    """Divides an actor's life into seconds in the model and seconds outside it: waiting, notes, copies."""

    def __init__(self) -> None:
        self._free_since = time.perf_counter()

    @contextmanager
    def busy(self) -> Iterator[None]:
        started = time.perf_counter()
        count("separator_seconds_total", started - self._free_since, state="idle")
        try:
            yield
        finally:
            self._free_since = time.perf_counter()
            count("separator_seconds_total", self._free_since - started, state="busy")


class CountedReads:
    """A binary file that adds what was read from it to `bytes_total` when it is closed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.bytes_read = file, 0

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.bytes_read += len(data)
        return data

    def close(self) -> None:
        count("bytes_total", self.bytes_read, direction="read")
        self.bytes_read = 0
        self._file.close()

    def __enter__(self) -> CountedReads:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _connected() -> bool:
    # Importing Ray takes seconds: a run with nothing to do never does.
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


@functools.cache
def _metric(name: str) -> Any:
    from ray.util.metrics import Counter, Gauge, Histogram

    measure = MEASURES[name]
    if measure.kind == "counter":
        # Ray appends `_total` to counters by itself.
        return Counter(PREFIX + name.removesuffix("_total"), measure.help, measure.labels)
    if measure.kind == "gauge":
        return Gauge(PREFIX + name, measure.help, measure.labels)
    return Histogram(PREFIX + name, measure.help, list(SECONDS), measure.labels)
