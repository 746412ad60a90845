"""`TrainingConfig`: every setting of jobs/train_separator.py, from the command line and a YAML file."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin

import yaml  # type: ignore[import-untyped]
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from operators.errors import AssetError
from operators.sam_audio.config import SIZES, ConfigError, SAMAudioConfig
from operators.sam_audio.training.lora import LoRAConfig
from operators.sam_audio.training.mixing import MixingOptions
from operators.sam_audio.training.objective import ObjectiveConfig, default_objective
from pipeline.config import JobConfigError
from pipeline.keys import safe_name
from pipeline.uris import locate

# May differ when a run is continued: they do not change what is learned.
OPERATIONAL = frozenset({
    "workers", "micro_batch", "gpus_per_worker", "max_failures", "checkpoint_every", "keep_checkpoints",
    "lease_seconds", "allowed_read_prefixes", "manifest",
})  # fmt: skip
_JSON = ("objective", "mixing", "lora")


class TrainingConfig(BaseModel):
    """Settings of one training run. A run of the same name goes on where it stopped, if its settings are the same."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    manifest: str = Field(description="Training manifest: a Parquet file or a folder of them, path or URL")
    lake: str = Field(description="Folder that the run is written to, below training/<run>: a path or a URL")
    run: str = Field(min_length=1, max_length=100, description="Name of the run")
    model: str = Field(default="tiny", description="Checkpoint to start from: tiny, a folder, a URL or a hub name")
    mode: Literal["lora", "full", "scratch"] = Field(
        default="lora",
        description="lora: train adapters; full: train all of the DiT; scratch: random weights in the model's layout "
        "(its codec and image tower are kept, they are never trained)",
    )
    size: str | None = Field(default=None, description=f"scratch: width and depth of {', '.join(SIZES)} instead")
    prediction: Literal["x", "velocity"] | None = Field(
        default=None, description="scratch: what the network predicts. Default: what the model's does"
    )
    steps: int = Field(default=1000, ge=1, description="Optimiser steps in all")
    examples_per_step: int = Field(default=32, ge=1, description="Examples of one step, over all workers")
    micro_batch: int = Field(
        default=8, ge=1, description="Examples in one pass of one worker; gradients of several passes are added up"
    )
    learning_rate: float | None = Field(default=None, gt=0, description="Default: 1e-4 for full, 3e-4 else")
    weight_decay: float = Field(default=0.01, ge=0, description="Of AdamW")
    optimizer: Literal["adamw", "muon"] = Field(
        default="adamw", description="muon: for the blocks' matrices, at ten times the rate; AdamW for the rest"
    )
    warmup_steps: int = Field(default=100, ge=0, description="Steps until the full learning rate")
    clip_norm: float = Field(default=1.0, gt=0, description="Largest norm of a step's gradient")
    ema: float = Field(default=0.999, ge=0, lt=1, description="Decay of the averaged weights, which are what is kept")
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Of matrix products; bfloat16 is for GPUs"
    )
    checkpoint_activations: bool = Field(
        default=False, description="Compute activations twice instead of keeping them: less memory, a third more time"
    )
    alignment: str | None = Field(
        default=None,
        description="Embedding for the alignment loss: cepstra, clap[:checkpoint], pe-a-frame[:checkpoint]. Needs "
        "alignment_weight in objective",
    )
    objective: dict[str, Any] = Field(default_factory=dict, description="JSON: entries of ObjectiveConfig to change")
    mixing: dict[str, Any] = Field(default_factory=dict, description="JSON: entries of MixingOptions to change")
    lora: dict[str, Any] = Field(default_factory=dict, description="JSON: entries of LoRAConfig to change")
    seed: int = Field(default=0, ge=0, lt=2**20, description="Of weights, examples and noise")
    validate_every: int = Field(default=100, ge=1, description="Steps between measurements on held-out examples")
    validation_examples: int = Field(default=32, ge=0, description="Held-out examples; 0 measures nothing")
    checkpoint_every: int = Field(default=100, ge=1, description="Steps between checkpoints")
    keep_checkpoints: int = Field(default=2, ge=1, description="Newest checkpoints that are kept")
    workers: int = Field(default=1, ge=1, description="Ray Train workers")
    gpus_per_worker: float | None = Field(default=None, ge=0, description="Default: 1 where the cluster has GPUs")
    max_failures: int = Field(default=3, ge=0, description="Lost workers after which the run gives up")
    lease_seconds: float = Field(default=60.0, gt=0, le=3600, description="How long a killed driver keeps others out")
    allowed_read_prefixes: tuple[str, ...] = Field(
        default=(), description="Folders recordings may be read from. Default: the manifest's folder and the lake"
    )

    @field_validator(*_JSON, mode="before")
    @classmethod
    def _json(cls, value: Any) -> Any:
        return json.loads(value) if isinstance(value, str) else value

    @field_validator("manifest", "lake")
    @classmethod
    def _absolute(cls, value: str) -> str:
        """Workers may stand in another folder."""
        url = value if "://" in value else os.path.abspath(Path(value).expanduser())  # noqa: PTH100
        try:
            locate(url)
        except AssetError as error:
            raise ValueError(f"{error.message}; {error.remedy}") from None
        return url

    @model_validator(mode="after")
    def _no_contradiction(self) -> Self:
        if self.examples_per_step % (self.workers * self.micro_batch):
            raise ValueError(
                f"examples_per_step {self.examples_per_step} is no multiple of workers {self.workers} x micro_batch "
                f"{self.micro_batch}; change one of them"
            )
        if self.mode != "scratch" and (self.size or self.prediction):
            raise ValueError("size and prediction are for mode scratch; leave them out, or set --mode scratch")
        if self.size and self.size not in SIZES:
            raise ValueError(f"size {self.size!r} is unknown; use {', '.join(SIZES)}")
        if bool(self.alignment) != bool(self.objective.get("alignment_weight")):
            raise ValueError(
                "alignment and alignment_weight go together: give --alignment cepstra --objective "
                "'{\"alignment_weight\": 0.5}', or neither"
            )
        for name, kind in (("objective", ObjectiveConfig), ("mixing", MixingOptions), ("lora", LoRAConfig)):
            unknown = sorted(set(getattr(self, name)) - {f.name for f in fields(kind)})
            if unknown:
                known = ", ".join(f.name for f in fields(kind))
                raise ValueError(f"{name}: unknown {', '.join(unknown)}; known are {known}")
        return self

    @property
    def read_prefixes(self) -> tuple[str, ...]:
        folder = self.manifest.rpartition("/")[0] if self.manifest.endswith((".parquet", ".pq")) else self.manifest
        return self.allowed_read_prefixes or (folder, self.lake)

    @property
    def rate(self) -> float:
        return self.learning_rate or (1e-4 if self.mode == "full" else 3e-4)

    @property
    def key(self) -> str:
        """Where the run lies in the lake."""
        return f"training/{safe_name(self.run)}"

    def objective_for(self, config: SAMAudioConfig) -> ObjectiveConfig:
        return replace(default_objective(config), **self.objective)

    def lora_config(self) -> LoRAConfig:
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in self.lora.items()}
        return LoRAConfig(**values)

    def mixing_options(self) -> MixingOptions:
        return MixingOptions(**self.mixing)

    def learned(self) -> dict[str, Any]:
        """The settings that a continued run must share."""
        return {name: value for name, value in self.model_dump(mode="json").items() if name not in OPERATIONAL}


def parse_training(argv: Sequence[str], description: str) -> TrainingConfig:
    """Settings of the command line over those of `--config FILE` (YAML). Raises JobConfigError."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with settings, one `name: value` a line")
    for name, info in TrainingConfig.model_fields.items():
        text = str(info.description).replace("%", "%%")
        if not info.is_required() and info.default not in (None, ()) and name not in _JSON:
            text += f" (default: {info.default})"
        option = f"--{name.replace('_', '-')}"
        if info.annotation is bool:
            parser.add_argument(option, help=text, action=argparse.BooleanOptionalAction)
        elif name == "allowed_read_prefixes":
            parser.add_argument(option, help=text, nargs="+", metavar="URL")
        else:
            parser.add_argument(option, help=text, metavar=_metavar(info.annotation))
    given = vars(parser.parse_args(list(argv)))
    path = given.pop("config", None)
    return checked({**(_from_yaml(path) if path else {}), **given})


def checked(values: Mapping[str, Any]) -> TrainingConfig:
    """Raises JobConfigError, a line a problem."""
    try:
        config = TrainingConfig(**values)
        config.lora_config(), config.mixing_options(), ObjectiveConfig(**config.objective)
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_url=False):
            name = str(problem["loc"][0]) if problem["loc"] else ""
            message = problem["msg"].removeprefix("Value error, ")
            missing = problem["type"] == "missing"
            lines.append(f"{name} is missing; give --{name}" if missing else f"{name}: {message}" if name else message)
        raise JobConfigError("\n".join(lines)) from None
    except (ConfigError, TypeError, ValueError) as error:
        raise JobConfigError(str(error)) from None
    return config


def _from_yaml(path: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise JobConfigError(f"--config {path} cannot be read ({error}); name a YAML file of settings") from None
    if not isinstance(values, dict):
        raise JobConfigError(f"--config {path} holds no settings; write one `name: value` a line")
    return {str(name).replace("-", "_"): value for name, value in values.items()}


def _metavar(annotation: Any) -> str:
    for kind in (annotation, *get_args(annotation)):
        if get_origin(kind) is Literal:
            return "|".join(map(str, get_args(kind)))
    kinds = {annotation, *get_args(annotation)}
    return "N" if int in kinds else "X" if float in kinds else "TEXT" if str in kinds else "JSON"
