"""What the object stores and the local disk do differently: opening them, writing once, and how they fail."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec

from pipeline.uris import redact

# s3fs reads 50 MiB ahead by default; ranges out of long media want far less.
MEDIA_BLOCK_BYTES = 256 << 10
UPLOAD_PART_BYTES = 16 << 20
TEMPORARY = ".tmp-"  # no key has a name with a dot in front (see safe_name), so none can look like one


class StorageError(Exception):
    """The lake cannot be used: the run cannot go on. The message names the key, and holds no secret."""


def is_storage_problem(error: Exception) -> bool:
    """OSErrors, and what aiobotocore, aiohttp and their like raise: those are no OSErrors."""
    package = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError | TimeoutError) or package in (
        "botocore",
        "aiobotocore",
        "aiohttp",
        "gcsfs",
    )


def short(error: Exception) -> str:
    return redact(f"{type(error).__name__}: {error}".splitlines()[0][:300])


def block(scheme: str) -> dict[str, Any]:
    return {} if scheme == "file" else {"block_size": MEDIA_BLOCK_BYTES}


def upload_options(scheme: str) -> dict[str, Any]:
    """Bounds the memory of an upload to 64 MiB; s3fs would hold ten parts of 50 MiB."""
    return {"chunksize": UPLOAD_PART_BYTES, "max_concurrency": 4} if scheme == "s3" else {}


def filesystem(scheme: str) -> Any:
    """The fsspec file system of a scheme; fsspec keeps one a process, and makes it anew after a fork."""
    if scheme == "s3":
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        return fsspec.filesystem(
            "s3",
            # Other processes write the same folders: a remembered listing would be a wrong one.
            use_listings_cache=False,
            endpoint_url=os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None,
            client_kwargs={"region_name": region} if region else {},
        )
    return fsspec.filesystem(scheme, **({} if scheme == "file" else {"use_listings_cache": False}))


@contextlib.contextmanager
def temporary(final: Path) -> Iterator[Path]:
    """A path beside `final` to write to; removed afterwards unless it was moved."""
    final.parent.mkdir(parents=True, exist_ok=True)
    path = final.parent / f"{TEMPORARY}{os.getpid()}-{threading.get_ident()}-{uuid.uuid4().hex[:8]}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def write_durably(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    flush(path)


def flush(path: Path) -> None:
    """Data reaches the disk before its name does: after a power cut no name stands for half a file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def link(temporary: Path, final: str) -> bool:
    """Name a finished file unless the name is taken: then a hard link fails, where a rename would not."""
    try:
        os.link(temporary, final)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise StorageError(f"{final}: this file system has no hard links; use another folder or S3") from None
        raise
    return True


def created(write: Callable[[], Any]) -> bool:
    """Run a conditional write (`If-None-Match: *` on S3): False when the object was there."""
    for last in (False, False, False, True):
        try:
            write()
        except FileExistsError:
            return False
        except OSError as error:
            response = getattr(error.__cause__, "response", None) or {}
            code = str(response.get("Error", {}).get("Code"))
            if code in ("PreconditionFailed", "412"):
                return False
            # 409: another conditional write of this key is under way; S3 says to try again.
            if last or code not in ("ConditionalRequestConflict", "409"):
                raise
        else:
            return True
    return False
