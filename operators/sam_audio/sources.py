"""Where a model's files come from: the shipped model, a local folder, any fsspec URL, or the Hugging Face hub.

Only the files that somebody asks for are fetched.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypedDict, Unpack

SHIPPED = {"tiny": Path(__file__).parent / "weights"}
URL_SCHEMES = ("s3", "gs", "abfs", "az", "s3a", "gcs", "abfss", "file", "memory")
_END_BYTES = 4 << 20


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be loaded: names the file and the key, and says what to do."""


class Files(Protocol):
    """The files of one model, by name. Each method raises CheckpointError for what cannot be reached."""

    def __call__(self, file: str) -> Path:
        """The local path of a file, which is fetched if need be; FileNotFoundError for one that the model lacks."""

    def has(self, file: str) -> bool:
        """Whether the model has such a file; fetches nothing."""

    def stamp(self, file: str) -> bytes:
        """What tells versions of a large file apart without reading or fetching it."""


class Access(TypedDict, total=False):
    """How files are reached; names and meaning are huggingface_hub's."""

    revision: str | None
    token: str | bool | None
    cache_dir: str | Path | None
    local_files_only: bool


@contextmanager
def open_files(name_or_path: str | Path, **access: Unpack[Access]) -> Iterator[Files]:
    """The files of "tiny", a folder, a URL or a hub name: call it with a file's name to get its local path.

    Files of one model lie in one folder. Those of a URL lie in a temporary folder, which goes with the context (memory
    mappings stay valid), or in `cache_dir` if that is given. `revision`, `token` and `local_files_only` are the hub's;
    a revision of anything else is a CheckpointError, as silently loading another one would be worse.
    """
    revision, cache_dir = access.get("revision"), access.get("cache_dir")
    local_files_only = access.get("local_files_only", False)
    name = str(name_or_path)
    folder = SHIPPED.get(name, Path(name).expanduser())
    hub = "://" not in name and not folder.is_dir() and _is_hub_name(name)
    if revision is not None and not hub:
        raise CheckpointError(f"model {name!r} is not on the hub, so it has no revision {revision!r}: leave it out")
    if "://" in name:
        check_url(name)
        if local_files_only and cache_dir is None:
            raise CheckpointError(f"model {name!r}: local_files_only needs cache_dir, which URLs are kept in")
        if cache_dir is not None:
            yield _UrlFiles(name, _url_folder(name, cache_dir), local_files_only)
        else:
            with tempfile.TemporaryDirectory(prefix="checkpoint-") as temporary:
                yield _UrlFiles(name, Path(temporary), False)
    elif folder.is_dir():
        yield _FolderFiles(folder)
    elif hub:
        yield _HubFiles(name, revision, access.get("token"), cache_dir, local_files_only)
    else:
        raise CheckpointError(
            f"no model at {name!r}: give {', '.join(map(repr, SHIPPED))}, an existing folder, a URL "
            "(s3://bucket/folder) or a hub name (owner/name)"
        )


def check_url(url: str) -> None:
    """CheckpointError for a URL that leads elsewhere than to a store: the name may come from a checkpoint's config.

    Left out: http(s), which may be redirected and reach inside a network, and fsspec's chains (`a::b://`), which can
    name a local file behind an archive.
    """
    scheme = url.partition("://")[0]
    if scheme.lower() not in URL_SCHEMES:
        raise CheckpointError(
            f"model {url!r}: {scheme!r} is not read; give a URL of {', '.join(URL_SCHEMES[:3])} or another store, a "
            "folder, or a hub name"
        )


def _is_hub_name(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()


class _FolderFiles:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, file: str) -> Path:
        path = self._folder / file
        if path.is_file():
            return path
        raise FileNotFoundError(f"{path} does not exist")

    def has(self, file: str) -> bool:
        return (self._folder / file).is_file()

    def stamp(self, file: str) -> bytes:
        path = self(file)
        size = path.stat().st_size
        with path.open("rb") as stream:
            head = stream.read(_END_BYTES)
            stream.seek(max(size - _END_BYTES, 0))
            return str(size).encode() + head + stream.read()


def _url_folder(url: str, cache_dir: str | Path) -> Path:
    folder = Path(cache_dir).expanduser() / "urls" / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class _UrlFiles:
    """Files below `url`, copied into `folder` when asked for, and again when the remote one has changed."""

    def __init__(self, url: str, folder: Path, local_files_only: bool) -> None:
        import fsspec

        self._url, self._folder, self._offline = url.rstrip("/"), folder, local_files_only
        if not local_files_only:
            try:
                self._filesystem, self._root = fsspec.core.url_to_fs(self._url)
            except (OSError, ValueError, ImportError) as error:
                raise CheckpointError(f"{url} cannot be opened: {error}") from error

    def __call__(self, file: str) -> Path:
        path, stamp = self._folder / file, self._folder / f".{file}.version"
        if self._offline:
            if path.is_file():
                return path
            raise FileNotFoundError(f"{self._url}/{file} is not in {self._folder}")
        info = self._info(file)
        if info is None:
            raise FileNotFoundError(f"{self._url}/{file} does not exist")
        version = json.dumps([info.get("size"), *(str(info.get(k)) for k in ("ETag", "LastModified", "mtime"))])
        if path.is_file() and stamp.is_file() and stamp.read_text() == version:
            return path
        try:
            self._copy(file, path, info.get("size"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self._url}/{file} cannot be read: {error}") from error
        stamp.write_text(version)
        return path

    def has(self, file: str) -> bool:
        return (self._folder / file).is_file() if self._offline else self._info(file) is not None

    def stamp(self, file: str) -> bytes:
        if self._offline:
            return _FolderFiles(self._folder).stamp(file)
        info = self._info(file)
        if info is None:
            raise FileNotFoundError(f"{self._url}/{file} does not exist")
        size, key = int(info["size"]), f"{self._root}/{file}"
        try:
            head = self._filesystem.cat_file(key, start=0, end=min(_END_BYTES, size))
            tail = self._filesystem.cat_file(key, start=max(size - _END_BYTES, 0), end=size)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self._url}/{file} cannot be read: {error}") from error
        return str(size).encode() + bytes(head) + bytes(tail)

    def _info(self, file: str) -> dict[str, Any] | None:
        try:
            return dict(self._filesystem.info(f"{self._root}/{file}"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self._url}/{file} cannot be read: {error}") from error

    def _copy(self, file: str, path: Path, size: int | None) -> None:
        """The whole file or none: it appears under its name in one step, so no other process loads half of it."""
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            self._filesystem.get_file(f"{self._root}/{file}", str(part))
            if size is not None and part.stat().st_size != size:
                raise CheckpointError(f"{self._url}/{file}: {part.stat().st_size} of {size} bytes came. Try again")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


class _HubFiles:
    """Files of a repository on the hub, in the hub's own cache."""

    def __init__(
        self,
        name: str,
        revision: str | None,
        token: str | bool | None,
        cache_dir: str | Path | None,
        local_files_only: bool,
    ) -> None:
        try:
            import huggingface_hub
        except ImportError as error:
            raise CheckpointError(
                f"{name!r} is a name on the Hugging Face hub, and huggingface_hub is not installed: "
                "pip install 'sam-audio-pipeline[hub]', or give a local folder"
            ) from error
        self._library = huggingface_hub
        self._name, self._revision, self._token, self._offline = name, revision, token, local_files_only
        # The library reads its variables when it is imported; here they hold when a model is loaded.
        self._cache = cache_dir or os.environ.get("HF_HUB_CACHE")
        self._endpoint = os.environ.get("HF_ENDPOINT")

    def __call__(self, file: str) -> Path:
        self._refuse_what_is_known_to_be_absent(file)
        with self._explained(file):
            return Path(
                self._library.hf_hub_download(
                    self._name,
                    file,
                    revision=self._revision,
                    token=self._token,
                    cache_dir=self._cache,
                    local_files_only=self._offline,
                    endpoint=self._endpoint,
                )
            )
        raise AssertionError("not reached: what goes wrong is raised")

    def has(self, file: str) -> bool:
        if isinstance(self._cached(file), str):
            return True
        try:
            self._refuse_what_is_known_to_be_absent(file)
            self._metadata(file)
        except FileNotFoundError:
            return False
        except CheckpointError as error:
            if isinstance(error.__cause__, self._library.errors.HfHubHTTPError):
                raise
            return False  # no answer: then the model is what an earlier visit left in the cache
        return True

    def stamp(self, file: str) -> bytes:
        path = self._cached(file)
        if isinstance(path, str):  # the cache names its files by the hub's hashes of them
            return Path(path).resolve().name.encode()
        return str(self._metadata(file).etag).encode()

    def _cached(self, file: str) -> Any:
        return self._library.try_to_load_from_cache(self._name, file, self._cache, self._revision)

    def _refuse_what_is_known_to_be_absent(self, file: str) -> None:
        # An earlier visit found no such file at this very commit: no need to ask, or to wait for a hub that is not
        # there. (config.json comes first, and with it the commit that the revision stands for today.)
        if self._cached(file) is self._library._CACHED_NO_EXIST:
            raise FileNotFoundError(f"{self._name!r} on the hub holds no {file}")

    def _metadata(self, file: str) -> Any:
        if self._offline:
            raise FileNotFoundError(f"{file} of {self._name!r} is not in the local cache")
        with self._explained(file):
            url = self._library.hf_hub_url(self._name, file, revision=self._revision, endpoint=self._endpoint)
            return self._library.get_hf_file_metadata(url, token=self._token, endpoint=self._endpoint)

    @contextmanager
    def _explained(self, file: str) -> Iterator[None]:
        """The library's errors as ours."""
        errors, name = self._library.errors, self._name
        try:
            yield
        except errors.GatedRepoError as error:
            raise CheckpointError(
                f"{name!r} is gated: accept its licence on its page, then log in with `hf auth login` or pass token="
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise CheckpointError(
                f"the hub has no model {name!r} that you may read; check the name, or log in with `hf auth login`"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise CheckpointError(f"{name!r} has no revision {self._revision!r}") from error
        except errors.LocalEntryNotFoundError as error:
            why = "was not asked (local_files_only)" if self._offline else "cannot be reached"
            missing = f"{file} of {name!r} is not in the local cache and the hub {why}: {error}"
            # Of a model that was fetched before, the names that it lacks are not there either: they are no error.
            if isinstance(self._cached("config.json"), str):
                raise FileNotFoundError(missing) from error
            raise CheckpointError(missing) from error
        except errors.EntryNotFoundError as error:
            raise FileNotFoundError(f"{name!r} on the hub holds no {file}") from error
        except Exception as error:  # whatever the library's HTTP client of the day raises
            raise CheckpointError(f"{file} of {name!r} cannot be fetched: {error}. Try again") from error
