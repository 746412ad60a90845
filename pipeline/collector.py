"""Deleting what a scan found to be garbage, so that a run which comes between loses nothing.

The dangerous case is an item that was tried long ago, left its stems without a marker, and is tried again while they
are being collected: the writer finds its stem there and does not store it again. It looks once more when its marker is
put, and stores what is missing; and the collector, after deleting, looks for markers that came meanwhile, and takes
back those whose stems are gone and stay gone. Either sees the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby

from pipeline.garbage import Findings, Garbage, Kind
from pipeline.keys import commit_key, commit_prefix
from pipeline.schema import StemRow
from pipeline.storage import Store
from pipeline.superseded import finish
from pipeline.tables import Tables
from pipeline.uploads import abort

_DELETES = 16
# Objects between two confirmations of the lease.
_BATCH = 5000
# How long a writer that put a marker may take to store a missing stem again.
SETTLE_SECONDS = 60.0
_STEMS = (Kind.UNCOMMITTED_STEMS, Kind.DROPPED_STEMS)


@dataclass(frozen=True)
class Collected:
    """What was deleted, what was spared because it was committed meanwhile, and the items that were taken back."""

    objects: int
    size_bytes: int
    spared: int
    withdrawn: tuple[str, ...]


def collect(
    store: Store,
    tables: Tables,
    findings: Findings,
    confirm: Callable[[], None],
    settle_seconds: float = SETTLE_SECONDS,
) -> Collected:
    """Finish drops, then delete the garbage. `confirm` is called before every batch, and raises to stop."""
    confirm()
    finish(store, tables, findings.unfinished_drops)
    deleted: list[Garbage] = []
    spared = 0
    withdrawn: list[str] = []
    for kind, group in groupby(findings.garbage, key=lambda found: found.kind):
        garbage = list(group)
        for batch in _by_configuration(garbage) if kind in _STEMS else _batches(garbage):
            confirm()
            before: set[str] = set()
            config = ""
            if kind in _STEMS:
                config = batch[0].key.split("/")[1]
                before = _committed(store, tables, config)
                batch, taken = _without(batch, {item[:12] for item in before})
                spared += taken
            with ThreadPoolExecutor(_DELETES) as pool:
                list(pool.map(lambda found: _delete(store, found), batch))
            deleted += batch
            if kind in _STEMS:
                folders = {found.key.split("/")[3] for found in batch}
                new = {item for item in _committed(store, tables, config) - before if item[:12] in folders}
                withdrawn += [item for item in sorted(new) if _withdraw(store, tables, config, item, settle_seconds)]
    return Collected(len(deleted), sum(found.size_bytes for found in deleted), spared, tuple(withdrawn))


def _committed(store: Store, tables: Tables, config: str) -> set[str]:
    """Items that a marker or a row speaks of, now."""
    markers = (key.rpartition("/")[2].removesuffix(".json") for key in store.list(commit_prefix(config)))
    return set(markers) | tables.committed_item_ids(config)


def _without(batch: Sequence[Garbage], committed: set[str]) -> tuple[list[Garbage], int]:
    left = [found for found in batch if found.key.split("/")[3] not in committed]
    return left, len(batch) - len(left)


def _withdraw(store: Store, tables: Tables, config: str, item: str, settle_seconds: float) -> bool:
    """Take a commit back unless both of its stems come to be there: then the item is made again."""
    deadline = time.monotonic() + settle_seconds
    marker = commit_key(config, item)
    while True:
        try:
            row = StemRow.model_validate_json(store.read_bytes(marker))
        except FileNotFoundError:
            return False
        if all(store.exists(store.key_of(url)) for url in (row.target_uri, row.residual_uri)):
            return False
        if time.monotonic() >= deadline:
            store.delete(marker)
            tables.delete_stems(config, [item])
            return True
        time.sleep(min(1.0, settle_seconds))


def _delete(store: Store, found: Garbage) -> None:
    if found.upload is not None:
        abort(store, found.upload)
    else:
        store.delete(found.key)


def _by_configuration(garbage: Sequence[Garbage]) -> Iterable[list[Garbage]]:
    for _, group in groupby(garbage, key=lambda found: found.key.split("/")[1]):
        yield from _batches(list(group))


def _batches(garbage: Sequence[Garbage]) -> Iterable[list[Garbage]]:
    for first in range(0, len(garbage), _BATCH):
        yield list(garbage[first : first + _BATCH])
