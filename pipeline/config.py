"""`JobConfig`: every setting of a job, from command line, environment and YAML file, checked at once.

Precedence: command line, then environment, then the YAML file, then the job's own defaults, then those below.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Self, get_args, get_origin

import yaml  # type: ignore[import-untyped]
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from operators.errors import AssetError
from pipeline.schema import Anchor, parse_anchors
from pipeline.uris import locate, redact

ENV_PREFIX = "SAM_PIPELINE_"

# What changes a stem. Descriptions and anchors are part of the item instead, so that a new prompt makes new
# items and leaves the old ones where they are.
RESULT_FIELDS = (
    "model",
    "target_label",
    "residual_label",
    "solver_method",
    "solver_steps",
    "segment_seconds",
    "halo_seconds",
    "stem_format",
)


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
    target_label: str = Field(default="target", description="Name of the stem that was asked for")
    residual_label: str = Field(default="residual", description="Name of the stem with everything else")
    allowed_read_prefixes: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Folders that media may be read from. Default: the manifest's folder"
    )

    model: str = Field(default="tiny", description="Separation model: tiny (shipped), or a folder with a checkpoint")
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
    stem_format: Literal["flac", "wav", "opus"] = Field(default="flac", description="File format of the stems")

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
    limit: int | None = Field(default=None, ge=1, description="Only the first N rows of the manifest")
    dry_run: bool = Field(default=False, description="Say what would be done, and do nothing")
    commit_every_rows: int = Field(default=200, ge=1, description="Result rows of one table commit, at most")
    commit_every_seconds: float = Field(default=10.0, gt=0, description="Seconds between table commits, at most")
    progress: bool = Field(default=True, description="Print progress while the run goes on")

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

    @field_validator("descriptions", "allowed_read_prefixes", mode="before")
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

    @field_validator("target_label", "residual_label")
    @classmethod
    def _label(cls, value: str) -> str:
        if not value.isascii() or not value.replace("_", "").isalnum() or value != value.lower() or len(value) > 64:
            raise ValueError(f"{value!r} is not a label; use up to 64 lower-case letters, digits and _")
        return value

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
        if self.target_label == self.residual_label:
            problems.append("target_label and residual_label are the same; give the two stems different names")
        if (self.solver_method is None) != (self.solver_steps is None):
            problems.append("solver_method and solver_steps go together; give both or none")
        if self.halo_seconds is not None and self.halo_seconds >= (self.segment_seconds or math.inf):
            problems.append("halo_seconds must be smaller than segment_seconds; make segments longer")
        if self.device == "cpu" and self.gpus_per_separator:
            problems.append("gpus_per_separator with device=cpu; set it to 0 or use device=cuda")
        if self.device.startswith("cuda") and self.gpus_per_separator == 0:
            problems.append("gpus_per_separator=0 with a cuda device; leave it out or use device=cpu")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def read_prefixes(self) -> tuple[str, ...]:
        """Where media may be read from: as given, else the folder of the manifest."""
        if self.allowed_read_prefixes:
            return self.allowed_read_prefixes
        return (self.manifest.rstrip("/").rpartition("/")[0] if _is_file(self.manifest) else self.manifest,)

    def config_hash(self, model_version: str) -> str:
        """16 hex digits of all that changes a result, the model's version included; not of parallelism."""
        values = {name: getattr(self, name) for name in RESULT_FIELDS}
        values["model_version"] = model_version
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """All settings, for the runs table: URLs with credentials are refused, keys never get here."""
        return redact(json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=False))


def _as_tuple(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value


def _is_file(url: str) -> bool:
    return url.rsplit("/", 1)[-1].endswith((".parquet", ".pq"))


def load_config(
    argv: Sequence[str],
    defaults: Mapping[str, Any] | None = None,
    *,
    prog: str | None = None,
    description: str | None = None,
) -> JobConfig:
    """Read and check all sources. `argv` is without the program's name, `defaults` are the job's own.

    Raises JobConfigError. `--help` prints every setting and exits with 0.
    """
    values = dict(defaults or {})
    _refuse_unknown(values, "in the job's defaults")
    command_line = vars(_parser(values, prog, description).parse_args(list(argv)))
    path = command_line.pop("config", None) or os.environ.get(f"{ENV_PREFIX}CONFIG")
    values.update(_from_yaml(path) if path else {})
    values.update(_from_environment())
    values.update(command_line)
    try:
        return JobConfig(**values)
    except ValidationError as error:
        raise JobConfigError(_readable(error)) from None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: --([\w-]+)", message)
        hint = _suggestion(unknown.group(1).replace("-", "_")) if unknown else "; --help lists all settings"
        raise JobConfigError(redact(message) + hint)


def _parser(defaults: Mapping[str, Any], prog: str | None, description: str | None) -> _Parser:
    """Options made from the fields; pydantic checks their text like that of the other sources."""
    parser = _Parser(
        prog=prog,
        description=description,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,  # an option that is not given must not hide the environment's
        epilog=f"Every setting can also stand in the YAML file, or as {ENV_PREFIX}<SETTING> in the "
        "environment: the command line wins over the environment, and that over the file. S3 is set up by "
        "AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with settings, one `name: value` a line")
    for name, info in JobConfig.model_fields.items():
        options = [f"--{name.replace('_', '-')}"]
        default = defaults.get(name, "" if info.is_required() else info.default)
        text = str(info.description).replace("%", "%%")
        if default not in (None, (), ""):
            text += f" (default: {default if not isinstance(default, tuple | list) else ', '.join(default)})"
        elif info.is_required() and not default:
            text += " (required)"
        if info.annotation is bool:
            parser.add_argument(*options, help=text, action=argparse.BooleanOptionalAction)
        elif name in ("descriptions", "allowed_read_prefixes"):
            options.append(options[0].removesuffix("es") if name.endswith("xes") else options[0].removesuffix("s"))
            parser.add_argument(*options, help=text + ". Repeatable", metavar="TEXT", action="append", dest=name)
        else:
            parser.add_argument(*options, help=text, metavar=_metavar(info.annotation))
    return parser


def _metavar(annotation: Any) -> str:
    choices = [c for kind in (annotation, *get_args(annotation)) if get_origin(kind) is Literal for c in get_args(kind)]
    if choices:
        return "|".join(choices)
    kinds = {annotation, *get_args(annotation)}
    return "N" if int in kinds else "X" if float in kinds else "JSON" if Anchor in get_args(annotation) else "TEXT"


def _from_yaml(path: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise JobConfigError(f"--config {path}: {error.strerror}; name a YAML file that can be read") from None
    except (yaml.YAMLError, ValueError) as error:
        raise JobConfigError(f"--config {path} is not YAML: {redact(str(error))[:300]}") from None
    if not isinstance(values, dict):
        raise JobConfigError(f"--config {path} holds no settings; write one `name: value` a line")
    values = {str(name).replace("-", "_"): value for name, value in values.items()}
    _refuse_unknown(values, f"in {path}")
    return values


def _from_environment() -> dict[str, Any]:
    named = {name[len(ENV_PREFIX) :].lower() for name in os.environ if name.upper().startswith(ENV_PREFIX)}
    _refuse_unknown(named - {"config"}, f"in the environment ({ENV_PREFIX}...)")
    return EnvSettingsSource(JobConfig, env_prefix=ENV_PREFIX, env_ignore_empty=True)()


def _refuse_unknown(names: Iterable[str], where: str) -> None:
    for name in sorted(set(names) - set(JobConfig.model_fields)):
        raise JobConfigError(f"unknown setting {name} {where}{_suggestion(name)}")


def _suggestion(name: str) -> str:
    close = difflib.get_close_matches(name, JobConfig.model_fields, n=1)
    return f"; did you mean {close[0]}?" if close else "; --help lists all settings"


def _readable(error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False):
        name = str(problem["loc"][0]) if problem["loc"] else ""
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown setting {name}{_suggestion(name)}")
        elif problem["type"] == "missing":
            lines.append(f"{name} is missing; give --{name.replace('_', '-')}")
        elif name:
            got = "" if problem["type"] == "value_error" else f", got {problem['input']!r}"
            lines.append(f"{name}: {message}{got}")
        else:
            lines.append(message)
    return redact("\n".join(lines))
