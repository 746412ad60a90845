"""A few of the faults on a small archive: two minutes that tell before `make faults` takes its time over a large one.

`make test` has test_kill instead, on one node.
"""

import time

import pytest
import rig as rigs
from proxy import Fault


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_killed_actor_decoder_and_writer_lose_and_double_nothing(small_rig: rigs.Rig) -> None:
    assert small_rig.reference
    faults = [
        Fault(r"PUT .*/attempts/.*-separate-", "kill_after", skip=2),
        Fault(r"PUT .*/attempts/.*-decode-", "kill_after", skip=4),
        Fault(r"PUT .*/commits/", "kill_before", skip=1),
    ]
    began, lake = time.monotonic(), small_rig.lake()
    with small_rig.faults(*faults):
        runs = small_rig.run_to_end(lake)
    assert all(fault.hits for fault in faults)
    hits = [hit for fault in faults for hit in fault.hits]
    small_rig.judge("small: actor, decoder, writer killed", lake, tried=len(hits), runs=runs, began=began, hits=hits)
