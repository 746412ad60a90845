"""What an archive still needs: what is new, what changed, what may be tried again, what an older model made.

A run of any job makes every item that its settings do not find committed. A `Selection` looks at the lake's history
first and leaves out what is good enough: stems that other settings made, failures that would only repeat.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Any

from operators.errors import AssetError
from pipeline.config import JobConfig
from pipeline.items import Task
from pipeline.job import Job
from pipeline.keys import attempts_prefix
from pipeline.plan import PROBES, Plan
from pipeline.prompts import anchors_json
from pipeline.schema import ManifestRow, bare_etag
from pipeline.storage import Store
from pipeline.tables import Tables
from pipeline.uris import redact

_REFRESH_BATCH = 4096
# What a manifest says of a file's content, and what is void when the content is another.
_PROBED = ("duration_seconds", "sample_rate", "channels", "codec", "container", "has_video", "probe_error")
_PROMPT_COLUMNS = ("asset_id", "description", "anchors_json", "mask_uri", "target_label", "residual_label")
_MADE_COLUMNS = ("item_id", "config_hash", "model_version", "source_etag", "source_size_bytes")


class Verdict(StrEnum):
    """Why an item is made, or is not."""

    NEW = "new"
    CHANGED = "changed"
    RETRY = "retry"
    OLDER_MODEL = "older model"
    OLDER_CONFIG = "older config"
    COMMITTED = "committed"
    KEPT_OLDER_MODEL = "made by an older model"
    KEPT_OLDER_CONFIG = "made with other settings"
    MOVED = "moved"
    FAILED_FOR_GOOD = "failed for good"
    GAVE_UP = "gave up"

    @property
    def is_made(self) -> bool:
        return self in (self.NEW, self.CHANGED, self.RETRY, self.OLDER_MODEL, self.OLDER_CONFIG)

    @property
    def meaning(self) -> str:
        return MEANINGS[self]


MEANINGS = {
    Verdict.NEW: "nothing was made of this asset with this prompt",
    Verdict.CHANGED: "the media file (or the mask) is another version than the stems were made of",
    Verdict.RETRY: "failed before with a cause that may have gone away (retry_causes)",
    Verdict.OLDER_MODEL: "another version of the model made its stems (stale)",
    Verdict.OLDER_CONFIG: "other settings made its stems (stale)",
    Verdict.COMMITTED: "these settings made its stems",
    Verdict.KEPT_OLDER_MODEL: "another version of the model made its stems; --stale older-than-model makes them again",
    Verdict.KEPT_OLDER_CONFIG: "other settings made its stems; --stale older-than-config makes them again",
    Verdict.MOVED: "the same content has stems under another URI",
    Verdict.FAILED_FOR_GOOD: "failed before, and would again until the file changes; --retry-cause CAUSE tries it",
    Verdict.GAVE_UP: "failed in as many runs as retry_limit allows",
}


@dataclass(frozen=True, slots=True)
class Made:
    """A committed item, as the stems table has it."""

    item_id: str
    config_hash: str
    model_version: str
    source_etag: str | None
    source_size_bytes: int | None

    def is_of(self, row: ManifestRow) -> bool:
        """Whether it was made of the version of the file that the row names."""
        if row.etag is not None:
            return self.source_etag == row.etag
        return row.size_bytes is not None and self.source_size_bytes == row.size_bytes


@dataclass(frozen=True, slots=True)
class Failed:
    """How an item failed: in how many runs, and the cause of the last."""

    runs: int
    cause: str


class History:
    """What the lake's tables say was made, by prompt, and what failed, by item. A million: 0.7 GB, 17 s."""

    def __init__(self, tables: Tables) -> None:
        self.made: dict[bytes, list[Made]] = {}
        for batch in tables.read("stems", [*_PROMPT_COLUMNS, *_MADE_COLUMNS]).to_batches():
            for row in batch.to_pylist():
                values = [row[name] for name in _MADE_COLUMNS]
                values[1:3] = map(sys.intern, values[1:3])  # few values, many rows
                self.made.setdefault(_key(*(row[name] for name in _PROMPT_COLUMNS)), []).append(Made(*values))
        self.failed: dict[str, Failed] = {}
        rows = tables.read("failures", ["item_id", "cause", "failed_at"]).sort_by("failed_at")
        for batch in rows.select(["item_id", "cause"]).to_batches():
            for item, cause in zip(*batch.to_pydict().values(), strict=True):
                before = self.failed.get(item)
                self.failed[item] = Failed(before.runs + 1 if before else 1, sys.intern(cause))


class Selection:
    """Which items of a manifest a scheduled run makes, and why the others are left alone.

    `changed_only`: ask the store for every file's version unless the settings trust the manifest.
    """

    def __init__(self, job: Job) -> None:
        self.config, self.store, self.config_hash = job.config, job.store, job.config_hash
        self.model_version = job.facts.version
        self.history = History(job.tables)
        self.counts: Counter[Verdict] = Counter()
        # Items that the manifest asks for now, by prompt: what superseded stems are measured against.
        self.current: dict[bytes, set[str]] = {}
        self.again: list[str] = []
        self._open: dict[str, Verdict] = {}
        self._lock = threading.Lock()

    def records(self, records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The manifest's records, with the present version of files that changed since they were listed."""
        if self.config.trust_manifest:
            yield from records
            return
        records = iter(records)
        with ThreadPoolExecutor(PROBES) as pool:
            while batch := list(islice(records, _REFRESH_BATCH)):
                yield from pool.map(lambda record: refreshed(record, self.store), batch)

    def wanted(self, row: ManifestRow, task: Task, item_id: str) -> bool:
        """Whether the item is to be made. Counts its verdict."""
        key = task_key(row, task)
        verdict = self.verdict(row, task, item_id)
        with self._lock:
            known = self.current.setdefault(key, set())
            if item_id not in known:
                known.add(item_id)
                self.counts[verdict] += 1
                if verdict.is_made:
                    self._open[item_id] = verdict
                if verdict is Verdict.RETRY and self.history.failed[item_id].cause == "worker_died":
                    self.again.append(item_id)
        return verdict.is_made

    def verdict(self, row: ManifestRow, task: Task, item_id: str) -> Verdict:
        made = self.history.made.get(task_key(row, task), [])
        if any(m.item_id == item_id and m.config_hash == self.config_hash for m in made):
            return Verdict.COMMITTED
        if item_id in self.history.failed:
            return self._after_failure(item_id)
        if not made:
            return Verdict.NEW
        of_this_version = [m for m in made if m.is_of(row)]
        if not of_this_version:
            return Verdict.CHANGED
        if any(m.config_hash == self.config_hash for m in of_this_version):
            # The same content in the same configuration, and another item: its URI is another, or its mask.
            return Verdict.CHANGED if task.prompt.mask_uri else Verdict.MOVED
        if any(m.model_version == self.model_version for m in of_this_version):
            wanted = self.config.stale == "older-than-config"
            return Verdict.OLDER_CONFIG if wanted else Verdict.KEPT_OLDER_CONFIG
        return Verdict.KEPT_OLDER_MODEL if self.config.stale == "none" else Verdict.OLDER_MODEL

    def _after_failure(self, item_id: str) -> Verdict:
        failed = self.history.failed[item_id]
        if failed.cause not in self.config.retry_causes:
            return Verdict.FAILED_FOR_GOOD
        return Verdict.RETRY if failed.runs < self.config.retry_limit else Verdict.GAVE_UP

    def prune(self, plan: Plan) -> None:
        """Take rows out of the plan's rejected that were rejected before, and would only fill the failures table."""
        fresh = []
        for rejected in plan.rejected:
            if (counted := self._open.pop(rejected.item_id, None)) is not None:
                self.counts[counted] -= 1  # wanted, but the file turned out to be no good
            before = self.history.failed.get(rejected.item_id)
            known = before is not None and before.cause == rejected.error.cause
            verdict = self._after_failure(rejected.item_id) if known else Verdict.NEW
            if verdict.is_made:
                fresh.append(rejected)
            else:
                self.counts[verdict] += 1
        plan.skipped += len(plan.rejected) - len(fresh)
        plan.rejected = fresh

    def begin(self) -> None:
        """Before the work: items that killed their workers, and are to be tried again, start with a clean slate."""
        for item in self.again:
            self.store.delete_prefix(attempts_prefix(item))

    def superseded(self, committed: set[str]) -> list[tuple[Made, str]]:
        """Earlier stems of prompts whose present item is among `committed`, each with that item's id."""
        found = []
        for key, present in self.current.items():
            newer = sorted(present & committed)
            if newer:
                found += [(made, newer[0]) for made in self.history.made.get(key, []) if made.item_id not in present]
        return found

    def describe(self) -> str:
        """The counts, one verdict a line."""
        lines = [
            f"  {'make' if verdict.is_made else 'skip'}  {self.counts[verdict]:>9,}  {verdict}: {verdict.meaning}"
            for verdict in Verdict
            if self.counts[verdict]
        ]
        return "\n".join(lines) or "  no items"


def refreshed(record: dict[str, Any], store: Store) -> dict[str, Any]:
    """The record with the present version of its file, when that is another than the one listed.

    What was probed of the old version is then unknown again. A file that cannot be asked for stays as it was listed:
    its stems may be committed, and if they are not, decoding says what is wrong.
    """
    uri, etag, size = record.get("uri"), record.get("etag"), record.get("size_bytes")
    listed = isinstance(etag, str) or isinstance(size, int)
    if not isinstance(uri, str) or not listed:
        return record  # the planner asks for it anyway
    try:
        found = store.stat_media(uri)
    except AssetError:
        return record
    version = bare_etag(etag) if isinstance(etag, str) else ""
    if (version == found.etag) if version else (size == found.size_bytes):
        return record
    unknown = {name: None for name in _PROBED if name in record}
    return {**record, **unknown, "etag": found.etag, "size_bytes": found.size_bytes}


def task_key(row: ManifestRow, task: Task) -> bytes:
    prompt = task.prompt
    mask = redact(prompt.mask_uri) if prompt.mask_uri else None
    anchors = anchors_json(prompt.anchors)
    return _key(row.asset_id, prompt.description, anchors, mask, task.target_label, task.residual_label)


def _key(asset_id: str, description: str | None, *rest: str | None) -> bytes:
    """An asset with a prompt, whatever the version of its file and the settings."""
    return hashlib.blake2b(json.dumps([asset_id, description or "", *rest]).encode(), digest_size=16).digest()


def selections(config: JobConfig) -> Sequence[str]:
    """The settings that decide a selection, as a person reads them."""
    return (
        f"stale {config.stale}",
        f"retry {', '.join(config.retry_causes) or 'nothing'} in up to {config.retry_limit} runs",
        "versions as the manifest lists them" if config.trust_manifest else "versions as the store has them now",
        f"superseded stems {'are kept' if config.superseded == 'keep' else 'are dropped'}",
    )
