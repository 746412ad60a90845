"""S3 that refuses, breaks off, halves, goes silent or goes away: what cannot be done now is recorded and done later."""

import threading
import time

import pytest
import rig as rigs
from proxy import Fault

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1500)]

WEATHER = {
    "S3: 503 SlowDown, 15 % of requests": [Fault(r".", "slow_down", times=None, share=0.15)],
    "S3: resets, halves, lost answers, 2 % each": [
        Fault(r".", "reset", times=None, share=0.02),
        Fault(r"(PUT|POST) ", "half_request", times=None, share=0.02),
        Fault(r"GET ", "half_answer", times=None, share=0.02),
        Fault(r"PUT ", "lost_answer", times=None, share=0.02),
    ],
    "S3: 20 s of silence, 6 times": [Fault(r"(PUT|GET|HEAD) ", "stall", times=6, share=0.01)],
}


@pytest.mark.parametrize("weather", WEATHER)
def test_bad_weather_costs_time_only(rig: rigs.Rig, weather: str) -> None:
    assert rig.reference
    rig.whole()
    began, lake = time.monotonic(), rig.lake()
    with rig.faults(*WEATHER[weather]):
        runs = rig.run_to_end(lake)
    hits = [hit for fault in WEATHER[weather] for hit in fault.hits]
    assert len(hits) >= 5
    rig.judge(weather, lake, tried=len(hits), runs=runs, began=began, hits=hits)


def test_store_that_is_away_for_half_a_minute(rig: rigs.Rig) -> None:
    assert rig.reference
    rig.whole()
    began, lake, before = time.monotonic(), rig.lake(), len(rig.proxy.commits)
    driver = rig.start(lake)
    rigs.wait_for(lambda: len(rig.proxy.commits) > before + 30, driver, rig.bound)
    outage = Fault(r".", "reset", times=None)
    rig.proxy.faults = [outage]
    back = threading.Timer(30, lambda: setattr(rig.proxy, "faults", []))
    hit = time.monotonic()
    back.start()
    try:
        driver.wait(rig.bound)
        back.join()
        runs = 1 + rig.run_to_end(lake)
    finally:
        back.cancel()
        rig.proxy.faults = []
    rig.judge("S3: away for 30 s", lake, tried=len(outage.hits), runs=runs, began=began, hits=[hit])
