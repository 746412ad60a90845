"""What nobody needs any more in a lake: found by listing, judged by markers and tables, and by a grace time.

Nothing younger than the grace time is garbage, by the store's own clock: a run that is under way, or was killed and
will be continued, keeps what it has. A stem that a row of the table or a marker points to is never garbage.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from pipeline.filesystems import TEMPORARY
from pipeline.keys import commit_prefix, parts_prefix, tombstones_prefix
from pipeline.storage import Entry, Store
from pipeline.superseded import Tombstone
from pipeline.tables import Tables
from pipeline.uploads import Upload, unfinished

_FOLDERS = ("stems", "parts", "commits", "attempts", "leases", "tombstones")
# A note of work that killed its worker is what keeps the item from doing it again.
_KILLER = "worker_died"


class Kind(StrEnum):
    """In the order of deletion: a tombstone goes after the stems it speaks of."""

    PARTS_OF_COMMITTED = "parts of committed items"
    ABANDONED_PARTS = "parts that no run continued"
    UNCOMMITTED_STEMS = "stems without a commit"
    DROPPED_STEMS = "stems of dropped items"
    ATTEMPTS = "notes of attempts"
    TEMPORARY_FILES = "unfinished files of killed writers"
    UPLOADS = "unfinished uploads"
    TOMBSTONES = "tombstones"


@dataclass(frozen=True)
class Garbage:
    """One object. `age_seconds` is what was compared with the grace time."""

    kind: Kind
    key: str
    size_bytes: int
    age_seconds: float
    upload: Upload | None = None


@dataclass
class Findings:
    """What a scan found. `unfinished_drops` are to be finished before anything is deleted.

    `without_stems` are markers whose stems are not there, `without_marker` rows without a marker: neither is garbage,
    and both want a person.
    """

    garbage: list[Garbage] = field(default_factory=list)
    unfinished_drops: list[Tombstone] = field(default_factory=list)
    without_stems: list[str] = field(default_factory=list)
    without_marker: list[tuple[str, str]] = field(default_factory=list)
    kept_bytes: int = 0


class Scan:
    """One look over a lake; `now` in seconds since 1970 by the store's clock. Memory: about 1 KB an object of one
    configuration, and 0.2 KB a committed item."""

    def __init__(self, store: Store, tables: Tables, now: float, grace_seconds: float) -> None:
        self.store, self.tables, self.now, self.grace = store, tables, now, grace_seconds
        self.findings = Findings()
        self.committed: set[str] = set()

    def run(self) -> Findings:
        configs = {
            name for folder in ("stems", "parts", "commits", "tombstones") for name in self.store.folders(folder)
        }
        for config in sorted(configs):
            self._configuration(config)
        self._attempts()
        for folder in _FOLDERS:
            for entry in self.store.entries(folder) if self.store.scheme == "file" else ():
                if _name(entry).startswith(TEMPORARY):
                    self._add(Kind.TEMPORARY_FILES, [entry], self.now - entry.modified)
        for upload in unfinished(self.store):
            if self.now - upload.started > self.grace:
                age = self.now - upload.started
                self.findings.garbage.append(Garbage(Kind.UPLOADS, upload.key, 0, age, upload))
        order = list(Kind)
        self.findings.garbage.sort(key=lambda found: (order.index(found.kind), found.key))
        return self.findings

    def _configuration(self, config: str) -> None:
        # Stems and parts before markers: what is committed between the listings is then seen to be.
        stems = _grouped(self.store.entries(f"stems/{config}"), 4)
        parts = _grouped(self.store.entries(parts_prefix(config)), 3)
        stones, stone_times = self._tombstones(config)
        markers = {_stem(entry): entry.modified for entry in _finished(self.store.entries(commit_prefix(config)))}
        rows = self.tables.committed_item_ids(config)
        for item, stone in stones.items():
            made_anew = markers.get(item, float("-inf")) > stone_times[item]
            if (item in markers or item in rows) and not made_anew:
                self.findings.unfinished_drops.append(stone)
                markers.pop(item, None)
                rows.discard(item)
        self.committed |= markers.keys()
        self.findings.without_marker += [(config, item) for item in sorted(rows - markers.keys())]

        for (*_, item), entries in parts.items():
            newest = max(entry.modified for entry in entries)
            kind = Kind.PARTS_OF_COMMITTED if item in markers else Kind.ABANDONED_PARTS
            self._add(kind, entries, self.now - newest)
        # Folders of stems carry the first 12 digits of the item.
        protected = {item[:12] for item in markers} | {item[:12] for item in rows}
        dropped = {item[:12]: stone_times[item] for item in stones}
        for (*_, short), entries in stems.items():
            if short in protected:
                self.findings.kept_bytes += sum(entry.size_bytes for entry in entries)
                continue
            # Dropped stems may be old: their grace begins with the drop.
            since = max(dropped.get(short, 0.0), *(entry.modified for entry in entries))
            kind = Kind.DROPPED_STEMS if short in dropped else Kind.UNCOMMITTED_STEMS
            self._add(kind, entries, self.now - since)
        there = {group[-1] for group in stems}
        self.findings.without_stems += [
            f"{commit_prefix(config)}/{item}.json"
            for item, modified in sorted(markers.items())
            if item[:12] not in there and self.now - modified > self.grace
        ]

    def _tombstones(self, config: str) -> tuple[dict[str, Tombstone], dict[str, float]]:
        entries = {entry.key: entry for entry in _finished(self.store.entries(tombstones_prefix(config)))}
        stones: dict[str, Tombstone] = {}
        times: dict[str, float] = {}
        for key, content in self.store.read_many(sorted(entries)):
            stone = Tombstone.from_json(key, content)
            stones[stone.item_id], times[stone.item_id] = stone, entries[key].modified
            self._add(Kind.TOMBSTONES, [entries[key]], self.now - entries[key].modified)
        return stones, times

    def _attempts(self) -> None:
        notes = _grouped(self.store.entries("attempts"), 2)
        if not notes:
            return
        rows = self.tables.read("failures", ["item_id", "cause"], ("cause", "=", _KILLER))
        killers = set(rows.column("item_id").to_pylist())
        for (*_, item), entries in notes.items():
            if item in self.committed or item not in killers:
                self._add(Kind.ATTEMPTS, entries, self.now - max(entry.modified for entry in entries))

    def _add(self, kind: Kind, entries: Iterable[Entry], age: float) -> None:
        if age > self.grace:
            self.findings.garbage += [Garbage(kind, entry.key, entry.size_bytes, age) for entry in entries]


def _grouped(entries: Iterable[Entry], depth: int) -> dict[tuple[str, ...], list[Entry]]:
    """Finished objects by the first `depth` segments of their keys: by the item whose folder they lie in."""
    groups: dict[tuple[str, ...], list[Entry]] = {}
    for entry in _finished(entries):
        segments = entry.key.split("/")
        if len(segments) > depth:
            groups.setdefault(tuple(segments[:depth]), []).append(entry)
    return groups


def _finished(entries: Iterable[Entry]) -> Iterable[Entry]:
    return (entry for entry in entries if not _name(entry).startswith(TEMPORARY))


def _name(entry: Entry) -> str:
    return entry.key.rpartition("/")[2]


def _stem(entry: Entry) -> str:
    """The item that a marker is of."""
    return _name(entry).removesuffix(".json")
