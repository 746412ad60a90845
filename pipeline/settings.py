"""Settings of a job from command line, environment and YAML file.

Precedence: command line, then environment, then the YAML file, then the job's own defaults, then those of JobConfig.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

import yaml  # type: ignore[import-untyped]
from pydantic import ValidationError
from pydantic_settings import EnvSettingsSource

from pipeline.config import JobConfig, JobConfigError
from pipeline.prompts import Anchor
from pipeline.uris import redact

ENV_PREFIX = "SAM_PIPELINE_"


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
        elif name in ("descriptions", "prompts", "allowed_read_prefixes", "retry_causes"):
            options.append(options[0].removesuffix("es") if name.endswith("xes") else options[0].removesuffix("s"))
            parser.add_argument(*options, help=text + ". Repeatable", metavar="TEXT", action="append", dest=name)
        else:
            parser.add_argument(*options, help=text, metavar=_metavar(info.annotation))
    return parser


def _metavar(annotation: Any) -> str:
    choices = [c for kind in (annotation, *get_args(annotation)) if get_origin(kind) is Literal for c in get_args(kind)]
    kinds = {annotation, *get_args(annotation)}
    if choices:
        return "|".join([*map(str, choices), *(["N"] if int in kinds else [])])
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
