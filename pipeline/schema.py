"""The rows that enter and leave a run, and their Arrow schemas, from one declaration.

Column descriptions travel as Arrow field metadata under the key `comment`, which Delta and Spark show as
column comments. Types are plain (string, int64, double, boolean, timestamp in microseconds UTC), so DuckDB,
pandas and Spark read every table without this package.
"""

from __future__ import annotations

import json
import math
import re
import types
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any, Self, Union, get_args, get_origin

import pyarrow as pa
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator

from operators.errors import AssetError
from pipeline.prompts import ANCHORS_TYPE, PROMPTS_TYPE, Anchor, Prompt, parse_anchors, parse_prompts
from pipeline.uris import redact

_ARROW_TYPES: dict[Any, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    datetime: pa.timestamp("us", tz="UTC"),
    tuple[Anchor, ...]: ANCHORS_TYPE,
    tuple[Prompt, ...]: PROMPTS_TYPE,
}


# Half of a surrogate pair is no character either.
_CONTROL = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


class Row(BaseModel):
    """A row of a table: frozen, no unknown columns, finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def record(self) -> dict[str, Any]:
        """The row as a plain dict that `pa.Table.from_pylist` takes."""
        return self.model_dump()

    @classmethod
    def arrow_schema(cls) -> pa.Schema:
        fields = []
        for name, info in cls.model_fields.items():
            kind, nullable = info.annotation, False
            if get_origin(kind) in (Union, types.UnionType):
                members = [member for member in get_args(kind) if member is not type(None)]
                kind, nullable = members[0], True
            comment = {"comment": info.description} if info.description else None
            fields.append(pa.field(name, _ARROW_TYPES[kind], nullable=nullable, metadata=comment))
        return pa.schema(fields)


class ManifestRow(Row):
    """One asset of a manifest. Only `asset_id` and `uri` are required; what is missing is probed."""

    asset_id: str = Field(
        min_length=1, max_length=2048, description="The owner's name for the asset; any text, kept as it is"
    )
    uri: str = Field(min_length=1, max_length=4096, description="Absolute path or URL of the media file")
    size_bytes: int | None = Field(default=None, ge=0, description="Size of the media file when it was listed")
    etag: str | None = Field(default=None, description="Version of the file's content as the store names it")
    duration_seconds: float | None = Field(default=None, ge=0, description="Duration of the audio")
    sample_rate: int | None = Field(default=None, ge=1, description="Sample rate of the audio, Hz")
    channels: int | None = Field(default=None, ge=1, description="Number of audio channels")
    codec: str | None = Field(default=None, description="Audio codec, as FFmpeg names it")
    container: str | None = Field(default=None, description="Container format, as FFmpeg names it")
    has_video: bool | None = Field(default=None, description="Whether the file has a video stream")
    probe_error: str | None = Field(default=None, description="Why the file could not be probed; null when it could")
    description: str | None = Field(default=None, description="Prompt for this row, instead of the job's descriptions")
    anchors: tuple[Anchor, ...] | None = Field(
        default=None,
        description="Span prompt for this row: list of (token '+' or '-', start, end in seconds)",
    )
    mask_uri: str | None = Field(
        default=None,
        max_length=4096,
        description="Visual prompt for this row: a mask video, or npz or npy masks, of the asset's own video",
    )
    prompts: tuple[Prompt, ...] | None = Field(
        default=None,
        description="Several prompts for this row: list of descriptions, or of (name, residual_name, description, "
        "anchors, mask_uri)",
    )
    metadata_json: str | None = Field(
        default=None,
        description="Every other column of the manifest, as one JSON object; copied to the result tables",
    )

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Validate one record of a manifest; columns that are not ours become `metadata_json`.

        Missing values may be null or NaN. Raises AssetError `invalid_row`, naming the column and the value.
        """
        known: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        for name, value in record.items():
            if isinstance(value, float) and not math.isfinite(value):
                value = None
            (known if name in cls.model_fields else extra)[name] = value
        try:
            if extra:
                known["metadata_json"] = _merge_metadata(known.get("metadata_json"), extra)
            return cls.model_validate(known)
        except ValidationError as error:
            asset_id = _named(known)
            first = error.errors(include_url=False)[0]
            column = str(first["loc"][0]) if first["loc"] else "row"
            shown = "" if first["type"] == "missing" else f", got {redact(str(first['input'])[:120])!r}"
            raise AssetError(
                "invalid_row",
                f"manifest row of asset {asset_id!r}: column {column}: {first['msg']}{shown}",
                f"correct column {column} of this row in the manifest, or rebuild the manifest",
                field=column,
            ) from None
        except RecursionError:
            raise AssetError(
                "invalid_row",
                f"manifest row of asset {_named(known)!r}: JSON in it is nested too deep",
                "correct anchors, prompts and metadata_json of this row in the manifest",
                field="row",
            ) from None

    @field_validator("asset_id", mode="before")
    @classmethod
    def _number_as_id(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("asset_id", "uri", "mask_uri")
    @classmethod
    def _no_control_characters(cls, value: str | None) -> str | None:
        if value is not None and _CONTROL.search(value):
            raise ValueError("control characters are not allowed")
        return value

    @field_validator("description")
    @classmethod
    def _blank_is_none(cls, value: str | None) -> str | None:
        return (value or "").strip() or None

    @field_validator("anchors", mode="before")
    @classmethod
    def _anchors(cls, value: Any) -> tuple[Anchor, ...] | None:
        return parse_anchors(value) or None

    @field_validator("prompts", mode="before")
    @classmethod
    def _prompts(cls, value: Any) -> tuple[Prompt, ...] | None:
        return parse_prompts(value) or None

    @field_validator("etag", mode="before")
    @classmethod
    def _bare_etag(cls, value: Any) -> Any:
        return bare_etag(value) or None if isinstance(value, str) else value

    @field_validator("metadata_json")
    @classmethod
    def _metadata_is_object(cls, value: str | None) -> str | None:
        if value is not None and not isinstance(json.loads(value), dict):
            raise ValueError("must hold a JSON object")
        return value


def _named(known: Mapping[str, Any]) -> str:
    return redact(str(known.get("asset_id") or known.get("uri") or "?")[:200])


def _merge_metadata(existing: Any, extra: Mapping[str, Any]) -> str:
    try:
        merged = json.loads(existing) if isinstance(existing, str) and existing else {}
    except ValueError:
        return str(existing)  # left for the field's validator, which names the column
    if not isinstance(merged, dict):
        return str(existing)
    return json.dumps({**merged, **_plain(extra)}, ensure_ascii=False, sort_keys=True)


def _plain(value: Any) -> Any:
    """A value from a Parquet column as something JSON can hold; what JSON has no type for becomes text."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return _plain(value.tolist())
    if isinstance(value, Sequence | set | frozenset):
        return [_plain(v) for v in value]
    return str(value)


class StemRow(Row):
    """One committed item: where its two stems are and everything that made them. Equals the commit marker."""

    item_id: str = Field(description="Hash of asset, source version, prompt and configuration; unique")
    asset_id: str = Field(description="As in the manifest")
    uri: str = Field(description="The media file the stems were made from")
    source_etag: str | None = Field(
        default=None, description="Version of the media file's content as its store names it"
    )
    source_size_bytes: int | None = Field(default=None, description="Size of the media file")
    config_hash: str = Field(description="Hash of every setting that changes the result")
    model: str = Field(description="Name of the separation model")
    model_version: str = Field(description="Hash of the model's configuration and weights")
    description: str | None = Field(default=None, description="Text prompt: the sound that was asked for")
    anchors_json: str | None = Field(
        default=None, description="Span prompt as JSON: [[token, start, end], ...] in seconds"
    )
    mask_uri: str | None = Field(default=None, description="Visual prompt: masks of the asset's video")
    target_label: str = Field(description="What the target stem is called, e.g. dialogue")
    residual_label: str = Field(description="What the residual stem is called, e.g. music_and_effects")
    target_uri: str = Field(description="The sound that was asked for")
    residual_uri: str = Field(description="Everything else")
    sample_rate: int = Field(description="Sample rate of both stems, Hz")
    source_sample_rate: int | None = Field(
        default=None, description="Sample rate of the media file, Hz; null when the file was gone at the end"
    )
    bit_depth: int | None = Field(
        default=None, description="Bits of a sample of both stems; 32 is float, null for Opus, which has none"
    )
    channels: int = Field(description="Number of channels of both stems")
    duration_seconds: float = Field(description="Duration of both stems")
    segment_count: int = Field(description="Number of segments the asset was cut into")
    target_peak: float = Field(description="Largest absolute sample of the target; 1.0 is full scale")
    residual_peak: float = Field(description="Largest absolute sample of the residual; 1.0 is full scale")
    target_loudness_lufs: float | None = Field(
        default=None, description="Integrated loudness of the target (EBU R 128); null for silence, under -70 LUFS"
    )
    residual_loudness_lufs: float | None = Field(
        default=None, description="Integrated loudness of the residual (EBU R 128); null for silence, under -70 LUFS"
    )
    target_true_peak_dbtp: float | None = Field(
        default=None, description="True peak of the target (BS.1770), dB of full scale; null for digital silence"
    )
    residual_true_peak_dbtp: float | None = Field(
        default=None, description="True peak of the residual (BS.1770), dB of full scale; null for digital silence"
    )
    gain_db: float = Field(
        default=0.0, description="By how much both stems were turned up (negative: down) so that neither clips"
    )
    clipped_samples: int = Field(description="Samples of both stems that the file format had to clip")
    predicted_spans_json: str | None = Field(
        default=None,
        description="Where the sound was predicted to be heard, as JSON: [[start, end], ...] in seconds; null when "
        "nothing was predicted, [] when it is heard nowhere",
    )
    judge_overall: float | None = Field(
        default=None, description="Judge's score of the target, 1 to 5, mean over the asset; null without a judge"
    )
    judge_recall: float | None = Field(default=None, description="Judge: how much of the sound is in the target")
    judge_precision: float | None = Field(default=None, description="Judge: how little else is in the target")
    judge_faithfulness: float | None = Field(default=None, description="Judge: how natural the target sounds")
    candidates: int = Field(default=1, description="Candidates that were made, at most in any segment")
    windows: int = Field(default=0, description="Windows of the model in all segments, halos included")
    windows_skipped: int = Field(default=0, description="Windows left out because the sound was not heard there")
    run_id: str = Field(description="The run that committed the item")
    committed_at: AwareDatetime = Field(description="When the item was committed, UTC")
    metadata_json: str | None = Field(default=None, description="The manifest's other columns, as one JSON object")


class FailureRow(Row):
    """One item that could not be processed in one run, and what to do about it."""

    run_id: str = Field(description="The run in which the item failed")
    item_id: str = Field(description="The item; for a manifest row that is no item, a hash of the row")
    asset_id: str = Field(description="As in the manifest")
    uri: str = Field(description="The media file")
    stage: str = Field(description="Where it failed: plan, decode, separate, write or commit")
    cause: str = Field(description="Short stable word for counting, e.g. truncated, no_audio, not_found")
    message: str = Field(description="What was found")
    remedy: str = Field(description="What the owner of the archive can do")
    attempt: int = Field(description="How many times the item had been tried, this time included")
    failed_at: AwareDatetime = Field(description="When it failed, UTC")
    metadata_json: str | None = Field(default=None, description="The manifest's other columns, as one JSON object")


class RunRow(Row):
    """One execution of a job. Written when it starts (status `running`) and again when it ends."""

    run_id: str = Field(description="Unique; sorts by start time")
    job: str = Field(description="Name of the job, e.g. dialogue_extract")
    status: str = Field(description="running, done, or broken; a run that was killed stays running")
    started_at: AwareDatetime = Field(description="UTC")
    finished_at: AwareDatetime | None = Field(default=None, description="UTC; null while the run goes on")
    config_hash: str = Field(description="Hash of every setting that changes the result")
    config_json: str = Field(description="All settings of the run, as JSON, without secrets")
    model: str = Field(description="Name of the separation model")
    model_version: str = Field(description="Hash of the model's configuration and weights")
    items_planned: int = Field(default=0, description="Items that the manifest and the prompts make")
    items_skipped: int = Field(default=0, description="Items that were committed before this run")
    items_committed: int = Field(default=0, description="Items that this run committed")
    items_failed: int = Field(default=0, description="Items with a row in the failures table")
    audio_seconds: float = Field(default=0.0, description="Duration of the assets that this run committed")
    elapsed_seconds: float | None = Field(default=None, description="From start to finish")
    gpus: float | None = Field(
        default=None, description="GPUs that the model replicas held (without GPUs: replicas); null when none started"
    )
    error: str | None = Field(default=None, description="Why the run itself broke; null otherwise")
    package_version: str | None = Field(default=None, description="Version of this package")
    ray_version: str | None = Field(default=None, description="Version of Ray")
    host: str | None = Field(default=None, description="Name of the machine that drove the run")


# pydantic keeps AwareDatetime apart from `datetime`; in Arrow both are the same instant.
_ARROW_TYPES[AwareDatetime] = _ARROW_TYPES[datetime]

MANIFEST_SCHEMA = ManifestRow.arrow_schema()
STEMS_SCHEMA = StemRow.arrow_schema()
FAILURES_SCHEMA = FailureRow.arrow_schema()
RUNS_SCHEMA = RunRow.arrow_schema()


def bare_etag(value: str) -> str:
    """A file's version without what HTTP writes around it (W/"..."), which listings of other tools keep."""
    return value.strip().removeprefix("W/").strip('"')


def utc_now() -> datetime:
    return datetime.now(UTC)


def to_table(rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    """Rows as an Arrow table in the schema's column order."""
    return pa.Table.from_pylist([row.record() for row in rows], schema=schema)
