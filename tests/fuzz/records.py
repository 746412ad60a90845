"""Manifest rows and names as nobody should write them."""

from __future__ import annotations

import datetime
import decimal
from typing import Any

import numpy as np

# Names of files that exist; of what a file system takes.
FILE_NAMES = (
    "ünï cödé 音楽 🎛.mkv", "line\nbreak.wav", "tab\tand\x7fdelete.wav", "..hidden.wav", "%2e%2e%2f.wav", "-rf.wav",
    "$(touch pwned).wav", "`touch pwned`.mkv", "a;b|c&d.wav", "quote'\".wav", "a#b?c=d.wav", "con.wav",
    "l" * 250 + ".wav",
    "é" * 120 + ".mkv", "\u202egnp.wav", "space at end .wav ", "concat:a|b.wav", "file:x.mkv", "pipe:0.wav", "*.wav",
    "[ab].mkv",
)  # fmt: skip

TEXTS = (
    "", " ", "..", "../../etc/passwd", "/", "/etc/passwd", "a/../b", "\0", "a\nb", "é音🎛", "x" * 1024, "x" * 100_000,
    "%s%n",
    "{}", "[]", "null", "NaN", "nan", "1e999", "true", "'; DROP TABLE stems; --", "${HOME}", "~root", ".", "C:\\x",
    "\ud800",
    "http://169.254.169.254/latest/meta-data", "s3://", "s3://bucket/../x", "file:///etc/passwd", "FILE:///etc/passwd",
    "gopher://x", "concat:/etc/passwd|/etc/hosts", "s3://key:secret@bucket/a.wav", "file://host/etc/passwd", "data:,x",
    "simplecache::s3://b/a.wav", "zip://a.wav::file:///x.zip", "//etc/passwd", "/proc/self/environ", "/dev/zero",
)  # fmt: skip

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63 - 1, -(2**63), 10**30, 0.0, -0.5, 1.5, 1e308, float("nan"),
    float("inf"), b"",
    b"\xff\xfe", [], {}, [None], [[]], {"a": 1}, [1, 2, 3], ["+", 0.0, 1.0], [["+", 0.0, 1.0]], [["+", 1.0, 0.0]],
    [["?", 0, 1]], [["+", None, None]], [["+", float("nan"), 1]], [["+", "a", "b"]], [{"token": "+", "start": 0,
    "end": 1}],
    [{"name": "../x", "description": "dog"}], [{"name": "a", "description": "dog"}] * 2, [{"description": ""}],
    ["dog", "dog"],
    ["dog"] * 500, [{"description": "dog", "extra": 1}], [{"mask_uri": "/etc/passwd"}], datetime.datetime(1, 1, 1),
    datetime.date.max,
    decimal.Decimal("1e400"), "{\"a\": 1}", "[[\"+\", 0, 1]]", "[" * 2000, 2.0**70,
)  # fmt: skip

COLUMNS = (
    "asset_id", "uri", "size_bytes", "etag", "duration_seconds", "sample_rate", "channels", "codec", "container",
    "has_video",
    "probe_error", "description", "anchors", "mask_uri", "prompts", "metadata_json", "my own", "", "é", "__class__",
)  # fmt: skip


def value(rng: np.random.Generator) -> Any:
    return TEXTS[rng.integers(len(TEXTS))] if rng.random() < 0.5 else VALUES[rng.integers(len(VALUES))]


def record(rng: np.random.Generator) -> dict[str, Any]:
    """A row in which some columns are wrong, some missing, and the others as they should be."""
    row: dict[str, Any] = {"asset_id": f"a-{rng.integers(5)}", "uri": "GOOD"}
    for column in COLUMNS:
        if rng.random() < 0.07:
            row[column] = value(rng)
    if rng.random() < 0.1:
        del row["uri" if rng.random() < 0.5 else "asset_id"]
    return row
