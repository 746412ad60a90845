"""Prompts: what to lift out of an asset, in words, by spans of time, by a masked video, or by several of these."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import pyarrow as pa
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator


class Anchor(NamedTuple):
    """A span prompt: the sound is (`+`) or is not (`-`) heard from `start` to `end`, in seconds."""

    token: str
    start: float
    end: float


def parse_anchors(value: Any) -> tuple[Anchor, ...]:
    """Anchors from JSON text, from [token, start, end] triples or from {token, start, end} structs.

    Raises ValueError for a token other than + and -, and for a span that is not 0 <= start < end.
    """
    if isinstance(value, str):
        value = json.loads(value) if value.strip() else None
    if value is None:
        return ()
    if isinstance(value, Mapping) or not hasattr(value, "__iter__"):
        raise ValueError("anchors must be a list of [token, start, end]")
    anchors = []
    for entry in value:
        if isinstance(entry, Mapping):
            entry = [entry.get(name) for name in Anchor._fields]
        if isinstance(entry, str) or not hasattr(entry, "__len__") or len(entry) != 3 or None in list(entry):
            raise ValueError(f"an anchor is [token, start, end], got {entry!r}")
        token, start, end = entry[0], float(entry[1]), float(entry[2])
        if token not in ("+", "-"):
            raise ValueError(f"an anchor's token is '+' (heard) or '-' (not heard), got {token!r}")
        if not 0 <= start < end < math.inf:
            raise ValueError(f"an anchor needs 0 <= start < end in seconds, got {start} and {end}")
        anchors.append(Anchor(str(token), start, end))
    return tuple(anchors)


def anchors_json(anchors: Sequence[tuple[str, float, float]] | None) -> str | None:
    """Anchors as JSON text for the tables (`[["+", 1.0, 2.5]]`), None when there are none."""
    return json.dumps([list(a) for a in anchors]) if anchors else None


def check_label(value: str | None) -> str | None:
    """A stem's name, which becomes a file name. Raises ValueError."""
    if value is None:
        return None
    plain = value.isascii() and value.replace("_", "").isalnum() and value == value.lower()
    if not plain or len(value) > 64:
        raise ValueError(f"{value!r} is not a label; use up to 64 lower-case letters, digits and _")
    return value


class Prompt(BaseModel):
    """One prompt. At least one of `description`, `anchors` and `mask_uri` is given.

    `name` and `residual_name` are what the two stems are called; by default they come from the description.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str | None = None
    residual_name: str | None = None
    description: str = ""
    anchors: Annotated[tuple[Anchor, ...], BeforeValidator(parse_anchors)] = ()
    mask_uri: str | None = Field(default=None, max_length=4096)

    @field_validator("name", "residual_name")
    @classmethod
    def _label(cls, value: str | None) -> str | None:
        return check_label(value)

    @field_validator("description", mode="before")
    @classmethod
    def _stripped(cls, value: Any) -> Any:
        return value.strip() if isinstance(value, str) else "" if value is None else value

    @property
    def is_empty(self) -> bool:
        return not (self.description or self.anchors or self.mask_uri)

    def labels(self, target: str | None = None, residual: str | None = None) -> tuple[str, str]:
        """Names of the two stems; `target` and `residual` are the job's, for prompts without names of their own."""
        name = self.name or target or slug(self.description) or "target"
        if self.residual_name:
            return name, self.residual_name
        if residual and not self.name:
            return name, residual
        return name, "residual" if name == "target" else f"{name[:55]}_residual"


def parse_prompts(value: Any) -> tuple[Prompt, ...]:
    """Prompts from a list (or JSON text of one) of descriptions, `name=description` texts, or structs.

    Raises ValueError for an empty prompt, for two alike, and for two of one name.
    """
    if isinstance(value, str):
        value = json.loads(value) if value.lstrip().startswith(("[", "{")) else [value]
    if value is None:
        return ()
    if isinstance(value, Mapping | Prompt):
        value = [value]
    if not hasattr(value, "__iter__"):
        raise ValueError("prompts must be a list of descriptions or of {name, description, anchors, mask_uri}")
    prompts: list[Prompt] = []
    for entry in value:
        prompt = _prompt(entry)
        if prompt.is_empty:
            raise ValueError("empty prompt: give a description, anchors or mask_uri")
        if prompt in prompts:
            raise ValueError(f"repeated prompt {prompt.name or prompt.description!r}; remove it")
        if prompt.name is not None and prompt.name in {p.name for p in prompts}:
            raise ValueError(f"two prompts are called {prompt.name!r}; give them different names")
        prompts.append(prompt)
    return tuple(prompts)


def _prompt(entry: Any) -> Prompt:
    if isinstance(entry, Prompt):
        return entry
    if isinstance(entry, str):
        named = re.fullmatch(r"\s*([a-z0-9_]+)\s*=(.*)", entry, re.DOTALL)
        if entry.lstrip().startswith("{"):
            entry = json.loads(entry)
        elif named:
            entry = {"name": named.group(1), "description": named.group(2)}
        else:
            entry = {"description": entry}
    if not isinstance(entry, Mapping):
        raise ValueError(f"a prompt is a description or {{name, description, anchors, mask_uri}}, got {entry!r}")
    try:
        return Prompt.model_validate({k: v for k, v in entry.items() if v is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"prompt {where}: {first['msg'].removeprefix('Value error, ')}") from None


def slug(text: str) -> str:
    """A description as a label: `Man speaking!` -> `man_speaking`; "" when nothing of it is left."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:64].rstrip("_")


ANCHORS_TYPE = pa.list_(pa.struct([("token", pa.string()), ("start", pa.float64()), ("end", pa.float64())]))
PROMPTS_TYPE = pa.list_(
    pa.struct(
        [
            ("name", pa.string()),
            ("residual_name", pa.string()),
            ("description", pa.string()),
            ("anchors", ANCHORS_TYPE),
            ("mask_uri", pa.string()),
        ]
    )
)
