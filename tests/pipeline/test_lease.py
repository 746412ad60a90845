"""One holder at a time, whatever the clocks say; a holder that was killed is replaced, one that slept stops."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from pipeline.keys import lease_key, lease_prefix
from pipeline.lease import Lease, LeaseLost
from pipeline.storage import StorageError, Store

ROOT = Path(__file__).parents[2]
TTL = 1.2
# A driver of its own: says what became of it, and holds what it got until its input ends.
DRIVER = """
import sys, time
from pipeline.lease import Lease, LeaseLost
from pipeline.storage import Store
lake, name, ttl, go = sys.argv[1:]
lease = Lease(Store(lake), name, float(ttl))
lease.store.exists("warm-up")
print("ready", flush=True)
sys.stdin.readline()
print("token", lease.token if lease.acquire() else 0, flush=True)
sys.stdin.readline()
try:
    lease.confirm()
    print("ours", flush=True)
except LeaseLost as lost:
    print("lost", lost, flush=True)
"""


@contextmanager
def driver(lake: str, name: str, ttl: float = TTL) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", DRIVER, lake, name, str(ttl), "go"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert said(process) == "ready"
        yield process
    finally:
        process.kill()
        process.communicate()


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def acquired(lake: str, ttl: float = TTL) -> Lease:
    lease = Lease(Store(lake), "nightly", ttl)
    assert lease.acquire()
    return lease


def test_second_driver_is_refused_while_the_first_lives_and_let_in_when_it_is_done(lake: str) -> None:
    with acquired(lake) as first:
        second = Lease(first.store, "nightly", TTL)
        assert not second.acquire()
        with pytest.raises(LeaseLost):
            second.check()
        time.sleep(TTL * 1.5)  # the thread renews it
        first.confirm()
    started = time.monotonic()
    assert second.acquire() and second.token == first.token + 1
    assert time.monotonic() - started < TTL  # a released lease needs no waiting
    assert first.store.list(lease_prefix("nightly")) == [lease_key("nightly", 2)]
    with pytest.raises(LeaseLost, match="released"):
        first.check()
    second.release()


def test_two_processes_racing_get_one_holder(lake: str) -> None:
    for race in range(2):
        with driver(lake, f"race-{race}") as one, driver(lake, f"race-{race}") as other:
            tell(one), tell(other)
            assert sorted(said(process) for process in (one, other)) == ["token 0", "token 1"]


def test_eight_threads_racing_for_a_dead_holders_lease_get_one_holder(lake: str) -> None:
    store = Store(lake)
    store.write_bytes(lease_key("nightly", 7), json.dumps({"ttl_seconds": 0.2}).encode())
    leases = [Lease(store, "nightly", 30) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(Lease.acquire, leases))
    assert sum(won) == 1
    winner = leases[won.index(True)]
    assert winner.token == 8 and store.list(lease_prefix("nightly")) == [lease_key("nightly", 8)]
    winner.release()


def test_killed_holder_is_replaced_after_its_ttl_and_not_before(lake: str) -> None:
    with driver(lake, "nightly") as victim:
        tell(victim)
        assert said(victim) == "token 1"
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
        started = time.monotonic()
        lease = acquired(lake, 30)
        waited = time.monotonic() - started
    assert TTL <= waited < 4 * TTL
    assert lease.token == 2
    lease.release()


def test_holder_that_was_stopped_finds_that_it_was_replaced(lake: str) -> None:
    with driver(lake, "nightly") as sleeper:
        tell(sleeper)
        assert said(sleeper) == "token 1"
        os.kill(sleeper.pid, signal.SIGSTOP)
        lease = acquired(lake, 30)
        os.kill(sleeper.pid, signal.SIGCONT)
        tell(sleeper)
        assert said(sleeper).startswith("lost")
    lease.confirm()
    assert lease.token == 2
    lease.release()


@pytest.mark.parametrize("told", ["1970-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00"])
def test_time_of_day_decides_nothing(tmp_path: Path, told: str) -> None:
    """A dead holder whose clock was years off is replaced after its ttl, no sooner and no later."""
    store = Store(str(tmp_path))
    values = {"ttl_seconds": 0.6, "acquired_at": told, "renewed_at": told}
    store.write_bytes(lease_key("nightly", 3), json.dumps(values).encode())
    started = time.monotonic()
    lease = acquired(str(tmp_path), 30)
    assert 0.6 <= time.monotonic() - started < 2
    assert lease.token == 4
    lease.release()


def test_living_holder_whose_clock_is_off_is_left_alone(tmp_path: Path) -> None:
    store = Store(str(tmp_path))

    def renew(count: int) -> None:
        values = {"ttl_seconds": 0.6, "renewed_at": "1970-01-01T00:00:00+00:00", "renewals": count}
        store.write_bytes(lease_key("nightly", 3), json.dumps(values).encode())

    renew(0)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(Lease(store, "nightly", 0.6).acquire)
        for count in range(1, 10):
            time.sleep(0.15)
            renew(count)
        assert answer.result() is False


def test_contender_that_slept_does_not_fill_a_gap_below_newer_tokens(tmp_path: Path) -> None:
    """Tokens 1 to 4 were swept; a put of token 3 by a driver that looked long ago must not count."""
    store = Store(str(tmp_path))
    store.write_bytes(lease_key("nightly", 5), b"{}")

    class Sleeper(Lease):
        def holder(self):
            return type(newest)(2, b'{"released": true}')

    newest = Lease(store, "nightly").holder()
    assert newest is not None
    assert not Sleeper(store, "nightly").acquire()
    assert store.list(lease_prefix("nightly")) == [lease_key("nightly", 5)]


def test_holder_that_cannot_reach_the_store_stops_after_its_ttl(tmp_path: Path) -> None:
    lease = acquired(str(tmp_path / "lake"), 0.6)
    lease.check()
    (tmp_path / "lake").rename(tmp_path / "unplugged")
    (tmp_path / "lake").write_text("no folder any more")
    time.sleep(1.0)
    with pytest.raises(LeaseLost, match="could not be renewed"):
        lease.check()
    lease.release()  # nothing to release, and no error


class Cut(Store):
    """A lake whose network can be pulled out."""

    gone = False

    def write_bytes(self, key: str, data: bytes) -> None:
        if self.gone:
            raise StorageError("no route to host")
        super().write_bytes(key, data)


def test_no_two_trust_the_lease_at_the_same_time_whoever_comes_and_goes(tmp_path: Path) -> None:
    """Six drivers for some seconds; holders end orderly, or lose the network and work on until they must stop."""
    held: list[tuple[int, float, float]] = []  # token, first and last moment at which its holder trusted it
    end = time.monotonic() + 6

    def drive(seed: int) -> None:
        dice = random.Random(seed)
        while time.monotonic() < end:
            store = Cut(str(tmp_path))
            lease = Lease(store, "nightly", dice.choice([0.15, 0.3]))
            if not lease.acquire():
                time.sleep(dice.uniform(0, 0.1))
                continue
            first = last = time.monotonic()
            until = first + dice.uniform(0, 0.4)
            store.gone = dice.random() < 0.5
            while store.gone or time.monotonic() < until:
                now = time.monotonic()  # before the check: what is trusted after it was trusted then too
                try:
                    lease.check()
                except LeaseLost:
                    break
                last = now
                time.sleep(0.002)
            held.append((lease.token, first, last))
            with suppress(StorageError):
                lease.release()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(drive, range(6)))
    held.sort()
    assert len(held) >= 6 and len({token for token, *_ in held}) == len(held)
    for (_, _, last), (_, first, _) in itertools.pairwise(held):
        assert last <= first


def test_unreadable_lease_object_is_taken_over_in_the_end(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write_bytes(lease_key("nightly", 1), b'{"ttl_seconds": 0.2, "released": false}')
    store.write_bytes(f"{lease_prefix('nightly')}/notes.txt", b"left by a person")
    lease = acquired(str(tmp_path), 30)
    assert lease.token == 2
    lease.release()


def test_names_cannot_leave_the_folder_of_leases(tmp_path: Path) -> None:
    lease = Lease(Store(str(tmp_path)), "../../etc")
    assert lease.acquire()
    lease.release()
    assert [path.name for path in tmp_path.iterdir()] == ["leases"]
