"""State dicts on disk: safetensors in one file or in shards, or the released `checkpoint.pt`.

Tensors are mapped, not read: what nobody asks for costs no memory. Nothing is executed from a file.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .sources import CheckpointError, Files

INDEX_NAME = "model.safetensors.index.json"
WEIGHT_NAMES = ("model.safetensors", "checkpoint.pt")


def weight_files(files: Files, source: str) -> list[str]:
    """Names of the files that hold a model's weights, of shards after their index. Fetches that index only.

    Raises CheckpointError when there are none.
    """
    if files.has(INDEX_NAME):
        return [INDEX_NAME, *sorted(set(_index(files(INDEX_NAME)).values()))]
    for name in WEIGHT_NAMES:
        if files.has(name):
            return [name]
    names = ", ".join((*WEIGHT_NAMES, INDEX_NAME))
    try:
        files(WEIGHT_NAMES[0])  # says why not, which may be a hub that cannot be reached
    except FileNotFoundError as error:
        raise CheckpointError(f"{source} holds none of {names} ({error})") from error
    return [WEIGHT_NAMES[0]]  # it has just appeared


def read_state(files: Files, source: str) -> tuple[dict[str, Tensor], str]:
    """A model's tensors, mapped, and the path to name in errors about them. Raises CheckpointError."""
    first, *shards = weight_files(files, source)
    path = files(first)
    if first != INDEX_NAME:
        return dict(read_file(path)), str(path)
    placed = _index(path)
    state: dict[str, Tensor] = {}
    for shard in shards:
        try:
            part = read_file(files(shard))
        except FileNotFoundError as error:
            raise CheckpointError(f"{path} names {shard}, and {error}. Fetch the checkpoint again") from error
        wanted = {key for key, file in placed.items() if file == shard}
        if wanted != set(part):
            odd = sorted(wanted ^ set(part))
            raise CheckpointError(
                f"{shard} does not hold what {path} says ({len(odd)} keys differ: {', '.join(odd[:5])}). "
                "Fetch the checkpoint again"
            )
        state.update(part)
    return state, str(path)


def read_file(path: Path) -> Mapping[str, Tensor]:
    """The tensors of one file. Raises CheckpointError when it is truncated or holds anything else."""
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


def write_file(state: Mapping[str, Tensor], path: Path) -> None:
    """Write one safetensors file. A file of that name may be mapped by a model: it is replaced, never written over."""
    part = path.with_name(f".{path.name}.part")
    try:
        save_file({key: t.detach().cpu().contiguous() for key, t in state.items()}, part, {"format": "pt"})
        part.chmod(0o644)  # safetensors lets only the owner read; a model folder is there to be shared
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _index(path: Path) -> dict[str, str]:
    try:
        placed = json.loads(path.read_text())["weight_map"]
        if not isinstance(placed, dict) or not all(isinstance(file, str) for file in placed.values()):
            raise TypeError("weight_map is no table of files")
        if any(Path(file).name != file for file in placed.values()):
            raise ValueError("weight_map leaves the folder")
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is no index of shards ({error}). Fetch the checkpoint again") from error
    return placed
