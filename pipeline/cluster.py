"""Ray: the cluster that a process joins, or starts."""

from __future__ import annotations

import logging
import os
from typing import Any

import ray

# For nodes that are started: they keep idle workers for ten minutes instead of a second, beyond one a CPU. Decoding and
# writing want workers in turns, and a new one imports torch for 6 s: on three nodes of one CPU that was a third of a
# run's processor time.
KEEP_WORKERS = {"RAY_idle_worker_killing_time_threshold_ms": "600000"}


def join(cpus: int, gpus: float | None = None) -> None:
    """Join the cluster that RAY_ADDRESS names (as under `ray job submit`), or start one on this machine.

    `cpus`, `gpus`: what a cluster started here counts as its own; None: the GPUs that are there. A process that is in a
    cluster already stays in it.
    """
    if ray.is_initialized():
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its core prints notes for its developers
        for name, value in KEEP_WORKERS.items():
            os.environ.setdefault(name, value)
        options |= {"address": "local", "include_dashboard": False, "num_cpus": cpus, "num_gpus": gpus}
    ray.init(**options)
