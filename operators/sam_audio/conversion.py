"""A checkpoint rewritten for fast loading: rearranged once, in shards, in the type it will run in, with checksums.

Loads by `from_pretrained` like any other; `config.json` says what was rearranged (`checkpoint.Layout`).
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import torch

from .checkpoint import CONFIG_NAME, Layout, write_config
from .codec import DACVAE
from .model import SAMAudio
from .sources import CheckpointError
from .state_files import INDEX_NAME, WEIGHT_NAMES, write_file

SUMS_NAME = "SHA256SUMS"
_BLOCK = 8 << 20


@dataclass(frozen=True)
class Written:
    """One file of a checkpoint: its name, size in bytes and SHA-256 in hex."""

    name: str
    size: int
    sha256: str


def convert(
    model: SAMAudio, target: str | Path, *, dtype: torch.dtype, shard_bytes: int = 2 << 30
) -> Iterator[Written]:
    """Write `model` below `target` (a folder or a URL); yields every file when it is there.

    The DiT's heads lie together and the codec's weight norm is folded, in `model` too: the conversion needs no second
    copy of the weights. The codec stays in float32 whatever `dtype` is. `SHA256SUMS` comes last: a folder without it
    is not complete. Raises CheckpointError when a checkpoint is there already.
    """
    store = _Store(str(target))
    if store.has(CONFIG_NAME):
        raise CheckpointError(f"{target} holds a {CONFIG_NAME} already: give an empty folder")
    layout = Layout(heads_first=True, weight_norm_folded=isinstance(model.audio_codec, DACVAE))
    layout.arrange(model)
    state = {
        key: t.to(dtype) if t.is_floating_point() and not key.startswith("audio_codec.") else t
        for key, t in model.state_dict().items()
    }
    shards = plan_shards({key: t.nbytes for key, t in state.items()}, shard_bytes)
    done = []
    with tempfile.TemporaryDirectory(prefix="convert-") as folder:
        for name, keys in shards.items():
            path = store.local(name, Path(folder))
            write_file({key: state.pop(key) for key in keys}, path)
            done.append(store.put(path))
            yield done[-1]
        if len(shards) > 1:
            index = {
                "metadata": {"total_size": sum(file.size for file in done)},
                "weight_map": {key: name for name, keys in shards.items() for key in keys},
            }
            path = store.local(INDEX_NAME, Path(folder))
            path.write_text(json.dumps(index, indent=1) + "\n")
            done.append(store.put(path))
            yield done[-1]
        write_config(model.config, layout, store.local(CONFIG_NAME, Path(folder)).parent)
        done.append(store.put(store.local(CONFIG_NAME, Path(folder))))
        yield done[-1]
        path = store.local(SUMS_NAME, Path(folder))
        path.write_text("".join(f"{file.sha256}  {file.name}\n" for file in done))
        yield store.put(path)


def verify(target: str | Path) -> Iterator[tuple[str, str | None]]:
    """Every file of `SHA256SUMS` below `target` and what is wrong with it, or None. CheckpointError without sums."""
    store = _Store(str(target))
    if not store.has(SUMS_NAME):
        raise CheckpointError(f"{target} holds no {SUMS_NAME}: it was not written by the conversion, or not to its end")
    with store.open(SUMS_NAME) as file:
        lines = file.read().decode().splitlines()
    for line in lines:
        expected, _, name = line.partition("  ")
        if not name or PurePosixPath(name).name != name:
            yield line, "is no line of a checksum file"
        elif not store.has(name):
            yield name, "is missing"
        else:
            with store.open(name) as file:
                yield name, None if _digest(file) == expected else "differs from its checksum; copy it again"


def plan_shards(sizes: Mapping[str, int], shard_bytes: int) -> dict[str, list[str]]:
    """File name -> keys, in the order of `sizes`; a file holds at most `shard_bytes`, or one tensor."""
    groups: list[list[str]] = [[]]
    filled = 0
    for key, size in sizes.items():
        if groups[-1] and filled + size > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(key)
        filled += size
    if len(groups) == 1:
        return {WEIGHT_NAMES[0]: groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": keys for i, keys in enumerate(groups, start=1)}


class _Store:
    """A folder or URL that files are put into."""

    def __init__(self, target: str) -> None:
        import fsspec

        try:
            filesystem, root = fsspec.core.url_to_fs(target.rstrip("/"))
        except (ValueError, ImportError) as error:
            raise CheckpointError(f"{target} is neither a folder nor a URL that can be opened: {error}") from error
        self._filesystem: Any = filesystem
        self._root = str(root)
        self._is_local = "file" in (
            [filesystem.protocol] if isinstance(filesystem.protocol, str) else filesystem.protocol
        )

    def has(self, name: str) -> bool:
        return bool(self._filesystem.isfile(f"{self._root}/{name}"))

    def open(self, name: str) -> BinaryIO:
        return self._filesystem.open(f"{self._root}/{name}", "rb", block_size=_BLOCK)

    def local(self, name: str, folder: Path) -> Path:
        """Where to write a file before `put`: in its place if that is on this machine, otherwise in `folder`."""
        if not self._is_local:
            return folder / name
        Path(self._root).mkdir(parents=True, exist_ok=True)
        return Path(self._root) / name

    def put(self, path: Path) -> Written:
        with path.open("rb") as file:
            written = Written(path.name, path.stat().st_size, _digest(file))
        if not self._is_local:
            self._filesystem.put_file(str(path), f"{self._root}/{path.name}")
            path.unlink()
        return written


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()
