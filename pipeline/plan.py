"""From a manifest to the segments that are still to be done.

An item is an asset with a prompt under a configuration. Its id comes from those alone, so any driver, at any time,
plans the same items; what the commit markers and the stored parts say is done is left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pds

from operators.describe import ModelFacts
from operators.errors import AssetError
from operators.media import probe
from operators.segments import Segment, cut
from pipeline.config import JobConfig, JobConfigError
from pipeline.filesystems import filesystem
from pipeline.keys import part_key, parts_prefix
from pipeline.schema import Anchor, ManifestRow, anchors_json
from pipeline.storage import Store, media_errors
from pipeline.uris import locate

# Probes wait for the object store, not for the processor.
PROBES = 16
# A halo of one window on either side is then 9 % of the work.
SEGMENT_WINDOWS = 20


@dataclass(frozen=True)
class Item:
    """One asset with one prompt: the unit of work and of commit."""

    item_id: str
    asset_id: str
    uri: str
    etag: str
    size_bytes: int
    duration_seconds: float
    description: str
    anchors: tuple[tuple[str, float, float], ...]
    metadata_json: str | None
    segment_count: int

    @property
    def noise_key(self) -> str:
        """What the noise depends on beside the frame: not the configuration, so that segments can be cut anew."""
        identity = [self.asset_id, self.etag, self.size_bytes, self.description, self.anchors]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


@dataclass(frozen=True)
class Work:
    """One segment of one asset and the items that want it; without a segment their parts are only to be joined."""

    items: tuple[Item, ...]
    segment: Segment | None
    total_frames: int

    @property
    def asset(self) -> Item:
        """Any of the items: they share the asset."""
        return self.items[0]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Work:
        values = json.loads(text)
        items = tuple(
            Item(**{**item, "anchors": tuple(tuple(anchor) for anchor in item["anchors"])}) for item in values["items"]
        )
        segment = values["segment"]
        return cls(items, Segment(**segment) if segment else None, values["total_frames"])


@dataclass(frozen=True)
class Rejected:
    """A manifest row, or an item of it, that cannot be planned."""

    item_id: str
    asset_id: str
    uri: str
    metadata_json: str | None
    error: AssetError


@dataclass
class Plan:
    """`todo` holds the work, longest assets first; the counts are of items."""

    todo: list[Work] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    items: int = 0
    skipped: int = 0
    audio_seconds: float = 0.0

    @property
    def open_items(self) -> dict[str, Item]:
        return {item.item_id: item for work in self.todo for item in work.items}


def read_manifest(url: str, limit: int | None = None) -> Iterator[dict[str, Any]]:
    """Records of a manifest (a Parquet file or a folder of them). Raises JobConfigError when there is none."""
    location = locate(url)
    try:
        dataset = pds.dataset(location.path, filesystem=filesystem(location.scheme), format="parquet")
        missing = {"asset_id", "uri"} - set(dataset.schema.names)
        if missing:
            raise JobConfigError(
                f"manifest {url} has no column {' and no column '.join(sorted(missing))}; "
                "make it with jobs/build_manifest.py, or add the columns"
            )
        left = limit
        for batch in dataset.to_batches(batch_size=4096):
            yield from batch.to_pylist()[:left]
            if left is not None:
                left -= min(left, len(batch))
                if not left:
                    return
    except (FileNotFoundError, pa.ArrowInvalid, OSError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise JobConfigError(
            f"manifest {url} cannot be read ({first}); give a Parquet file or a folder of them"
        ) from None


def item_id(row: ManifestRow, description: str, anchors: Sequence[Anchor], config_hash: str) -> str:
    """32 hex digits of all that identifies an item."""
    version = row.etag or f"size-{row.size_bytes}"
    identity = [row.asset_id, row.uri, version, description, [list(a) for a in anchors], config_hash]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]


def complete(row: ManifestRow, store: Store) -> ManifestRow:
    """The row with what it did not say: source version, duration, channels. Raises AssetError."""
    if row.etag is None or row.size_bytes is None:
        found = store.stat_media(row.uri)
        row = row.model_copy(update={"etag": found.etag, "size_bytes": found.size_bytes})
    if row.duration_seconds is None:
        with media_errors(row.uri), store.open_media(row.uri) as file:
            info = probe(file, row.uri)
        row = row.model_copy(update={"duration_seconds": info.duration_seconds, "channels": info.channels})
    if not row.duration_seconds:
        raise AssetError("empty_file", f"{row.uri} lasts 0 s", "take the row out of the manifest")
    return row


def core_and_halo(config: JobConfig, facts: ModelFacts) -> tuple[int, int]:
    """Frames of a segment's core and of the halo on either side. Raises JobConfigError when they do not go together."""
    # Cores on the window grid, so that neighbours agree exactly where they are joined.
    grid = facts.stride_frames
    wanted = SEGMENT_WINDOWS * facts.window_frames
    if config.segment_seconds is not None:
        wanted = facts.frames(config.segment_seconds)
    halo = facts.halo_frames if config.halo_seconds is None else facts.frames(config.halo_seconds)
    core = max(grid, round(wanted / grid) * grid)
    if config.halo_seconds is not None and halo >= core:
        seconds = core * facts.hop_length / facts.sample_rate
        raise JobConfigError(
            f"halo_seconds {config.halo_seconds:g} must be smaller than a segment ({seconds:g} s); "
            "make it smaller, or set a longer segment_seconds"
        )
    return core, halo


class Planner:
    """Plans with one configuration. `committed` are the ids of items that need nothing more."""

    def __init__(
        self, config: JobConfig, store: Store, facts: ModelFacts, config_hash: str, committed: set[str]
    ) -> None:
        self.config, self.store, self.facts = config, store, facts
        self.config_hash, self.committed = config_hash, committed
        self.core, self.halo = core_and_halo(config, facts)

    def plan(self, records: Iterable[dict[str, Any]]) -> Plan:
        plan = Plan()
        with ThreadPoolExecutor(PROBES) as pool:
            planned = pool.map(self._plan_record, records)
            works: list[tuple[float, list[Work]]] = []
            seen: dict[str, str] = {}
            for rejected, items, total, skipped in planned:
                fresh = []
                for item in items:
                    if seen.setdefault(item.item_id, item.uri) == item.uri and item not in fresh:
                        fresh.append(item)
                plan.rejected += rejected
                plan.items += len(fresh) + len(rejected) + skipped
                plan.skipped += skipped
                if fresh:
                    plan.audio_seconds += fresh[0].duration_seconds
                    works.append((fresh[0].duration_seconds, self._works(fresh, total)))
        works.sort(key=lambda pair: -pair[0])
        plan.todo = [work for _, group in works for work in group]
        return plan

    def _plan_record(self, record: dict[str, Any]) -> tuple[list[Rejected], list[Item], int, int]:
        try:
            row = ManifestRow.from_record(record)
        except AssetError as error:
            digest = hashlib.sha256(json.dumps(record, default=str, sort_keys=True).encode()).hexdigest()[:32]
            asset, uri = str(record.get("asset_id") or "?")[:2048], str(record.get("uri") or "?")[:4096]
            return [Rejected(digest, asset, uri, None, error)], [], 0, 0
        prompts = [(d, row.anchors or self.config.anchors) for d in self._descriptions(row)]
        ids = [item_id(row, d, a, self.config_hash) for d, a in prompts]
        try:
            if not prompts:
                raise AssetError(
                    "no_prompt",
                    f"asset {row.asset_id!r} has no description and the job has none",
                    "give --descriptions, or a description column in the manifest",
                    field="description",
                )
            if row.etag is None and row.size_bytes is None:
                row = complete(row, self.store)
                ids = [item_id(row, d, a, self.config_hash) for d, a in prompts]
            left = [(i, p) for i, p in zip(ids, prompts, strict=True) if i not in self.committed]
            skipped = len(ids) - len(left)
            if not left:
                return [], [], 0, skipped
            row = complete(row, self.store)
            self.store.locate_media(row.uri)
        except AssetError as error:
            rejected = [
                Rejected(i, row.asset_id, row.uri, row.metadata_json, error)
                for i in (ids or [item_id(row, "", (), self.config_hash)])
                if i not in self.committed
            ]
            return rejected, [], 0, max(len(ids) - len(rejected), 0)
        assert row.duration_seconds is not None and row.size_bytes is not None and row.etag is not None
        total = self.facts.frames(row.duration_seconds)
        count = len(cut(total, self.core, self.halo))
        items = [
            Item(
                item_id=i,
                asset_id=row.asset_id,
                uri=row.uri,
                etag=row.etag,
                size_bytes=row.size_bytes,
                duration_seconds=row.duration_seconds,
                description=description,
                anchors=tuple((a.token, a.start, a.end) for a in anchors),
                metadata_json=row.metadata_json,
                segment_count=count,
            )
            for i, (description, anchors) in left
        ]
        return [], items, total, skipped

    def _descriptions(self, row: ManifestRow) -> tuple[str, ...]:
        return (row.description,) if row.description else self.config.descriptions

    def _works(self, items: list[Item], total: int) -> list[Work]:
        segments = cut(total, self.core, self.halo)
        if len(segments) == 1:
            return [Work(tuple(items), segments[0], total)]
        stored = {item.item_id: stored_parts(self.store, self.config_hash, item) for item in items}
        works = []
        for segment in segments:
            wanting = tuple(item for item in items if segment.index not in stored[item.item_id])
            if wanting:
                works.append(Work(wanting, segment, total))
        # All parts are there and no marker: the run that wrote the last one died before it joined them.
        works += [Work((item,), None, total) for item in items if len(stored[item.item_id]) == len(segments)]
        return works


def part_names(config_hash: str, item: Item, index: int) -> tuple[str, str]:
    """Keys of the target's and the residual's part. Parts are float WAV: overs survive the join."""
    count = item.segment_count
    return (
        part_key(config_hash, item.item_id, index, count, "target", "wav"),
        part_key(config_hash, item.item_id, index, count, "residual", "wav"),
    )


def stored_parts(store: Store, config_hash: str, item: Item) -> set[int]:
    """Segments of which both stems are stored."""
    found = set(store.list(parts_prefix(config_hash, item.item_id)))
    if not found:
        return set()
    return {i for i in range(item.segment_count) if set(part_names(config_hash, item, i)) <= found}


def anchors_text(item: Item) -> str | None:
    return anchors_json([Anchor(*anchor) for anchor in item.anchors])
