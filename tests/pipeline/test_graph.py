"""What the driver makes of a flow that ends, breaks, or says nothing any more."""

import threading
import time
from collections.abc import Iterator

import pytest

from pipeline.graph import Row, Stalled, watched


def rows(count: int) -> Iterator[Row]:
    for i in range(count):
        yield {"i": i}


def test_rows_come_as_they_are_until_the_flow_ends() -> None:
    assert [row["i"] for row in watched(rows(100), 5)] == list(range(100))


def test_what_breaks_the_flow_breaks_the_run() -> None:
    def broken() -> Iterator[Row]:
        yield {"i": 0}
        raise OSError("the cluster is gone")

    found = watched(broken(), 5)
    assert next(found) == {"i": 0}
    with pytest.raises(OSError, match="the cluster is gone"):
        next(found)


def test_a_flow_that_says_nothing_any_more_ends_the_run_with_where_to_look() -> None:
    released = threading.Event()

    def silent() -> Iterator[Row]:
        yield {"i": 0}
        released.wait(60)

    found, began = watched(silent(), 0.5), time.monotonic()
    assert next(found) == {"i": 0}
    with pytest.raises(Stalled, match=r"no result for 0 s .*RUNBOOK"):
        next(found)
    assert time.monotonic() - began < 30
    released.set()


def test_who_stops_reading_stops_the_flow() -> None:
    made: list[int] = []

    def endless() -> Iterator[Row]:
        while True:
            made.append(len(made))
            yield {"i": made[-1]}

    found = watched(endless(), 5)
    next(found)
    found.close()
    deadline = time.monotonic() + 30
    while any(thread.name == "results" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert len(made) < 5
