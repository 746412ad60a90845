"""What is measured, without a cluster: names, labels, and that measuring changes nothing (live: tests/infra)."""

import io
import multiprocessing
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest

from pipeline import metrics
from pipeline.metrics import MEASURES, BusyClock, CountedReads, measured, measured_batches

Counts = dict[tuple[str, metrics.Labels], float]


@pytest.fixture(scope="module")
def counts() -> Iterator[Callable[[Callable[[], None]], Counts]]:
    """Runs a function in a process without Ray, and gives what it counted: there it waits for a connection."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield lambda body: pool.submit(counted_by, body).result()


def counted_by(body: Callable[[], None]) -> Counts:
    metrics._early.clear()
    body()
    return dict(metrics._early)


class Stage:
    @measured("decode")
    def one(self, row):
        """Doubles."""
        return {"value": 2 * row["value"]}

    @measured_batches("separate")
    def batch(self, batch):
        for value in batch["value"]:
            yield {"value": [value]}

    @measured("write")
    def fails(self, row):
        raise OSError("disk full")


@pytest.mark.parametrize("name", MEASURES)
def test_names_and_labels_are_those_of_prometheus(name):
    measure = MEASURES[name]
    assert re.fullmatch(r"[a-z][a-z_]*[a-z]", name)
    assert name.endswith("_total") == (measure.kind == "counter")
    if measure.kind == "histogram":
        assert name.endswith("_seconds")
    # A label with an asset in it would make a series of each.
    assert set(measure.labels) <= {"stage", "cause", "state", "outcome", "direction"}
    assert measure.help


def work_and_look():
    assert Stage().one({"value": 2, "failure": ""}) == {"value": 4}
    assert Stage.one.__doc__ == "Doubles."
    assert list(Stage().batch({"value": [1, 2], "failure": ["", ""]})) == [{"value": [1]}, {"value": [2]}]


def test_measured_stage_does_what_it_did_and_is_counted(counts):
    assert counts(work_and_look) == {
        ("segments_total", (("stage", "decode"),)): 1,
        ("segments_total", (("stage", "separate"),)): 2,
    }


def pass_failures_on():
    Stage().one({"value": 2, "failure": "{...}"})
    list(Stage().batch({"value": [1, 2, 3], "failure": ["", "{...}", ""]}))


def test_failures_that_are_passed_on_are_no_work(counts):
    assert counts(pass_failures_on) == {("segments_total", (("stage", "separate"),)): 2}


def test_error_of_a_stage_passes_through():
    with pytest.raises(OSError, match="disk full"):
        Stage().fails({"failure": ""})


def reject_twice_and_skip_nothing():
    metrics.count("items_failed_total", stage="plan", cause="not_found")
    metrics.count("items_failed_total", stage="plan", cause="not_found")
    metrics.count("windows_total", 0, outcome="skipped")


def test_counts_of_before_the_connection_add_up_and_zero_is_not_counted(counts):
    assert counts(reject_twice_and_skip_nothing) == {
        ("items_failed_total", (("stage", "plan"), ("cause", "not_found"))): 2
    }


def look_without_ray():
    metrics.gauge("items_open", 3)
    metrics.observe("stage_seconds", 0.1, stage="decode")
    with metrics.timed("table_commit_seconds"):
        pass


def test_gauges_and_histograms_do_no_harm_without_a_cluster(counts):
    assert counts(look_without_ray) == {}


def be_busy():
    begun = time.perf_counter()
    clock = BusyClock()
    time.sleep(0.02)
    for _ in range(2):
        with clock.busy():
            time.sleep(0.03)
    with pytest.raises(ValueError), clock.busy():  # an asset that fails has used the model, too
        raise ValueError
    metrics.count("audio_seconds_total", time.perf_counter() - begun)


def test_busy_clock_divides_all_of_the_time(counts):
    found = counts(be_busy)
    busy = found["separator_seconds_total", (("state", "busy"),)]
    idle = found["separator_seconds_total", (("state", "idle"),)]
    assert busy >= 0.06 and idle >= 0.02
    assert busy + idle == pytest.approx(found["audio_seconds_total", ()], rel=0.2)


def read_twice():
    with CountedReads(io.BytesIO(b"0123456789")) as file:
        assert file.read(4) == b"0123" and file.seek(0) == 0 and file.tell() == 0 and file.seekable()
        assert file.read() == b"0123456789"
    file.close()
    assert file.closed


def test_counted_file_reads_as_the_file_and_counts_once(counts):
    assert counts(read_twice) == {("bytes_total", (("direction", "read"),)): 14}
