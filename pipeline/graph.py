"""The whole data flow, top to bottom: planned segments -> decode -> separate -> write -> result rows at the driver."""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy

from pipeline import cluster
from pipeline.config import JobConfig
from pipeline.context import Context
from pipeline.items import Work
from pipeline.stages import DecodeStage, SeparateStage, threads_per_actor
from pipeline.write import WriteStage

Row = dict[str, Any]
# Blocks of one segment each: larger targets make Ray gather segments, which costs it time and store memory.
BLOCK_BYTES = 12 << 20
# Planned segments that enter Ray together: about a megabyte.
ROWS_PER_BLOCK = 1000
# Segments of one execution of the flow, and at least so many for each model actor. Ray keeps some 20 kB of the driver's
# memory for every segment until an execution ends; the next one starts the model actors again.
SEGMENTS_PER_EXECUTION = 20_000
SEGMENTS_PER_ACTOR = 2_000


def results(
    context: Context,
    todo: Iterable[Work],
    separator: Callable[[], Any] | None = None,
    segments_per_execution: int | None = None,
) -> Iterator[Row]:
    """Run the work on the cluster; yields result rows (see stages) as they come, in no order.

    `separator` makes what a model actor calls, in place of the model that the settings name; `segments_per_execution`
    is in place of the usual number.
    """
    config, left = context.config, iter(todo)
    while True:
        # Counted anew each time: the cluster may have grown.
        separators = config.separators or max(1, _gpus())
        most = segments_per_execution or max(SEGMENTS_PER_EXECUTION, SEGMENTS_PER_ACTOR * separators)
        works = list(islice(left, most))
        if not works:
            return
        # Ray's own limit (`connect`) looks between two steps of its scheduling: it cannot see a step that never ends.
        yield from watched(_rows(_flow(context, works, separators, separator)), 2 * config.stall_seconds)


def _flow(
    context: Context, works: Sequence[Work], separators: int, separator: Callable[[], Any] | None
) -> ray.data.Dataset:
    config = context.config
    # Ray tries a task whose worker died again, without end; the notes under attempts/ (see stages) end that.
    blocks: list[Any] = [
        ray.put(pa.table({"work": [work.to_json() for work in works[i : i + ROWS_PER_BLOCK]]}))
        for i in range(0, len(works), ROWS_PER_BLOCK)
    ]
    return (
        ray.data.from_arrow_refs(blocks)
        .repartition(target_num_rows_per_block=1)
        .map(
            DecodeStage(context).__call__,
            compute=TaskPoolStrategy(size=config.decoders or _cpus()),
            num_cpus=1,
        )
        .map_batches(
            SeparateStage,
            compute=ActorPoolStrategy(size=separators),
            batch_size=config.segments_per_batch,
            # On a GPU the CPU only feeds it; without one the model uses what Ray does not count.
            num_cpus=0,
            num_gpus=_gpus_each(config, separators),
            fn_constructor_args=(context, None if _on_gpus(config) else threads_per_actor(separators), separator),
        )
        .map(
            WriteStage(context).__call__,
            compute=TaskPoolStrategy(size=config.writers or _cpus()),
            # Not counted, or on a small machine it would wait: decoding, and Ray's own splitting of blocks, take every
            # CPU that is free as long as there is work, and nothing would be committed until they are done.
            num_cpus=0,
        )
    )


def _rows(flow: ray.data.Dataset) -> Iterator[Row]:
    # Not iter_rows: every five seconds it sends the statistics of all blocks so far to an actor, which is quadratic.
    for bundle in flow.iter_internal_ref_bundles():
        for block in bundle.blocks:
            yield from ray.get(block.ref).to_pylist()


class Stalled(RuntimeError):
    """Nothing came out of Ray for longer than a run waits."""


def watched(rows: Iterable[Row], seconds: float) -> Iterator[Row]:
    """The same rows; raises Stalled when the next one takes longer than `seconds`."""
    arrived: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=1)
    left = threading.Event()

    def hand_over(kind: str, value: Any = None) -> None:
        while not left.is_set():
            with suppress(queue.Full):
                arrived.put((kind, value), timeout=1)
                return

    def pull() -> None:
        try:
            for row in rows:
                hand_over("row", row)
                if left.is_set():
                    return
        except BaseException as error:
            hand_over("error", error)
        else:
            hand_over("end")

    threading.Thread(target=pull, daemon=True, name="results").start()
    try:
        while True:
            try:
                kind, value = arrived.get(timeout=seconds)
            except queue.Empty:
                raise Stalled(
                    f"no result for {seconds:.0f} s (twice stall_seconds). Ray stops making objects on a node whose "
                    "disk is 95 % full, and waits for nodes that were lost: see infra/RUNBOOK.md, Nothing arrives"
                ) from None
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        left.set()


def connect(config: JobConfig) -> None:
    """Join the cluster that RAY_ADDRESS names (as under `ray job submit`), or start one on this machine."""
    # Said before Ray starts: it has lines of its own for every setting below.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # Model actors are placed by GPU; where there is none, Ray is told of as many as there are replicas.
    cluster.join(max(2, os.cpu_count() or 1), None if _local_gpus() else config.separators or 1)
    data = DataContext.get_current()
    data.target_max_block_size = BLOCK_BYTES
    data.enable_progress_bars = False
    data.print_on_execution_start = False
    data.execution_options.preserve_order = False
    data.execution_no_progress_timeout_s = config.stall_seconds


def gpus_held(config: JobConfig) -> float:
    """GPUs that all model replicas hold together; the number of replicas when they need none."""
    separators = config.separators or max(1, _gpus())
    return separators * _gpus_each(config, separators) or float(separators)


def _local_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _gpus() -> int:
    return int(ray.cluster_resources().get("GPU", 0))


def _on_gpus(config: JobConfig) -> bool:
    # A cluster that grows from nothing has no GPU yet when it is asked.
    return config.device.startswith("cuda") or any(
        key.startswith("accelerator_type") for key in ray.cluster_resources()
    )


def _cpus() -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _gpus_each(config: JobConfig, separators: int) -> float:
    if config.gpus_per_separator is not None:
        return config.gpus_per_separator
    if config.device.startswith("cuda") and not _gpus():
        return 1.0  # what the cluster is to grow by
    # As many replicas as asked for, on the GPUs there are.
    return min(1.0, _gpus() / separators)
