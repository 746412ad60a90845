"""Keys of the lake: deterministic paths below its root, built here and nowhere else.

stems/     the results, immutable, the first writer wins
parts/     pieces of an item, deleted after its commit
commits/   one marker an item, holding its row of the stems table
attempts/  notes of dangerous work under way
leases/    who works: one folder a lease, one object a holder
tombstones/  items that were dropped on purpose, until their stems are collected
"""

from __future__ import annotations

import hashlib
import re
import uuid
from urllib.parse import quote_from_bytes, unquote_to_bytes

_MAX_NAME = 128


def stem_key(config_hash: str, asset_id: str, item_id: str, label: str, extension: str) -> str:
    return f"stems/{config_hash}/{safe_name(asset_id)}/{item_id[:12]}/{label}.{extension}"


def parts_prefix(config_hash: str, item_id: str | None = None) -> str:
    """Of one item, or of all items of a configuration."""
    return f"parts/{config_hash}/{item_id}" if item_id else f"parts/{config_hash}"


def part_key(config_hash: str, item_id: str, index: int, count: int, label: str, extension: str = "flac") -> str:
    """Part `index` of `count`; the count in the name keeps parts of another cut apart."""
    return f"{parts_prefix(config_hash, item_id)}/{index:06d}-of-{count:06d}.{label}.{extension}"


def commit_prefix(config_hash: str) -> str:
    return f"commits/{config_hash}"


def commit_key(config_hash: str, item_id: str) -> str:
    return f"{commit_prefix(config_hash)}/{item_id}.json"


def attempts_prefix(item_id: str) -> str:
    return f"attempts/{item_id}"


def attempt_key(item_id: str, segment: int, stage: str) -> str:
    """A new key at every call: attempts are counted, not overwritten."""
    return f"{attempts_prefix(item_id)}/{segment:06d}-{stage}-{uuid.uuid4().hex}"


def lease_prefix(name: str) -> str:
    return f"leases/{safe_name(name)}"


def lease_key(name: str, token: int) -> str:
    """Of the holder with this fencing token; tokens of a lease only grow."""
    return f"{lease_prefix(name)}/{token:012d}.json"


def tombstones_prefix(config_hash: str) -> str:
    return f"tombstones/{config_hash}"


def tombstone_key(config_hash: str, item_id: str) -> str:
    return f"{tombstones_prefix(config_hash)}/{item_id}.json"


def safe_name(text: str) -> str:
    """An id as one path segment: letters, digits, `.`, `_` and `-` stay, all else is percent-escaped (UTF-8).

    Never empty, `.`, `..` or hidden; at most 128 characters: a longer one keeps its start and gets `~` and a
    hash. `original_name` reverses all but those.
    """
    if not text:
        raise ValueError("an empty id has no safe name")
    escaped = quote_from_bytes(text.encode("utf-8", "surrogatepass"), safe="").replace("~", "%7E")
    if escaped.startswith("."):
        escaped = "%2E" + escaped[1:]
    if len(escaped) <= _MAX_NAME:
        return escaped
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]
    start = re.sub(r"%[0-9A-F]?$", "", escaped[: _MAX_NAME - 25])  # do not cut an escape in two
    return f"{start}~{digest}"


def original_name(name: str) -> str:
    """The id that `safe_name` turned into `name`; ValueError for one that was shortened."""
    if "~" in name:
        raise ValueError(f"{name!r} was shortened; its id stands in the tables")
    return unquote_to_bytes(name).decode("utf-8", "surrogatepass")
