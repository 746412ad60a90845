"""Reading and writing models: the shipped one, a local folder, any fsspec URL, or the Hugging Face hub.

A checkpoint is `config.json` beside `model.safetensors` (ours) or `checkpoint.pt` (released by
facebookresearch/sam-audio: a flat float32 state dict). Nothing is executed from a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import tempfile
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .config import ConfigError, SAMAudioConfig
from .vision import is_clip_text_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .model import SAMAudio

SHIPPED = {"tiny": Path(__file__).parent / "weights"}
CONFIG_NAME = "config.json"
WEIGHT_NAMES = ("model.safetensors", "checkpoint.pt")
_END_BYTES = 4 << 20

# Parts a checkpoint may hold that are built (and loaded) elsewhere, if at all.
_ELSEWHERE = ("text_encoder.", "visual_ranker.", "text_ranker.", "span_predictor.")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be loaded: names the file and the key, and says what to do."""


def read_config(
    name_or_path: str | Path, *, revision: str | None = None, overrides: Mapping[str, Any] | None = None
) -> SAMAudioConfig:
    """The configuration of a model; `overrides` replace top-level entries of its `config.json`."""
    with _open(name_or_path, revision) as get:
        return _parse_config(get(CONFIG_NAME), overrides or {})


def fingerprint(name_or_path: str | Path, *, revision: str | None = None) -> str:
    """Hash that tells checkpoints apart without reading gigabytes: config, size and both ends of the weights."""
    with _open(name_or_path, revision) as get:
        digest = hashlib.sha256(get(CONFIG_NAME).read_bytes())
        weights = _first(get, WEIGHT_NAMES, str(name_or_path))
        size = weights.stat().st_size
        digest.update(str(size).encode())
        with weights.open("rb") as file:
            digest.update(file.read(_END_BYTES))
            file.seek(max(size - _END_BYTES, 0))
            digest.update(file.read())
    return digest.hexdigest()


def load(
    name_or_path: str | Path,
    build: Callable[[SAMAudioConfig], SAMAudio],
    *,
    device: torch.device | str = "cpu",
    revision: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> SAMAudio:
    """Build a model without memory for its weights, then give it the checkpoint's; in eval mode, float32.

    Raises CheckpointError when the checkpoint is missing, truncated, or holds other keys or shapes than the
    configuration says.
    """
    with _open(name_or_path, revision) as get:
        config = _parse_config(get(CONFIG_NAME), overrides or {})
        weights = _first(get, WEIGHT_NAMES, str(name_or_path))
        with torch.device("meta"):
            model = build(config)
        assign(model, _read_weights(weights), source=str(weights))
    model.eval()
    return model.to(device)


def assign(model: SAMAudio, state: Mapping[str, Tensor], *, source: str) -> None:
    """Give `model` (usually on the meta device) the tensors of `state`, key by key; strict both ways.

    Accepted and not kept: the CLIP text tower inside the released vision encoder, and parts that are loaded
    elsewhere (text encoder, rankers, span predictor).
    """
    wanted = model.state_dict()
    vision = model.config.vision_encoder is not None
    given = {key: tensor for key, tensor in state.items() if not _skipped(key, vision)}
    missing = sorted(set(wanted) - set(given))
    unexpected = sorted(set(given) - set(wanted))
    shapes = [
        f"{key} is {list(given[key].shape)}, expected {list(wanted[key].shape)}"
        for key in wanted
        if key in given and given[key].shape != wanted[key].shape
    ]
    problems = [
        f"{len(found)} {what}: {', '.join(found[:5])}{', ...' if len(found) > 5 else ''}"
        for what, found in (
            ("missing keys", missing),
            ("unexpected keys", unexpected),
            ("wrong shapes", shapes),
        )
        if found
    ]
    if problems:
        raise CheckpointError(
            f"{source} does not fit its config.json ({'; '.join(problems)}). Check that both come from the same model"
        )
    tensors = {key: t.float() if t.is_floating_point() else t for key, t in given.items()}
    model.load_state_dict(tensors, strict=True, assign=True)


def save(model: SAMAudio, folder: str | Path) -> None:
    """Write `config.json` and `model.safetensors` into `folder` (made if missing)."""
    model.transformer.set_heads_first(False)  # the checkpoint's layout
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_NAME).write_text(json.dumps(model.config.to_dict(), indent=1) + "\n")
    path = folder / WEIGHT_NAMES[0]
    save_file({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}, path)
    path.chmod(0o644)  # safetensors lets only the owner read; a model folder is there to be shared


def _skipped(key: str, vision: bool) -> bool:
    return key.startswith(_ELSEWHERE) or (vision and is_clip_text_key(key))


def _parse_config(path: Path, overrides: Mapping[str, Any]) -> SAMAudioConfig:
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}). Fetch the checkpoint again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not a {type(values).__name__}")
    try:
        return SAMAudioConfig.from_dict(values | dict(overrides))
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _read_weights(path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} holds more than tensors and is not opened ({error})") from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        size = path.stat().st_size
        raise CheckpointError(
            f"{path} ({size} bytes) is truncated or no checkpoint ({error}). Fetch it again"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise CheckpointError(f"{path} is not a flat state dict of tensors")
    return state


def _first(get: Callable[[str], Path], names: tuple[str, ...], source: str) -> Path:
    for name in names:
        try:
            return get(name)
        except FileNotFoundError:
            continue
    raise CheckpointError(f"{source} holds none of {', '.join(names)}")


@contextmanager
def _open(name_or_path: str | Path, revision: str | None) -> Iterator[Callable[[str], Path]]:
    """A function from file name to local path; it raises FileNotFoundError for what the checkpoint lacks.

    Remote files live in a temporary folder: their mappings stay valid after it is gone.
    """
    name = str(name_or_path)
    if name in SHIPPED or Path(name).is_dir():
        yield _local(SHIPPED.get(name, Path(name)), name)
    elif "://" in name:
        with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:
            yield _remote(name, Path(folder))
    elif name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists():
        yield _hub(name, revision)
    else:
        raise CheckpointError(
            f"no model at {name!r}: give {', '.join(map(repr, SHIPPED))}, an existing folder, a URL "
            "(s3://bucket/folder) or a hub name (owner/name)"
        )


def _local(folder: Path, name: str) -> Callable[[str], Path]:
    def get(file: str) -> Path:
        path = folder / file
        if path.is_file():
            return path
        if file == CONFIG_NAME:
            raise CheckpointError(f"model {name!r}: {folder} holds no {CONFIG_NAME}")
        raise FileNotFoundError(path)

    return get


def _remote(url: str, folder: Path) -> Callable[[str], Path]:
    import fsspec

    def get(file: str) -> Path:
        source, path = f"{url.rstrip('/')}/{file}", folder / file
        try:
            filesystem, key = fsspec.core.url_to_fs(source)
            filesystem.get_file(key, str(path))
        except FileNotFoundError as error:
            if file == CONFIG_NAME:
                raise CheckpointError(f"{source} does not exist") from error
            raise
        except (OSError, ValueError, ImportError) as error:
            raise CheckpointError(f"{source} cannot be read: {error}") from error
        return path

    return get


def _hub(name: str, revision: str | None) -> Callable[[str], Path]:
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise CheckpointError(
            f"{name!r} is a name on the Hugging Face hub, and huggingface_hub is not installed: "
            "pip install 'sam-audio-pipeline[hub]', or give a local folder"
        ) from error

    def get(file: str) -> Path:
        try:
            return Path(huggingface_hub.hf_hub_download(name, file, revision=revision))
        except errors.GatedRepoError as error:
            raise CheckpointError(
                f"{name!r} is gated: accept its licence on its page, then log in with `hf auth login`"
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise CheckpointError(
                f"the hub has no model {name!r} that you may read; check the name, or log in with `hf auth login`"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise CheckpointError(f"{name!r} has no revision {revision!r}") from error
        except errors.LocalEntryNotFoundError as error:
            raise CheckpointError(
                f"{file} of {name!r} is not in the local cache and the hub cannot be reached ({error})"
            ) from error
        except errors.EntryNotFoundError as error:
            if file == CONFIG_NAME:
                raise CheckpointError(f"{name!r} on the hub holds no {CONFIG_NAME}") from error
            raise FileNotFoundError(f"{name}/{file}") from error
        except (errors.HfHubHTTPError, OSError) as error:
            raise CheckpointError(f"{file} of {name!r} cannot be fetched: {error}") from error

    return get
