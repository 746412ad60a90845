"""kill -9 of every kind of process of a run, at exact moments, on three nodes and S3: nothing lost, nothing doubled."""

import time

import ledger
import pytest
import rig as rigs
from proxy import Fault

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1500)]


def disturbed(rig: rigs.Rig, scenario: str, *faults: Fault) -> ledger.Outcome:
    """Run under these faults, all of which must strike."""
    assert rig.reference
    rig.whole()
    began, lake = time.monotonic(), rig.lake()
    with rig.faults(*faults):
        runs = rig.run_to_end(lake)
    assert all(fault.hits for fault in faults), [fault.match for fault in faults if not fault.hits]
    hits = [hit for fault in faults for hit in fault.hits]
    return rig.judge(scenario, lake, tried=len(hits), runs=runs, began=began, hits=hits)


def test_undisturbed_run_is_the_measure(rig: rigs.Rig) -> None:
    assert len(rig.reference) == 201
    took = round(rig.undisturbed_seconds, 1)
    ledger.report(ledger.Outcome("undisturbed", 0, 1, len(rig.reference), 0, 0, 0.0, took, passed=True))


def test_model_actors_killed_before_and_in_the_middle(rig: rigs.Rig) -> None:
    note = r"PUT .*/attempts/.*-separate-"
    disturbed(rig, "model actor killed", Fault(note, "kill_before"), Fault(note, "kill_after", skip=40))


def test_decode_tasks_killed(rig: rigs.Rig) -> None:
    note = r"PUT .*/attempts/.*-decode-"
    disturbed(rig, "decode task killed", Fault(note, "kill_before", skip=3), Fault(note, "kill_after", skip=60))


def test_writers_killed_around_every_kind_of_put(rig: rigs.Rig) -> None:
    disturbed(
        rig,
        "writer killed at part, stem, marker",
        Fault(r"PUT .*/parts/.*\.residual", "kill_before", skip=2),
        Fault(r"(PUT|POST) .*/stems/", "kill_after", skip=11),
        Fault(r"PUT .*/commits/", "kill_before", skip=20),
        Fault(r"PUT .*/commits/", "kill_after", skip=60),
    )


# In the order of a run; each is given a lake that the one before has left.
MOMENTS = {
    "planning": Fault(r"GET /lake\?.*parts", "kill_before"),
    "the run's row": Fault(r"PUT .*/tables/runs/_delta_log/", "kill_after", skip=1),
    "a part": Fault(r"PUT .*/parts/.*\.target", "kill_after", skip=3),
    "a marker": Fault(r"PUT .*/commits/", "kill_after", skip=60),
    "a table commit": Fault(r"PUT .*/tables/stems/_delta_log/", "kill_before"),
}


def test_driver_killed_at_five_moments(rig: rigs.Rig) -> None:
    assert rig.reference
    rig.whole()
    began, lake, hits = time.monotonic(), rig.lake(), []
    for moment, fault in MOMENTS.items():
        driver = rig.start(lake)
        fault.act = driver.kill
        with rig.faults(fault):
            rigs.wait_for(fault.struck.is_set, driver, rig.bound)
            assert driver.wait(30) != 0, moment
        hits += fault.hits
    runs = rig.run_to_end(lake)
    rig.judge("driver killed at five moments", lake, tried=5, runs=5 + runs, began=began, hits=hits)


def test_two_drivers_at_once(rig: rigs.Rig) -> None:
    assert rig.reference
    rig.whole()
    began, lake = time.monotonic(), rig.lake()
    second = rig.start(lake)
    runs = 1 + rig.run_to_end(lake, first=rig.start(lake))
    second.wait(rig.bound)
    runs += rig.run_to_end(lake) if second.process.returncode else 0
    rig.judge("two drivers at once", lake, tried=1, runs=runs, began=began, hits=[])


@pytest.mark.parametrize("replaced", [True, False], ids=["replaced", "not-replaced"])
def test_lost_node(rig: rigs.Rig, replaced: bool) -> None:
    assert rig.reference
    rig.whole()
    began, lake, before = time.monotonic(), rig.lake(), len(rig.proxy.commits)
    # One replica a node: without a replacement one of them has no place any more.
    driver = rig.start(lake, "--gpus-per-separator", "1")
    rigs.wait_for(lambda: len(rig.proxy.commits) > before + 30, driver, rig.bound)
    rig.nodes.lose(rig.nodes.workers[-1])
    hit = time.monotonic()
    if replaced:
        rig.nodes.add()
    runs = rig.run_to_end(lake, "--gpus-per-separator", "1", "--separators", "2" if replaced else "1", first=driver)
    name = "node lost, replaced" if replaced else "node lost for good"
    rig.judge(name, lake, tried=1, runs=runs, began=began, hits=[hit])
