"""Taking committed items back: those that newer ones replaced, and those whose stems were lost.

A drop is written down first, as a tombstone; then the marker goes, then the row. Whoever finds a tombstone can finish
the drop. The stems stay until jobs/collect_garbage.py finds the tombstone old enough: who has just read their URL in
the table can still open them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Self

from pipeline.keys import commit_key, tombstone_key
from pipeline.stale import Made
from pipeline.storage import StorageError, Store
from pipeline.tables import Tables

# Rows of one table commit; the lease is confirmed before each.
_BATCH = 500


@dataclass(frozen=True)
class Tombstone:
    """A dropped item. `token` is the fencing token of the lease under which it was dropped."""

    config_hash: str
    item_id: str
    superseded_by: str
    superseded_by_config: str
    token: int

    @property
    def key(self) -> str:
        return tombstone_key(self.config_hash, self.item_id)

    @property
    def marker(self) -> str:
        return commit_key(self.config_hash, self.item_id)

    def to_json(self) -> bytes:
        return json.dumps(vars(self)).encode()

    @classmethod
    def from_json(cls, key: str, content: bytes) -> Self:
        try:
            return cls(**json.loads(content))
        except (TypeError, ValueError):
            raise StorageError(f"{key} is not a tombstone of this pipeline; remove it") from None


def drop(
    store: Store,
    tables: Tables,
    superseded: Sequence[tuple[Made, str]],
    config_hash: str,
    token: int,
    confirm: Callable[[], None],
) -> int:
    """Drop committed items, each with the id of the item of `config_hash` that replaces it; how many were dropped.

    `confirm` is called before every batch, and raises when another driver has taken over.
    """
    dropped = 0
    for batch in _batches(superseded):
        confirm()
        stones = []
        for made, newer in batch:
            # What replaces it must be there: a marker, not only a row that a table may show late.
            if store.exists(commit_key(config_hash, newer)):
                stones.append(Tombstone(made.config_hash, made.item_id, newer, config_hash, token))
        for stone in stones:
            store.write_bytes(stone.key, stone.to_json())
        finish(store, tables, stones)
        dropped += len(stones)
    return dropped


def finish(store: Store, tables: Tables, stones: Sequence[Tombstone]) -> None:
    """Delete markers and rows of tombstones; again does no harm."""
    by_config: dict[str, list[str]] = {}
    for stone in stones:
        # Before the row: with a marker left, another run would bring the row back.
        store.delete(stone.marker)
        by_config.setdefault(stone.config_hash, []).append(stone.item_id)
    for config, items in by_config.items():
        tables.delete_stems(config, items)


def _batches(items: Iterable[tuple[Made, str]]) -> Iterable[list[tuple[Made, str]]]:
    items = iter(items)
    while batch := list(islice(items, _BATCH)):
        yield batch
