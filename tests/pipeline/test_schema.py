from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from operators.errors import AssetError
from pipeline.prompts import Anchor, anchors_json
from pipeline.schema import (
    FAILURES_SCHEMA,
    MANIFEST_SCHEMA,
    RUNS_SCHEMA,
    STEMS_SCHEMA,
    ManifestRow,
    to_table,
    utc_now,
)

SCHEMAS = {
    "manifest": MANIFEST_SCHEMA,
    "stems": STEMS_SCHEMA,
    "failures": FAILURES_SCHEMA,
    "runs": RUNS_SCHEMA,
}
PLAIN_TYPES = {pa.string(), pa.int64(), pa.float64(), pa.bool_(), pa.timestamp("us", tz="UTC")}


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_column_is_plain_snake_case_and_described(name: str) -> None:
    for field in SCHEMAS[name]:
        assert field.name == field.name.lower()
        assert field.metadata[b"comment"]
        assert field.type in PLAIN_TYPES or field.name in ("anchors", "prompts")


def test_a_row_needs_only_an_id_and_a_uri() -> None:
    row = ManifestRow.from_record({"asset_id": "a", "uri": "/media/a.wav"})
    assert row.duration_seconds is None
    assert row.anchors is None
    assert row.metadata_json is None


def test_other_columns_are_carried_as_metadata() -> None:
    record = {
        "asset_id": 17,
        "uri": "/a.wav",
        "title": "Où ?",
        "season": np.int32(2),
        "rating": float("nan"),
        "price": Decimal("1.50"),
        "aired": datetime(2026, 1, 2, tzinfo=UTC),
        "tags": np.array(["x", "y"]),
        "nested": {"a": [1, None]},
        "metadata_json": '{"from_before": true}',
    }
    row = ManifestRow.from_record(record)
    assert row.asset_id == "17"
    assert json.loads(row.metadata_json or "") == {
        "title": "Où ?",
        "season": 2,
        "rating": None,
        "price": "1.50",
        "aired": "2026-01-02T00:00:00+00:00",
        "tags": ["x", "y"],
        "nested": {"a": [1, None]},
        "from_before": True,
    }


def test_missing_numbers_as_pandas_writes_them_are_missing() -> None:
    row = ManifestRow.from_record(
        {
            "asset_id": "a",
            "uri": "/a.wav",
            "channels": float("nan"),
            "sample_rate": 48_000.0,
            "description": "  ",
        }
    )
    assert (row.channels, row.sample_rate, row.description) == (None, 48_000, None)


@pytest.mark.parametrize(
    "anchors",
    [
        [["+", 1, 2.5], ["-", 3, 4]],
        '[["+", 1, 2.5], ["-", 3, 4]]',
        [{"token": "+", "start": 1, "end": 2.5}, {"token": "-", "start": 3, "end": 4}],
        np.array([{"token": "+", "start": 1, "end": 2.5}, {"token": "-", "start": 3, "end": 4}]),
    ],
    ids=["lists", "json", "structs", "pandas"],
)
def test_anchors_are_read_in_every_form_parquet_gives_them(anchors: object) -> None:
    row = ManifestRow.from_record({"asset_id": "a", "uri": "/a.wav", "anchors": anchors})
    assert row.anchors == (Anchor("+", 1.0, 2.5), Anchor("-", 3.0, 4.0))
    assert anchors_json(row.anchors) == '[["+", 1.0, 2.5], ["-", 3.0, 4.0]]'
    assert anchors_json(None) is None


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("asset_id", "", "at least 1 character"),
        ("asset_id", None, "string"),
        ("asset_id", "a\x00b", "control characters"),
        ("uri", "s3://media/a\nb", "control characters"),
        ("duration_seconds", -1, "greater than or equal to 0"),
        ("sample_rate", 0, "greater than or equal to 1"),
        ("channels", "two", "integer"),
        ("anchors", [["?", 1, 2]], "token"),
        ("anchors", [["+", 2, 1]], "start < end"),
        ("anchors", [["+", 2, float("nan")]], "start < end"),
        ("anchors", [["+", 2]], "token, start, end"),
        ("anchors", "[[", "Expecting"),
        ("anchors", 3, "list"),
        ("metadata_json", "[1]", "JSON object"),
        ("metadata_json", "{", "Expecting"),
    ],
)
def test_a_bad_value_is_an_asset_error_naming_its_column(column: str, value: object, says: str) -> None:
    with pytest.raises(AssetError) as caught:
        ManifestRow.from_record({"asset_id": "film", "uri": "/a.wav", "extra": 1, column: value})
    assert caught.value.cause == "invalid_row"
    assert caught.value.field == column
    assert says in caught.value.message


def test_a_bad_row_never_prints_a_secret() -> None:
    with pytest.raises(AssetError) as caught:
        ManifestRow.from_record({"uri": "s3://key:topsecret@bucket/a\n.wav"})
    assert "topsecret" not in str(caught.value)
    with pytest.raises(AssetError) as caught:
        ManifestRow.from_record({"asset_id": "a", "uri": "https://key:topsecret@h/a\n?X-Amz-Signature=topsecret"})
    assert "topsecret" not in str(caught.value)


def test_a_manifest_written_as_parquet_reads_back_in_duckdb(tmp_path: Path) -> None:
    row = ManifestRow.from_record(
        {"asset_id": "a", "uri": "/a.wav", "anchors": [["+", 1, 2]], "has_video": True, "title": "x"}
    )
    pq.write_table(to_table([row], MANIFEST_SCHEMA), tmp_path / "m.parquet")
    back = pq.read_table(tmp_path / "m.parquet").to_pylist()[0]
    assert ManifestRow.from_record(back) == row
    sql = f"SELECT asset_id, anchors[1].\"end\", metadata_json->>'title' FROM '{tmp_path / 'm.parquet'}'"
    assert duckdb.sql(sql).fetchall() == [("a", 2.0, "x")]


def test_now_is_in_utc() -> None:
    assert utc_now().tzinfo is UTC
