"""Where a model's files come from: the shipped model, a local folder, any fsspec URL, or the Hugging Face hub.

Only the files that somebody asks for are fetched.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHIPPED = {"tiny": Path(__file__).parent / "weights"}

# From a file name to its local path; FileNotFoundError for what the model lacks.
Get = Callable[[str], Path]


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be loaded: names the file and the key, and says what to do."""


@dataclass(frozen=True)
class Ends:
    """What tells two large files apart without reading them: size in bytes, and up to `length` bytes of both ends."""

    size: int
    head: bytes
    tail: bytes


@contextmanager
def open_files(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Iterator[Get]:
    """A function from file name to local path, for "tiny", a folder, a URL or a hub name.

    The function raises FileNotFoundError for a file that the model lacks and CheckpointError for one that cannot be
    had. Files of one model lie in one folder. Those of a URL lie in a temporary folder, which goes with the context
    (memory mappings stay valid), or in `cache_dir` if that is given. `revision`, `token` and `local_files_only` are
    the hub's; a revision of anything else is a CheckpointError, as silently loading another one would be worse.
    """
    name = str(name_or_path)
    folder = SHIPPED.get(name, Path(name).expanduser())
    hub = "://" not in name and not folder.is_dir() and _is_hub_name(name)
    if revision is not None and not hub:
        raise CheckpointError(f"model {name!r} is not on the hub, so it has no revision {revision!r}: leave it out")
    if "://" in name:
        if local_files_only and cache_dir is None:
            raise CheckpointError(f"model {name!r}: local_files_only needs cache_dir, which URLs are kept in")
        if cache_dir is not None:
            yield _remote(name, _url_folder(name, cache_dir), local_files_only)
        else:
            with tempfile.TemporaryDirectory(prefix="checkpoint-") as temporary:
                yield _remote(name, Path(temporary), False)
    elif folder.is_dir():
        yield _local(folder)
    elif hub:
        yield _hub(name, revision, token, cache_dir, local_files_only)
    else:
        raise CheckpointError(
            f"no model at {name!r}: give {', '.join(map(repr, SHIPPED))}, an existing folder, a URL "
            "(s3://bucket/folder) or a hub name (owner/name)"
        )


def ends(name_or_path: str | Path, get: Get, file: str, length: int) -> Ends:
    """Size and both ends of a file; from a URL only those are read. FileNotFoundError as `get`."""
    name = str(name_or_path)
    if "://" in name:
        import fsspec

        filesystem, key = fsspec.core.url_to_fs(f"{name.rstrip('/')}/{file}")
        try:
            size = int(filesystem.info(key)["size"])
            head = filesystem.cat_file(key, start=0, end=min(length, size))
            return Ends(size, head, filesystem.cat_file(key, start=max(size - length, 0), end=size))
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{name}/{file} cannot be read: {error}") from error
    path = get(file)
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(length)
        stream.seek(max(size - length, 0))
        return Ends(size, head, stream.read())


def _is_hub_name(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()


def _local(folder: Path) -> Get:
    def get(file: str) -> Path:
        path = folder / file
        if path.is_file():
            return path
        raise FileNotFoundError(f"{path} does not exist")

    return get


def _url_folder(url: str, cache_dir: str | Path) -> Path:
    folder = Path(cache_dir).expanduser() / "urls" / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _remote(url: str, folder: Path, local_files_only: bool) -> Get:
    """Files below `url`, copied into `folder` when asked for, and again when the remote one has changed."""
    import fsspec

    def get(file: str) -> Path:
        source, path, stamp = f"{url.rstrip('/')}/{file}", folder / file, folder / f".{file}.version"
        if local_files_only:
            if path.is_file():
                return path
            raise FileNotFoundError(f"{source} is not in {folder}")
        try:
            filesystem, key = fsspec.core.url_to_fs(source)
            info = filesystem.info(key)
            version = json.dumps([info.get("size"), *(str(info.get(k)) for k in ("ETag", "LastModified", "mtime"))])
            if path.is_file() and stamp.is_file() and stamp.read_text() == version:
                return path
            _copy(filesystem, key, path, info.get("size"))
            stamp.write_text(version)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{source} does not exist") from error
        except (OSError, ValueError, ImportError) as error:
            raise CheckpointError(f"{source} cannot be read: {error}") from error
        return path

    return get


def _copy(filesystem: Any, key: str, path: Path, size: int | None) -> None:
    """The whole file or none: it appears under its name in one step, so that no other process loads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        filesystem.get_file(key, str(part))
        if size is not None and part.stat().st_size != size:
            raise CheckpointError(f"{key}: {part.stat().st_size} of {size} bytes arrived. Try again")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _hub(
    name: str,
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | Path | None,
    local_files_only: bool,
) -> Get:
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise CheckpointError(
            f"{name!r} is a name on the Hugging Face hub, and huggingface_hub is not installed: "
            "pip install 'sam-audio-pipeline[hub]', or give a local folder"
        ) from error

    # The library reads its variables when it is imported; here they hold when a model is loaded.
    cache_dir = cache_dir or os.environ.get("HF_HUB_CACHE")

    def cached(file: str) -> Any:
        return huggingface_hub.try_to_load_from_cache(name, file, cache_dir, revision)

    def get(file: str) -> Path:
        # Known from an earlier visit to be absent at this very commit: no need to ask, or to wait for a hub that is
        # not there. (config.json comes first, and with it the commit that the revision stands for today.)
        if cached(file) is huggingface_hub._CACHED_NO_EXIST:
            raise FileNotFoundError(f"{name!r} on the hub holds no {file}")
        try:
            return Path(
                huggingface_hub.hf_hub_download(
                    name,
                    file,
                    revision=revision,
                    token=token,
                    cache_dir=cache_dir,
                    local_files_only=local_files_only,
                    endpoint=os.environ.get("HF_ENDPOINT"),
                )
            )
        except errors.GatedRepoError as error:
            raise CheckpointError(
                f"{name!r} is gated: accept its licence on its page, then log in with `hf auth login` or pass token="
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise CheckpointError(
                f"the hub has no model {name!r} that you may read; check the name, or log in with `hf auth login`"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise CheckpointError(f"{name!r} has no revision {revision!r}") from error
        except errors.LocalEntryNotFoundError as error:
            why = "was not asked (local_files_only)" if local_files_only else "cannot be reached"
            missing = f"{file} of {name!r} is not in the local cache and the hub {why}: {error}"
            # Of a model that was fetched before, the names that it lacks are not there either: they are no error.
            if isinstance(cached("config.json"), str):
                raise FileNotFoundError(missing) from error
            raise CheckpointError(missing) from error
        except errors.EntryNotFoundError as error:
            raise FileNotFoundError(f"{name!r} on the hub holds no {file}") from error
        except Exception as error:  # whatever the library's HTTP client of the day raises
            raise CheckpointError(f"{file} of {name!r} cannot be fetched: {error}. Try again") from error

    return get
