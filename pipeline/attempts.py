"""Tries that may kill their worker (crash, out of memory), counted in the store."""

from __future__ import annotations

from contextlib import suppress

from operators.errors import AssetError
from pipeline.items import Item
from pipeline.keys import attempt_key, attempts_prefix
from pipeline.metrics import count
from pipeline.storage import StorageError, Store


class Attempts:
    """Counts tries that may kill their worker, in the store, because the worker cannot tell.

    A note is put before the work and all of them are deleted after it; what dies leaves its note behind.
    """

    def __init__(self, store: Store, item: Item, segment: int, stage: str, limit: int) -> None:
        self.store, self.item, self.segment, self.stage, self.limit = store, item, segment, stage, limit
        prefix = attempts_prefix(item.item_id)
        start = f"{prefix}/{segment:06d}-{stage}-"
        self.earlier = [key for key in store.list(prefix) if key.startswith(start)]

    def check(self) -> None:
        if len(self.earlier) >= self.limit:
            raise AssetError(
                "worker_died",
                f"segment {self.segment} of {self.item.asset_id!r} ended its worker {len(self.earlier)} times "
                f"in {self.stage} (crash, out of memory or lost machine)",
                "check the asset, give workers more memory, then delete its notes under attempts/ and run again",
            )

    def __enter__(self) -> Attempts:
        self.check()
        if self.earlier:
            count("retries_total", stage=self.stage)
        self.note = attempt_key(self.item.item_id, self.segment, self.stage)
        self.store.write_bytes(self.note, b"")
        return self

    def __exit__(self, *_: object) -> None:
        # Also after an error: an exception is an answer, and has its own row.
        for key in [*self.earlier, self.note]:
            with suppress(StorageError):  # one that stays counts as a try; an error here would end the whole run
                self.store.delete(key)
