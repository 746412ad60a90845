"""`JobConfig`: every setting of a job, checked at once. `pipeline.settings` says where they come from."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from operators.container import MAX_RATE, MIN_RATE
from operators.encode import bit_depth_of
from operators.errors import AssetError
from pipeline.prompts import Anchor, Prompt, check_label, parse_anchors, parse_prompts
from pipeline.uris import locate, redact

if TYPE_CHECKING:
    from operators.sam_audio.config import SolverConfig

# What changes a stem or its scores. Prompts and names are part of the item instead, so that a new prompt makes new
# items and leaves the old ones where they are.
RESULT_FIELDS = (
    "model",
    "precision",
    "predict_spans",
    "span_predictor",
    "skip_inactive",
    "judge",
    "candidates",
    "ranker",
    "rerank_below",
    "masked",
    "solver_method",
    "solver_steps",
    "segment_seconds",
    "halo_seconds",
    "channels",
    "residual",
    "output_sample_rate",
    "stem_format",
    "bit_depth",
    "on_overs",
)


# Of the models that come with this package (operators.sam_audio.sources, whose torch takes seconds to import).
SHIPPED_MODEL = "tiny"


class JobConfigError(ValueError):
    """Settings that cannot be used: one line a problem, with the setting and the remedy."""


class JobConfig(BaseSettings):
    """Settings of one job. Constructed directly it reads no environment: `load_config` does that."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    manifest: str = Field(description="Parquet file of assets, or a folder of them: a path or a URL (s3://...)")
    lake: str = Field(description="Folder for stems and tables: a path or a URL (s3://...). Made when missing")
    descriptions: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="What to lift out, in words. Several make several items of every asset"
    )
    anchors: Annotated[tuple[Anchor, ...], NoDecode] = Field(
        default=(),
        description='Spans where the sound is (+) or is not (-) heard: [["+", start, end], ...], in seconds',
    )
    prompts: Annotated[tuple[Prompt, ...], NoDecode] = Field(
        default=(),
        description="Prompts with names for their stems: name=description, or JSON of {name, residual_name, "
        "description, anchors, mask_uri}. Added to the descriptions",
    )
    target_label: str | None = Field(
        default=None, description="Name of the stem that was asked for. Default: made of the description"
    )
    residual_label: str | None = Field(
        default=None, description="Name of the stem with everything else. Default: the target's, with _residual"
    )
    allowed_read_prefixes: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Folders that media may be read from. Default: the manifest's folder"
    )

    model: str = Field(
        default=SHIPPED_MODEL, description="Separation model: tiny (shipped), or a folder with a checkpoint"
    )
    device: str = Field(default="auto", description="Where the model runs: auto, cpu, cuda or cuda:N")
    solver_method: Literal["midpoint", "euler"] | None = Field(
        default=None, description="Solver of the flow. Default: the model's. Needs solver_steps"
    )
    solver_steps: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="Steps of the solver. Default: the model's. Needs solver_method",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Number format of the network; the codec always runs in float32"
    )
    predict_spans: bool = Field(
        default=False, description="Find out where the sound is heard, and tell the model; needs a span predictor"
    )
    span_predictor: str | None = Field(
        default=None, description="Span predictor: a hub name, folder or URL. Default: what the model's config names"
    )
    skip_inactive: bool = Field(
        default=False, description="With predict_spans: leave windows out where the sound is not heard (silent target)"
    )
    judge: str = Field(
        default="auto",
        description='Judge that scores every target: "tiny", a hub name, a folder, a URL, or "none". '
        '"auto": the shipped one beside the shipped model, else none',
    )
    candidates: int = Field(default=1, ge=1, le=64, description="Results to make of which the best is kept")
    ranker: Literal["judge", "model", "sound_activity"] = Field(
        default="judge",
        description="What chooses among candidates: the judge, what the model's config names, or agreement with spans",
    )
    rerank_below: float | None = Field(
        default=None, description="Make another candidate only while the best one's score is below this. Default: all"
    )
    masked: Literal["black", "kept"] = Field(
        default="black",
        description="What becomes of the pixels that a mask marks: black as in Meta's code, or kept as in its paper",
    )
    segment_seconds: float | None = Field(
        default=None,
        ge=1,
        le=3600,
        description="Length of a segment's core, seconds. Default: 20 of the model's windows, so that the halo of "
        "a window on either side costs 9 %, and a lost segment little",
    )
    halo_seconds: float | None = Field(
        default=None, ge=0, description="Context on both sides of a core, seconds. Default: the model's"
    )

    channels: Literal["auto", "mono", "each", "wiener"] = Field(
        default="auto",
        description="Channels of the stems. mono: one, made of all. each: every channel is separated on its own, with "
        "the same noise. wiener: the mono stems become a gain on every channel's spectrum, and target + residual is "
        "the recording, sample by sample. auto: tiny's stems have the recording's channels by themselves; a released "
        "model's are wiener where the recording has several channels, else mono",
    )
    residual: Literal["generated", "mixture_minus_target"] = Field(
        default="generated",
        description="What the residual is: the model's own, or the recording less the target. With wiener, and with "
        "tiny, it is the recording less the target in any case",
    )
    output_sample_rate: int | Literal["source"] | None = Field(
        default=None,
        description="Sample rate of the stems, Hz, or source: that of each recording. Default: the model's. Opus "
        "takes the next higher one that it has",
    )
    stem_format: Literal["flac", "wav", "opus"] = Field(default="flac", description="File format of the stems")
    bit_depth: Literal[16, 24, 32] | None = Field(
        default=None,
        description="16 (dithered) or 24 for flac, 16, 24 or 32 (float) for wav, none for opus. Default: 24 for flac, "
        "32 for wav",
    )
    on_overs: Literal["scale", "clip"] = Field(
        default="scale",
        description="When a stem goes beyond full scale. scale: both stems of the item are turned down by the same "
        "gain, gain_db in the table. clip: clipped_samples in the table counts what is cut. 32-bit float wav keeps "
        "overs as they are",
    )

    decoders: int | None = Field(default=None, ge=1, description="Decode tasks at a time. Default: by the CPUs")
    writers: int | None = Field(default=None, ge=1, description="Write tasks at a time. Default: by the CPUs")
    separators: int | None = Field(default=None, ge=1, description="Model replicas. Default: one a GPU, one without")
    gpus_per_separator: float | None = Field(
        default=None,
        ge=0,
        description="GPUs of one replica; 0.5 puts two on a GPU. Default: 1 on cuda, else 0",
    )
    segments_per_batch: int = Field(default=4, ge=1, description="Segments that a replica takes at a time")
    windows_per_batch: int = Field(default=8, ge=1, description="Windows in one forward pass: sets the GPU memory used")

    max_attempts: int = Field(
        default=3,
        ge=1,
        description="Tries of an item that kills its worker, over all runs; then it is recorded as failed",
    )
    decode_seconds: float = Field(
        default=60.0,
        ge=1,
        description="Seconds that reading one segment may take, and one more for each MiB of the file; then its "
        "process is ended and the item recorded as failed",
    )
    decode_memory_gb: float = Field(
        default=4.0, ge=0.5, description="Memory that reading one segment may take, GiB; beyond it the item fails"
    )
    stall_seconds: float = Field(
        default=600.0,
        ge=10,
        description="When nothing at all gets done for so long (a lost machine without a replacement can leave Ray "
        "waiting), the run gives up with exit code 1; run it again. Longer than a model's start and a batch take",
    )
    limit: int | None = Field(default=None, ge=1, description="Only the first N rows of the manifest")
    dry_run: bool = Field(default=False, description="Say what would be done, and do nothing")
    commit_every_rows: int = Field(default=200, ge=1, description="Result rows of one table commit, at most")
    commit_every_seconds: float = Field(default=10.0, gt=0, description="Seconds between table commits, at most")
    progress: bool = Field(default=True, description="Print progress while the run goes on")

    # Of jobs/archive_reprocess.py and jobs/plan.py: here, so that one file of settings serves every job.
    stale: Literal["none", "older-than-model", "older-than-config"] = Field(
        default="none",
        description="What archive_reprocess makes again beside what is new, changed or to be retried: stems of another "
        "version of the model, or of any other settings or model",
    )
    superseded: Literal["keep", "drop"] = Field(
        default="keep",
        description="What archive_reprocess does with earlier stems of a prompt once newer ones are committed. drop: "
        "takes them out of the table; jobs/collect_garbage.py deletes the files later",
    )
    retry_causes: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(
            "access_denied",
            "decoder_hung",
            "disk_full",
            "internal_error",
            "not_found",
            "source_changed",
            "storage_error",
        ),
        description="Causes of failure that may go away by themselves: archive_reprocess tries these items again",
    )
    retry_limit: int = Field(
        default=3, ge=1, description="Runs that may fail on an item before archive_reprocess leaves it alone"
    )
    trust_manifest: bool = Field(
        default=False, description="archive_reprocess: do not ask the store whether media changed since the listing"
    )
    lease: str | None = Field(
        default=None,
        min_length=1,
        description="Name of the lease that archive_reprocess holds, so that overlapping schedules do not work twice. "
        "Default: one a job and manifest",
    )
    lease_seconds: float = Field(
        default=60.0, gt=0, le=3600, description="How long a killed archive_reprocess keeps the next one out"
    )
    price_per_gpu_hour: float | None = Field(
        default=None, ge=0, description="What an hour of one GPU (or, without one, of one machine) costs: for plan.py"
    )
    currency: str = Field(default="USD", description="Currency of the price")
    audio_hours_per_gpu_hour: float | None = Field(
        default=None, gt=0, description="Measured throughput, for plan.py. Default: that of the lake's finished runs"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)

    @field_validator("prompts", mode="before")
    @classmethod
    def _parse_prompts(cls, value: Any) -> tuple[Prompt, ...]:
        return parse_prompts(value)

    @field_validator("descriptions", "allowed_read_prefixes", "retry_causes", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        if isinstance(value, str):  # as it is from a command line; commas belong to the text
            return json.loads(value) if value.lstrip().startswith("[") else (value,)
        return () if value is None else value

    @field_validator("descriptions")
    @classmethod
    def _real_descriptions(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        value = tuple(text.strip() for text in value)
        if not all(value) or len(set(value)) < len(value):
            raise ValueError("empty or repeated description; remove it")
        return value

    @field_validator("anchors", mode="before")
    @classmethod
    def _parse_anchors(cls, value: Any) -> tuple[Anchor, ...]:
        return parse_anchors(value)

    @field_validator("bit_depth", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        return int(value) if isinstance(value, str) and value.isdigit() else value

    @field_validator("output_sample_rate")
    @classmethod
    def _real_rate(cls, value: int | str | None) -> int | str | None:
        if isinstance(value, int) and not MIN_RATE <= value <= MAX_RATE:
            raise ValueError(f"{value} Hz; use {MIN_RATE} to {MAX_RATE}, or source")
        return value

    @field_validator("target_label", "residual_label")
    @classmethod
    def _label(cls, value: str | None) -> str | None:
        return check_label(value)

    @field_validator("device")
    @classmethod
    def _device(cls, value: str) -> str:
        if value not in ("auto", "cpu", "cuda") and not (value.startswith("cuda:") and value[5:].isdigit()):
            raise ValueError(f"{value!r} is not a device; use auto, cpu, cuda or cuda:N")
        return value

    @field_validator("manifest", "lake", "allowed_read_prefixes")
    @classmethod
    def _usable_url(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        """Absolute, so that a worker in another folder or on another machine means the same place."""
        absolute = [v if "://" in v else str(Path(v).expanduser().absolute()) for v in _as_tuple(value)]
        for url in absolute:
            try:
                locate(os.path.normpath(url) if "://" not in url else url)
            except AssetError as error:
                raise ValueError(f"{error.message}; {error.remedy}") from None
        return absolute[0] if isinstance(value, str) else tuple(absolute)

    @model_validator(mode="after")
    def _no_contradiction(self) -> Self:
        problems = []
        if self.target_label is not None and self.target_label == self.residual_label:
            problems.append("target_label and residual_label are the same; give the two stems different names")
        try:
            bit_depth_of(self.stem_format, self.bit_depth)
        except ValueError as error:
            problems.append(f"bit_depth and stem_format: {error}")
        if (self.solver_method is None) != (self.solver_steps is None):
            problems.append("solver_method and solver_steps go together; give both or none")
        if self.halo_seconds is not None and self.halo_seconds >= (self.segment_seconds or math.inf):
            problems.append("halo_seconds must be smaller than segment_seconds; make segments longer")
        if self.skip_inactive and not self.predict_spans:
            problems.append("skip_inactive without predict_spans: nothing says where the sound is; set both")
        if self.span_predictor is not None and not self.predict_spans:
            problems.append("span_predictor without predict_spans; set both")
        if self.candidates > 1 and self.ranker == "judge" and self.judge_name is None:
            problems.append("candidates without a judge; name one in judge, or choose another ranker")
        if self.rerank_below is not None and self.candidates == 1:
            problems.append("rerank_below without candidates; set candidates to the most that may be made")
        if self.device == "cpu" and self.gpus_per_separator:
            problems.append("gpus_per_separator with device=cpu; set it to 0 or use device=cuda")
        if self.device.startswith("cuda") and self.gpus_per_separator == 0:
            problems.append("gpus_per_separator=0 with a cuda device; leave it out or use device=cpu")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def all_prompts(self) -> tuple[Prompt, ...]:
        """`prompts`, and one for each of `descriptions` (with `anchors`, which are a prompt by themselves too)."""
        texts = self.descriptions or (("",) if self.anchors else ())
        return self.prompts + tuple(Prompt(description=text, anchors=self.anchors) for text in texts)

    @property
    def read_prefixes(self) -> tuple[str, ...]:
        """Where media may be read from: as given, else the folder of the manifest."""
        if self.allowed_read_prefixes:
            return self.allowed_read_prefixes
        return (self.manifest.rstrip("/").rpartition("/")[0] if _is_file(self.manifest) else self.manifest,)

    @property
    def solver(self) -> SolverConfig | None:
        """The solver of the flow; None for the model's own."""
        if self.solver_method is None or self.solver_steps is None:
            return None
        from operators.sam_audio.config import SolverConfig  # with it comes torch, which workers do without

        return SolverConfig(self.solver_method, 1 / self.solver_steps)

    @property
    def judge_name(self) -> str | None:
        """What to load as the judge; None when nothing is judged."""
        if self.judge == "auto":
            return SHIPPED_MODEL if self.model == SHIPPED_MODEL else None
        return None if self.judge == "none" else self.judge

    def config_hash(self, model_version: str) -> str:
        """16 hex digits of all that changes a result, the model's version included; not of parallelism."""
        values = {name: getattr(self, name) for name in RESULT_FIELDS}
        values |= {"model_version": model_version, "judge": self.judge_name}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """All settings, for the runs table: URLs with credentials are refused, keys never get here."""
        return redact(json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=False))


def _as_tuple(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value


def _is_file(url: str) -> bool:
    return url.rsplit("/", 1)[-1].endswith((".parquet", ".pq"))
