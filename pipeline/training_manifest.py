"""Training manifests: Parquet tables of recordings, alone or as stems of a mixture, that examples are drawn from."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self

import pyarrow as pa
import pyarrow.dataset as pds
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from operators.sam_audio.training.mixing import Collection, Mixture, Source
from pipeline.config import JobConfigError
from pipeline.filesystems import filesystem
from pipeline.uris import locate, redact

Kind = Literal["speech", "music", "sfx"]
Split = Literal["train", "validation"]

_SOUND = [
    ("uri", pa.string()),
    ("kind", pa.string()),
    ("label", pa.string()),
    ("descriptions", pa.list_(pa.string())),
    ("duration_seconds", pa.float64()),
    ("mask_uri", pa.string()),
]
SCHEMA = pa.schema([*_SOUND, ("split", pa.string()), ("stems", pa.list_(pa.struct(_SOUND)))])
# Of a hundred rows without a split, so many are held out.
VALIDATION_PERCENT = 5


class Sound(BaseModel):
    """A recording of one sound, or one stem."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    uri: str = Field(min_length=1, max_length=4096)
    kind: Kind = "sfx"
    label: str = ""
    descriptions: tuple[str, ...] = ()
    duration_seconds: float = Field(gt=0)
    mask_uri: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _nulls_are_defaults(cls, values: Any) -> Any:
        return {k: v for k, v in values.items() if v is not None} if isinstance(values, Mapping) else values

    @field_validator("descriptions")
    @classmethod
    def _real(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(text.strip() for text in value if text and text.strip())

    def source(self) -> Source:
        return Source(self.uri, self.kind, self.label, self.duration_seconds, self.descriptions, self.mask_uri)


class TrainingRow(Sound):
    """A row: a recording, or a mixture with `stems` (then only their columns are read; `uri` names it).

    split: by the URI when it is not given, so that a recording keeps its side in every manifest.
    """

    split: Split | None = None
    stems: tuple[Sound, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _length_of_stems(cls, values: Any) -> Any:
        """A mixture lasts as long as its shortest stem unless it says otherwise."""
        if isinstance(values, Mapping) and values.get("stems") and not values.get("duration_seconds"):
            lengths = [stem.get("duration_seconds") for stem in values["stems"] if isinstance(stem, Mapping)]
            return {**values, "duration_seconds": min((x for x in lengths if x), default=None)}
        return values

    @model_validator(mode="after")
    def _stems_are_several(self) -> Self:
        if len(self.stems) == 1:
            raise ValueError("stems: a mixture has at least two; leave stems empty for a recording of one sound")
        return self

    @property
    def part(self) -> Split:
        if self.split:
            return self.split
        return "validation" if zlib.crc32(self.uri.encode()) % 100 < VALIDATION_PERCENT else "train"


def read_training_manifest(url: str, *, limit: int | None = None) -> list[TrainingRow]:
    """All rows of a Parquet file or folder. Raises JobConfigError, naming row, column and remedy."""
    location = locate(url)
    try:
        table = pds.dataset(location.path, filesystem=filesystem(location.scheme), format="parquet").to_table()
    except (FileNotFoundError, pa.ArrowInvalid, OSError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise JobConfigError(
            f"training manifest {redact(url)} cannot be read ({first}); give a Parquet file or a folder of them, "
            "made by jobs/build_training_manifest.py or jobs/pseudo_label.py"
        ) from None
    rows = []
    for number, record in enumerate(table.slice(0, limit).to_pylist()):
        try:
            rows.append(TrainingRow.model_validate(record))
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            column = ".".join(str(part) for part in problem["loc"]) or "stems"
            raise JobConfigError(
                f"training manifest {redact(url)}: row {number}: column {column}: {problem['msg']}; correct it, or "
                "make the manifest again with jobs/build_training_manifest.py"
            ) from None
    if not rows:
        raise JobConfigError(f"training manifest {redact(url)} holds no rows; add recordings")
    return rows


def collection(rows: Iterable[TrainingRow], part: Split) -> Collection:
    """What one side of the manifest holds. Raises ConfigError when it is too little to learn from."""
    rows = [row for row in rows if row.part == part]
    return Collection(
        tuple(row.source() for row in rows if not row.stems),
        tuple(Mixture(tuple(stem.source() for stem in row.stems)) for row in rows if row.stems),
    )


def manifest_bytes(rows: Sequence[TrainingRow]) -> bytes:
    """The rows as one Parquet file."""
    table = pa.Table.from_pylist([row.model_dump() for row in rows], schema=SCHEMA)
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()
