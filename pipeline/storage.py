"""The object store: one `Store` for local folders, S3 and any other fsspec file system.

A `Store` holds no connection and no secret, so it pickles into Ray workers; credentials come from the usual
AWS variables of the process that uses it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from operators.errors import AssetError
from pipeline.filesystems import (
    MEDIA_BLOCK_BYTES,
    TEMPORARY,
    StorageError,
    block,
    created,
    filesystem,
    flush,
    is_storage_problem,
    link,
    short,
    temporary,
    upload_options,
    write_durably,
)
from pipeline.keys import (
    attempt_key,
    attempts_prefix,
    commit_key,
    commit_prefix,
    original_name,
    part_key,
    parts_prefix,
    safe_name,
    stem_key,
)
from pipeline.metrics import CountedReads, count
from pipeline.uris import Location, locate, redact

__all__ = [
    "MEDIA_BLOCK_BYTES",
    "Entry",
    "SourceStat",
    "StorageError",
    "Store",
    "attempt_key",
    "attempts_prefix",
    "commit_key",
    "commit_prefix",
    "media_errors",
    "original_name",
    "part_key",
    "parts_prefix",
    "safe_name",
    "stem_key",
]

_READ_BATCH = 256
_LISTINGS = 16


@dataclass(frozen=True, slots=True)
class Entry:
    """An object of the lake; `modified` in seconds since 1970, by the store's clock."""

    key: str
    size_bytes: int
    modified: float


@dataclass(frozen=True)
class SourceStat:
    """What identifies one version of a media file."""

    size_bytes: int
    etag: str


class Store:
    """A lake at `root_url`, and the media that may be read.

    `root_url`: a local path or fsspec URL. Everything is written below it and nowhere else.
    `allowed_read_prefixes`: folders (paths or URLs) under which `open_media` may read, and nowhere else.
    """

    def __init__(self, root_url: str, allowed_read_prefixes: Iterable[str] = ()) -> None:
        root = locate(os.path.abspath(root_url) if "://" not in root_url else root_url)  # noqa: PTH100
        self.scheme = root.scheme
        self._root = root.path
        self.root = root.path if root.scheme == "file" else f"{root.scheme}://{root.path}"
        self.allowed_read_prefixes = tuple(
            os.path.abspath(p) if "://" not in p else p  # noqa: PTH100
            for p in allowed_read_prefixes
        )
        self._read_folders = tuple(locate(prefix) for prefix in self.allowed_read_prefixes)

    def __repr__(self) -> str:
        return f"Store({self.root!r})"

    def __reduce__(self) -> Any:
        return Store, (self.root, self.allowed_read_prefixes)

    def url(self, key: str) -> str:
        """The full URL (or local path) of a key: what the tables hold."""
        return f"{self.root}/{_checked(key)}"

    def key_of(self, url: str) -> str:
        """The key of a URL that `url` made. ValueError for one outside the lake."""
        if not url.startswith(self.root + "/"):
            raise ValueError(f"{redact(url)} is not in the lake {self.root}")
        return _checked(url[len(self.root) + 1 :])

    def _path(self, key: str) -> str:
        return f"{self._root}/{_checked(key)}"

    def exists(self, key: str) -> bool:
        fs = filesystem(self.scheme)
        # `info` of a missing key lists a folder of that name, for ten times the price of the HEAD before it.
        ask = fs.metadata if self.scheme == "s3" else fs.info
        with _lake_errors(key):
            try:
                ask(self._path(key))
            except FileNotFoundError:
                return False
        return True

    def size(self, key: str) -> int:
        with _lake_errors(key):
            return int(filesystem(self.scheme).info(self._path(key))["size"])

    def list(self, prefix: str) -> list[str]:
        """All keys below the folder `prefix`, sorted; empty when there is no such folder."""
        with _lake_errors(prefix):
            found = filesystem(self.scheme).find(self._path(prefix))
        keys = (path[len(self._root) + 1 :] for path in found)
        # Some servers list the emptied folder itself, as an object of no bytes.
        inside = (key for key in keys if key.startswith(prefix.rstrip("/") + "/") and not key.endswith("/"))
        return sorted(key for key in inside if not key.rpartition("/")[2].startswith(TEMPORARY))

    def scan(self, prefix: str, many: bool) -> Iterator[str]:
        """Keys right below the folder `prefix` whose names begin with two hex digits (ids do), in no order.

        For folders that may hold millions: `many` asks an object store for 256 listings, 16 at a time, and in no case
        is more than the keys themselves held in memory.
        """
        path = self._path(prefix)
        with _lake_errors(prefix):
            if self.scheme == "file":
                if not Path(path).is_dir():
                    return
                with os.scandir(path) as found:
                    yield from (f"{prefix}/{entry.name}" for entry in found if _is_hex(entry.name))
                return
            if not many or self.scheme not in ("s3", "gs"):
                yield from (key for key in self.list(prefix) if _is_hex(key.rpartition("/")[2]))
                return

            def shard(start: int) -> Sequence[str]:
                return [key[len(self._root) + 1 :] for key in filesystem(self.scheme).find(path, prefix=f"{start:02x}")]

            with ThreadPoolExecutor(_LISTINGS) as pool:
                for keys in pool.map(shard, range(256)):
                    yield from keys

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """All objects below a folder (or in the whole lake), unfinished files of local writers too, in no order."""
        fs = filesystem(self.scheme)
        with _lake_errors(prefix or "the whole lake"):
            found = fs.find(self._path(prefix) if prefix else self._root, detail=True)
            for path, info in found.items():
                if info["type"] == "file" and path.startswith(self._root + "/") and not path.endswith("/"):
                    modified = info.get("mtime") or info.get("LastModified") or fs.modified(path)
                    seconds = modified if isinstance(modified, int | float) else modified.timestamp()
                    yield Entry(path[len(self._root) + 1 :], int(info["size"]), float(seconds))

    def folders(self, prefix: str) -> Sequence[str]:
        """Names of the folders right below the folder `prefix`, sorted."""
        with _lake_errors(prefix):
            try:
                found = filesystem(self.scheme).ls(self._path(prefix), detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return []
        return sorted(info["name"].rstrip("/").rpartition("/")[2] for info in found if info["type"] == "directory")

    def read_bytes(self, key: str) -> bytes:
        """The whole object. FileNotFoundError when there is none."""
        with _lake_errors(key):
            return filesystem(self.scheme).cat_file(self._path(key))

    def read_many(self, keys: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Small objects in the order of `keys`, fetched many at a time; those that have gone are left out."""
        fs = filesystem(self.scheme)
        for first in range(0, len(keys), _READ_BATCH):
            paths = {self._path(key): key for key in keys[first : first + _READ_BATCH]}
            with _lake_errors(keys[first]):
                contents = fs.cat(list(paths), on_error="return")
                for path, key in paths.items():
                    content = contents[path]
                    if isinstance(content, FileNotFoundError):
                        continue
                    if isinstance(content, Exception):
                        raise content
                    yield key, content

    def open(self, key: str) -> BinaryIO:
        """A seekable binary file. FileNotFoundError when there is none."""
        with _lake_errors(key):
            return filesystem(self.scheme).open(self._path(key), "rb", **block(self.scheme))

    def download(self, key: str, local_path: str | Path) -> None:
        with _lake_errors(key), self.open(key) as source, Path(local_path).open("wb") as sink:
            shutil.copyfileobj(source, sink, 4 << 20)

    def write_bytes(self, key: str, data: bytes) -> None:
        """Write or overwrite; a reader sees the old object or the new one, never a half."""
        with _lake_errors(key):
            if self.scheme == "file":
                with temporary(Path(self._path(key))) as unnamed:
                    write_durably(unnamed, data)
                    unnamed.replace(self._path(key))
            else:
                filesystem(self.scheme).pipe_file(self._path(key), data)

    def make_folder(self, prefix: str) -> None:
        """Make a folder on a local disk; object stores have none."""
        if self.scheme == "file":
            with _lake_errors(prefix):
                Path(self._path(prefix)).mkdir(parents=True, exist_ok=True)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write unless the key exists. Of any number of callers exactly one gets True, and its bytes stay.

        A winner whose answer was lost on the network may get False on its own retry: to know whose bytes
        stayed, read the key.
        """
        with _lake_errors(key):
            if self.scheme == "file":
                with temporary(Path(self._path(key))) as unnamed:
                    write_durably(unnamed, data)
                    return link(unnamed, self._path(key))
            fs = filesystem(self.scheme)
            return created(lambda: fs.pipe_file(self._path(key), data, mode="create"))

    def upload(self, local_path: str | Path, key: str, *, if_absent: bool = True) -> bool:
        """Store a local file, in parts when it is large. False when `if_absent` and the key exists.

        On S3 the condition on a large file is as good as the server's: SeaweedFS 4.48 refuses it when the
        key exists, but lets several uploads that end at the same moment all win. Each is whole, and the last
        stays: so a marker (`put_if_absent`, one small PUT) decides who owns an item, never an upload.
        """
        path = self._path(key)
        count("bytes_total", Path(local_path).stat().st_size, direction="written")
        with _lake_errors(key):
            if self.scheme == "file":
                with temporary(Path(path)) as unnamed:
                    shutil.copyfile(local_path, unnamed)
                    flush(unnamed)
                    if if_absent:
                        return link(unnamed, path)
                    unnamed.replace(path)
                    return True
            fs = filesystem(self.scheme)
            mode = "create" if if_absent else "overwrite"
            options = upload_options(self.scheme)
            return created(lambda: fs.put_file(str(local_path), path, mode=mode, **options))

    def delete(self, key: str) -> None:
        """Delete one object; nothing happens when it is not there."""
        with _lake_errors(key), contextlib.suppress(FileNotFoundError):
            filesystem(self.scheme).rm_file(self._path(key))

    def delete_prefix(self, prefix: str) -> None:
        """Delete a folder and all below it; nothing happens when it is not there."""
        with _lake_errors(prefix):
            if self.scheme == "file":
                shutil.rmtree(self._path(prefix), ignore_errors=True)
                return
            for key in self.list(prefix):
                self.delete(key)

    def locate_media(self, uri: str) -> Location:
        """Where a manifest's URI leads. AssetError `forbidden_uri` unless it is under an allowed prefix."""
        location = locate(uri)
        if not any(location.within(folder) for folder in self._read_folders):
            allowed = ", ".join(redact(p) for p in self.allowed_read_prefixes) or "none"
            raise AssetError(
                "forbidden_uri",
                f"{redact(uri)} is outside the folders that may be read ({allowed})",
                "add its folder to allowed_read_prefixes, or correct the URI",
            )
        return location

    def stat_media(self, uri: str) -> SourceStat:
        """Size and version of a media file, without reading it. Raises AssetError as `open_media` does."""
        location = self.locate_media(uri)
        with media_errors(uri):
            info = filesystem(location.scheme).info(location.path)
            if info["type"] != "file":
                raise IsADirectoryError
            if location.scheme == "file" and not stat.S_ISREG(info["mode"]):
                raise IsADirectoryError
            size = int(info["size"])
            if location.scheme == "file":  # no content hash on a disk: a changed file has a new time of change
                return SourceStat(size, f"{int(info['mtime'] * 1e6):x}-{size:x}")
            etag = info.get("ETag") or info.get("etag") or info.get("md5Hash") or info.get("LastModified") or size
            return SourceStat(size, str(etag).strip('"'))

    def open_media(self, uri: str) -> BinaryIO:
        """Open a media file of the manifest for range reads: seekable, binary.

        AssetError: `forbidden_uri`, `not_found`, `access_denied`, `not_a_file`, `storage_error`. Reads that
        fail later raise the file system's own errors: wrap them in `media_errors(uri)`.
        """
        location = self.locate_media(uri)
        if location.scheme == "file":
            self.stat_media(uri)  # a pipe or a device would block for ever
        with media_errors(uri):
            file = filesystem(location.scheme).open(location.path, "rb", **block(location.scheme))
        return cast(BinaryIO, CountedReads(file))


@contextlib.contextmanager
def media_errors(uri: str) -> Iterator[None]:
    """Turn what a file system raises about one media file into an AssetError; other errors pass."""
    shown = redact(uri)
    try:
        yield
    except AssetError:
        raise
    except FileNotFoundError:
        raise AssetError(
            "not_found", f"{shown} does not exist", "restore the file, or take the row out of the manifest"
        ) from None
    except PermissionError as error:
        raise AssetError(
            "access_denied",
            f"{shown} may not be read ({short(error)})",
            "grant read access to the run's user or keys",
        ) from None
    except IsADirectoryError:
        raise AssetError(
            "not_a_file", f"{shown} is not a regular file", "name one media file a row in the manifest"
        ) from None
    except Exception as error:
        if not is_storage_problem(error):
            raise
        raise AssetError(
            "storage_error",
            f"{shown} could not be read ({short(error)})",
            "check the store, then run the job again",
        ) from None


@contextlib.contextmanager
def _lake_errors(key: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, StorageError):
        raise
    except Exception as error:
        if not is_storage_problem(error):
            raise
        raise StorageError(f"lake key {key}: {short(error)}") from None


def _is_hex(name: str) -> bool:
    return len(name) >= 2 and all(c in "0123456789abcdef" for c in name[:2])


def _checked(key: str) -> str:
    if not key or key.startswith("/") or any(s in ("", ".", "..") for s in key.rstrip("/").split("/")):
        raise ValueError(f"not a key of the lake: {key!r}")
    return key.rstrip("/")
