"""A lease in the object store: of the drivers of one schedule one works at a time, and a killed one is replaced.

Every holder puts an object of its own, `leases/<name>/<token>.json`, with `If-None-Match: *`: the highest token is the
lease, and of two that put the same token one wins. Renewing overwrites the own object; releasing marks it; taking over
puts the next token. Tokens only grow, so they serve as fencing tokens: what a holder leaves behind names its token, and
a holder that finds a higher one stops.

No two clocks are ever compared. A contender takes over when it has watched the newest object stay the same for the
holder's `ttl_seconds` and a tenth more, by its own clock; the holder stops trusting its lease `ttl_seconds` after it
began its last successful renewal, by its own. Assumed: clocks of different machines may tell any time, but run at the
same pace within a tenth, and the store shows a write to whoever reads or lists after it (S3, GCS, Azure and local disks
do). What a machine that sleeps has begun may still end after its lease was lost: such work must be harmless when it is
done twice (commit markers are), and what is not calls `confirm` first. A holder that hangs keeps its lease as long as
its process lives: a schedule bounds that (`activeDeadlineSeconds`).
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pipeline.keys import lease_key, lease_prefix
from pipeline.schema import utc_now
from pipeline.storage import StorageError, Store

# A holder may miss two renewals before it loses the lease.
RENEWALS_PER_TTL = 3
# How much faster a contender's clock may run than the holder's.
PACE_MARGIN = 1.1
# An object that asks for more was not written by this code; waiting for it must end all the same.
MAX_TTL_SECONDS = 3600.0


class LeaseLost(Exception):
    """Another driver has taken over, or the store could not be reached for too long: stop working."""


@dataclass(frozen=True)
class Holder:
    """The newest object of a lease, as it was read."""

    token: int
    content: bytes

    @property
    def values(self) -> dict[str, Any]:
        """What the object says; empty when it is no JSON object."""
        try:
            values = json.loads(self.content)
        except ValueError:
            return {}
        return values if isinstance(values, dict) else {}

    @property
    def ttl_seconds(self) -> float:
        try:
            return min(max(float(self.values["ttl_seconds"]), 0.0), MAX_TTL_SECONDS)
        except (KeyError, TypeError, ValueError):
            return MAX_TTL_SECONDS

    def __str__(self) -> str:
        said = self.values
        return (
            f"{said.get('owner', 'an unknown driver')} (token {self.token}, since {said.get('acquired_at', '?')}, "
            f"renewed {said.get('renewed_at', '?')})"
        )


def clock() -> float:
    """Seconds that pass on this machine, also while it sleeps; not the time of day, which may jump."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Lease:
    """One driver's side of the lease `name` in a lake.

    `ttl_seconds`: how long a holder that died blocks the others. StorageError when the lake cannot be used.
    """

    def __init__(self, store: Store, name: str, ttl_seconds: float = 60.0, job: str = "") -> None:
        if not 0 < ttl_seconds <= MAX_TTL_SECONDS:
            raise ValueError(f"ttl_seconds {ttl_seconds:g}: use more than 0 and at most {MAX_TTL_SECONDS:g}")
        self.store, self.name, self.ttl_seconds, self.job = store, name, ttl_seconds, job
        self.owner = f"{job or 'driver'}@{platform.node()}:{os.getpid()}"
        self.token = 0
        self._identity = uuid.uuid4().hex
        self._acquired_at = ""
        self._renewals = 0
        self._trusted_until = 0.0
        self._lost: str | None = None
        self._busy = threading.Lock()
        self._ended = threading.Event()

    def holder(self) -> Holder | None:
        """Who has, or had, the lease; None when nobody ever did."""
        for _ in range(10):
            tokens = self._tokens()
            if not tokens:
                return None
            with suppress(FileNotFoundError):  # a newer holder has just swept it away
                return Holder(max(tokens), self.store.read_bytes(lease_key(self.name, max(tokens))))
        raise StorageError(f"lease {self.name}: its newest object is listed and cannot be read")

    def acquire(self) -> bool:
        """Take the lease. False when another driver holds it and is alive, or was faster.

        Returns at once when it is free; else it watches the holder, for at most 1.1 times the holder's ttl.
        """
        before = self.holder()
        if before is not None and not before.values.get("released") and not self._is_dead(before):
            return False
        token = before.token + 1 if before else 1
        self._acquired_at = utc_now().isoformat(timespec="seconds")
        started = clock()
        content = self._content(token)
        key = lease_key(self.name, token)
        try:
            # A put whose answer was lost, and was sent again, is refused by itself: then the content tells.
            if not self.store.put_if_absent(key, content) and self.store.read_bytes(key) != content:
                return False
        except FileNotFoundError:
            return False  # won and swept by others meanwhile
        tokens = self._tokens()
        if max(tokens, default=0) != token:  # we slept since we looked: the put filled a gap below newer tokens
            self.store.delete(key)
            return False
        self.token, self._trusted_until = token, started + self.ttl_seconds
        for old in tokens[:-1]:
            self.store.delete(lease_key(self.name, old))
        threading.Thread(target=self._keep, name=f"lease-{self.name}", daemon=True).start()
        return True

    def check(self) -> None:
        """Raise LeaseLost unless the lease is still ours. Costs nothing: for every step of the work."""
        if self._lost is None and clock() >= self._trusted_until:
            self._lost = f"it could not be renewed for {self.ttl_seconds:g} s"
        if self._lost is not None or not self.token:
            raise LeaseLost(
                f"lease {self.name}, token {self.token}: {self._lost or 'it was never acquired'}; this driver stops, "
                "and what it committed stays"
            )

    def confirm(self) -> None:
        """Renew now, in the store, or raise LeaseLost: before what must not be done by two."""
        self.check()
        self._renew()
        self.check()

    def release(self) -> None:
        """Let the next driver in at once. Does nothing when the lease is not ours any more."""
        self._ended.set()
        with self._busy, suppress(LeaseLost):
            self.check()
            self._lost = "it was released"  # before the others can know
            if max(self._tokens(), default=0) == self.token:
                self.store.write_bytes(lease_key(self.name, self.token), self._content(self.token, released=True))

    def __enter__(self) -> Lease:
        self.check()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(StorageError):  # then it expires
            self.release()

    def _keep(self) -> None:
        while not self._ended.wait(self.ttl_seconds / RENEWALS_PER_TTL):
            try:
                self.check()
                self._renew()
            except LeaseLost:
                return
            except Exception:  # the store may come back before the lease ends; `check` knows when it has
                continue

    def _renew(self) -> None:
        with self._busy:
            if self._ended.is_set():
                return
            started = clock()
            self._renewals += 1
            self.store.write_bytes(lease_key(self.name, self.token), self._content(self.token))
            if clock() >= self._trusted_until:  # a contender may have looked before this renewal could be seen
                self._lost = f"its renewal took until {self.ttl_seconds:g} s after the last one"
                return
            newest = max(self._tokens(), default=0)
            if newest == self.token:
                self._trusted_until = started + self.ttl_seconds
                return
            self._lost = f"another driver took over with token {newest}"
            self.store.delete(lease_key(self.name, self.token))  # its sweep came before this renewal

    def _is_dead(self, before: Holder) -> bool:
        """Whether the holder's object stays the same for longer than a living holder would leave it."""
        wait = before.ttl_seconds * PACE_MARGIN
        started = clock()
        while clock() < started + wait:
            time.sleep(min(wait / 8, 5.0))
            if self.holder() != before:
                return False
        return True

    def _tokens(self) -> list[int]:
        names = (key.rpartition("/")[2].removesuffix(".json") for key in self.store.list(lease_prefix(self.name)))
        return sorted(int(name) for name in names if name.isdigit())

    def _content(self, token: int, released: bool = False) -> bytes:
        values = {
            "owner": self.owner,
            "identity": self._identity,
            "token": token,
            "ttl_seconds": self.ttl_seconds,
            "renewals": self._renewals,
            "released": released,
            # For people: nothing is decided by these.
            "acquired_at": self._acquired_at,
            "renewed_at": utc_now().isoformat(timespec="seconds"),
        }
        return json.dumps(values).encode()
