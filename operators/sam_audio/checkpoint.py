"""Reading and writing models: `config.json` and the weights that fit it.

Weights are `model.safetensors`, shards of it, or `checkpoint.pt` (released by facebookresearch/sam-audio: a flat
float32 state dict). Where the files come from: `sources.py`; how they are read: `state_files.py`.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

import torch
from torch import Tensor, nn

from .codec_layers import fold_weight_norm
from .config import ConfigError, SAMAudioConfig
from .sources import Access, CheckpointError, Files, open_files
from .state_files import WEIGHT_NAMES, read_state, weight_files, write_file
from .vision import is_clip_text_key

if TYPE_CHECKING:
    from .model import SAMAudio

C = TypeVar("C")
M = TypeVar("M", bound=nn.Module)

CONFIG_NAME = "config.json"
LAYOUT_KEY = "sam_audio_pipeline"  # in config.json: how weights lie where they differ from the released layout

# Parts a checkpoint may hold that are built (and loaded) elsewhere, if at all.
_ELSEWHERE = ("text_encoder.", "visual_ranker.", "text_ranker.", "span_predictor.")
# Kept in float32 whatever type is asked for: its waveforms suffer audibly, and it is a small part of the model.
_FLOAT32 = ("audio_codec.",)


@dataclass(frozen=True)
class Layout:
    """How a checkpoint's weights differ from the released ones: rearranged for speed, same function.

    heads_first: rows of the DiT's wq, wk and wv by head (`DiT.set_heads_first`). weight_norm_folded: the codec's
    convolutions hold `weight` instead of `weight_g` and `weight_v`.
    """

    heads_first: bool = False
    weight_norm_folded: bool = False

    @classmethod
    def parse(cls, values: Any) -> Layout:
        known = {"heads_first", "weight_norm_folded"}
        if (
            not isinstance(values, Mapping)
            or set(values) - known
            or not all(isinstance(v, bool) for v in values.values())
        ):
            raise ConfigError(
                f"{LAYOUT_KEY}: {values!r} is of another version: this one knows {', '.join(sorted(known))} (booleans)"
            )
        return cls(**values)

    @classmethod
    def of(cls, model: SAMAudio) -> Layout:
        codec = model.audio_codec.state_dict()  # empty for the band codec, which has nothing to fold
        folded = bool(codec) and not any(key.endswith(".weight_g") for key in codec)
        return cls(model.transformer.blocks[0].attention.heads_first, folded)

    def arrange(self, model: SAMAudio) -> SAMAudio:
        """Bring a model in the released layout (on any device, meta too) into this one."""
        model.transformer.set_heads_first(self.heads_first)
        if self.weight_norm_folded:
            fold_weight_norm(model.audio_codec)
        return model


def read_config(
    name_or_path: str | Path, *, overrides: Mapping[str, Any] | None = None, **access: Unpack[Access]
) -> SAMAudioConfig:
    """The configuration of a model; `overrides` replace top-level entries of its `config.json`."""
    with open_files(name_or_path, **access) as files:
        return _parse_config(files, str(name_or_path), _sam_audio, overrides)[0]


def read_part_config(name_or_path: str | Path, parse: Callable[[dict[str, Any]], C], **access: Unpack[Access]) -> C:
    """What `parse` makes of a `config.json`. Raises CheckpointError."""
    with open_files(name_or_path, **access) as files:
        return _parse_config(files, str(name_or_path), parse, None)


def fingerprint(name_or_path: str | Path, **access: Unpack[Access]) -> str:
    """Hash that tells checkpoints apart without reading or fetching gigabytes of weights.

    Of configuration and, for folders and URLs, size and both ends of the weights; for the hub, its hash of them.
    """
    with open_files(name_or_path, **access) as files:
        digest = hashlib.sha256(_config_path(files, str(name_or_path)).read_bytes())
        for file in weight_files(files, str(name_or_path)):
            digest.update(files.stamp(file))
    return digest.hexdigest()


def load(
    name_or_path: str | Path,
    build: Callable[[SAMAudioConfig], SAMAudio],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    strict: bool = True,
    overrides: Mapping[str, Any] | None = None,
    vision: bool = True,
    **access: Unpack[Access],
) -> SAMAudio:
    """A separator in eval mode; as `load_part`. The codec stays in float32 whatever `dtype` is.

    Without `vision` the weights of the image tower are not read; `build` must leave it out.
    """
    return load_part(
        name_or_path,
        parse=_sam_audio,
        build=lambda parsed: parsed[1].arrange(build(parsed[0])),
        device=device,
        dtype=dtype,
        strict=strict,
        overrides=overrides,
        ignored=lambda key: _ignored(key) or (not vision and key.startswith("vision_encoder.")),
        float32=_FLOAT32,
        **access,
    )


def load_part(
    name_or_path: str | Path,
    *,
    parse: Callable[[dict[str, Any]], C],
    build: Callable[[C], M],
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    strict: bool = True,
    overrides: Mapping[str, Any] | None = None,
    rename: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
    ignored: Callable[[str], bool] | None = None,
    float32: tuple[str, ...] = (),
    **access: Unpack[Access],
) -> M:
    """Build a module without memory for its weights, then give it the checkpoint's, one by one; in eval mode.

    parse: the values of `config.json` (with `overrides` in place of its top-level entries) to a configuration.
    build: runs on the meta device; a buffer that is not in the checkpoint must be made under torch.device("cpu").
    dtype: of floating-point weights, float32 by default; keys that start with one of `float32` stay in that.
    rename: from the checkpoint's tensors (mapped, not read) to the module's names. ignored: keys that are not kept.
    strict=False loads what fits, leaves the rest as `build` made it and says so in a warning.
    access: revision, token, cache_dir, local_files_only; see `open_files`.

    Raises CheckpointError when the checkpoint is missing, truncated, or holds other keys or shapes than the
    configuration says.
    """
    with open_files(name_or_path, **access) as files:
        config = _parse_config(files, str(name_or_path), parse, overrides)
        state, source = read_state(files, str(name_or_path))
        if rename is not None:
            state = rename(state)
        with torch.device("meta") if strict else nullcontext():
            model = build(config)
        given = {key: t for key, t in state.items() if ignored is None or not ignored(key)}
        del state
        fill(model, given, source=source, device=device, dtype=dtype or torch.float32, float32=float32, strict=strict)
    left = [name for name, t in chain(model.named_parameters(), model.named_buffers()) if t.is_meta]
    if left:
        raise RuntimeError(f"built on the meta device and in no checkpoint: {', '.join(left[:5])}")
    return model.eval().to(device)


def assign(model: SAMAudio, state: Mapping[str, Tensor], *, source: str) -> None:
    """Give `model` (usually on the meta device) the tensors of `state`, key by key, in float32; strict both ways.

    Accepted and not kept: the CLIP text tower inside the released vision encoder, and parts that are loaded
    elsewhere (text encoder, rankers, span predictor).
    """
    fill(model, {key: t for key, t in state.items() if not _ignored(key)}, source=source)


def fill(
    model: nn.Module,
    given: dict[str, Tensor],
    *,
    source: str,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    float32: tuple[str, ...] = (),
    strict: bool = True,
) -> None:
    """Give `model` the tensors of `given`, which is emptied: a tensor leaves the host as soon as it is placed."""
    wanted = {key: t.shape for key, t in model.state_dict().items()}
    problems = _problems(wanted, given)
    if problems and strict:
        raise CheckpointError(
            f"{source} does not fit its config.json ({'; '.join(problems)}). Check that both come from the same model"
        )
    if problems:
        warnings.warn(f"{source} does not fit its config.json, loaded the rest: {'; '.join(problems)}", stacklevel=2)
    placed: dict[str, Tensor] = {}
    for key in list(given):
        tensor = given.pop(key)
        if key in wanted and tensor.shape == wanted[key]:
            kind = torch.float32 if key.startswith(float32) else dtype
            placed[key] = tensor.to(device, kind) if tensor.is_floating_point() else tensor.to(device)
    model.load_state_dict(placed, strict=strict, assign=True)


def save(model: SAMAudio, folder: str | Path) -> None:
    """Write `config.json` and `model.safetensors` into `folder` (made if missing)."""
    model.transformer.set_heads_first(False)  # the checkpoint's layout
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_config(model.config, Layout.of(model), folder)
    write_file(model.state_dict(), folder / WEIGHT_NAMES[0])


def write_config(config: SAMAudioConfig, layout: Layout, folder: Path) -> None:
    """Write `config.json`; the layout is left out where it is the released one."""
    values = config.to_dict()
    if layout != Layout():
        values[LAYOUT_KEY] = asdict(layout)
    (folder / CONFIG_NAME).write_text(json.dumps(values, indent=1) + "\n")


def _ignored(key: str) -> bool:
    return key.startswith(_ELSEWHERE) or is_clip_text_key(key)


def _sam_audio(values: dict[str, Any]) -> tuple[SAMAudioConfig, Layout]:
    layout = Layout.parse(values.pop(LAYOUT_KEY, {}))
    return SAMAudioConfig.from_dict(values), layout


def _problems(wanted: Mapping[str, torch.Size], given: Mapping[str, Tensor]) -> list[str]:
    shapes = [
        f"{key} is {list(given[key].shape)}, expected {list(shape)}"
        for key, shape in wanted.items()
        if key in given and given[key].shape != shape
    ]
    return [
        f"{len(found)} {what}: {', '.join(found[:5])}{', ...' if len(found) > 5 else ''}"
        for what, found in (
            ("missing keys", sorted(set(wanted) - set(given))),
            ("unexpected keys", sorted(set(given) - set(wanted))),
            ("wrong shapes", shapes),
        )
        if found
    ]


def _config_path(files: Files, source: str) -> Path:
    try:
        return files(CONFIG_NAME)
    except FileNotFoundError as error:
        raise CheckpointError(f"model {source!r} holds no {CONFIG_NAME}: {error}") from error


def _parse_config(
    files: Files, source: str, parse: Callable[[dict[str, Any]], C], overrides: Mapping[str, Any] | None
) -> C:
    path = _config_path(files, source)
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}). Fetch the checkpoint again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not a {type(values).__name__}")
    try:
        return parse(values | dict(overrides or {}))
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
