"""What a person sees of a training run: a bar over its steps, and a line for every measurement."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType

import ray
from ray.exceptions import RayError
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tqdm import tqdm

_SECONDS = 1.0  # between two movements of the bar


class Speaker:
    """A worker's end: what it says reaches the driver, if that still listens. Pickles."""

    def __init__(self, queue: Queue | None) -> None:
        self._queue, self._moved = queue, 0.0

    def at(self, step: int) -> None:
        """A step was done."""
        if time.monotonic() - self._moved > _SECONDS:
            self._moved = time.monotonic()
            self._put(step, "")

    def say(self, step: int, text: str) -> None:
        self._put(step, text)

    def warn(self, text: str) -> None:
        self._put(None, text)

    def _put(self, step: int | None, text: str) -> None:
        if self._queue is None:
            return
        try:
            self._queue.put_nowait((step, text))
        except RayError:  # the driver has gone, and its queue with it; another one may come for the checkpoints
            self._queue = None


class Progress:
    """The driver's end, from `with` to the end of the run. The bar shows in a terminal only."""

    def __init__(self, total: int) -> None:
        self._total = total

    def __enter__(self) -> Speaker:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        self._bar = tqdm(total=self._total, unit="step", file=sys.stderr, disable=not sys.stderr.isatty())
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        return Speaker(self._queue)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        self._bar.close()
        self._queue.shutdown()

    def _listen(self) -> None:
        while True:
            last = self._ended.is_set()  # before the queue is found empty: what was said by then is shown
            try:
                step, text = self._queue.get(timeout=0.5)
            except Empty:
                if last:
                    return
                continue
            except RayError:
                return
            if step is not None:
                self._bar.update(step - self._bar.n)
                text = text and f"step {step}/{self._total}{text}"
            if text:
                tqdm.write(text)
