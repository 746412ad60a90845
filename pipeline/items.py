"""Items of work, and what names them: ids, keys of their parts, their JSON on the way through the stages.

An item is an asset with a prompt under a configuration. Its id comes from those alone, so any driver, at any time,
plans the same items.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from operators.errors import AssetError
from operators.segments import Segment
from pipeline.keys import part_key, parts_prefix
from pipeline.prompts import Anchor, Prompt, anchors_json
from pipeline.schema import ManifestRow
from pipeline.storage import Store


@dataclass(frozen=True, slots=True)
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
    target_label: str
    residual_label: str
    mask_uri: str | None = None
    mask_etag: str | None = None

    @property
    def noise_key(self) -> str:
        """What the noise depends on beside the frame: not the configuration, so that segments can be cut anew."""
        identity = [self.asset_id, self.etag, self.size_bytes, self.description, self.anchors]
        if self.mask_uri is not None:
            identity.append(self.mask_etag)
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Rejected:
    """A manifest row, or an item of it, that cannot be planned."""

    item_id: str
    asset_id: str
    uri: str
    metadata_json: str | None
    error: AssetError

    def __post_init__(self) -> None:
        # Its trace holds every frame that it passed: kilobytes a row, and a manifest can be wrong a million times.
        self.error.__traceback__ = self.error.__cause__ = self.error.__context__ = None


@dataclass(frozen=True)
class Task:
    """A prompt as one row wants it done: with the names of its stems, and the version of its mask."""

    prompt: Prompt
    target_label: str
    residual_label: str
    mask_etag: str | None = None


def item_id(row: ManifestRow, task: Task, config_hash: str) -> str:
    """32 hex digits of all that identifies an item."""
    version = row.etag or f"size-{row.size_bytes}"
    prompt = task.prompt
    identity = [
        *(row.asset_id, row.uri, version, config_hash, prompt.description, [list(a) for a in prompt.anchors]),
        *(prompt.mask_uri, task.mask_etag, task.target_label, task.residual_label),
    ]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]


def part_names(config_hash: str, item: Item, index: int) -> tuple[str, str, str]:
    """Keys of a segment's target, residual and facts. Sound is float WAV: overs survive the join."""
    count = item.segment_count
    return (
        part_key(config_hash, item.item_id, index, count, "target", "wav"),
        part_key(config_hash, item.item_id, index, count, "residual", "wav"),
        part_key(config_hash, item.item_id, index, count, "facts", "json"),
    )


def stored_parts(store: Store, config_hash: str, item: Item) -> set[int]:
    """Segments of which both stems and the facts are stored."""
    return whole_parts(set(store.list(parts_prefix(config_hash, item.item_id))), config_hash, item)


def whole_parts(keys: set[str], config_hash: str, item: Item) -> set[int]:
    """Segments all of whose parts are among the keys."""
    if not keys:
        return set()
    return {i for i in range(item.segment_count) if set(part_names(config_hash, item, i)) <= keys}


def anchors_text(item: Item) -> str | None:
    return anchors_json([Anchor(*anchor) for anchor in item.anchors])
