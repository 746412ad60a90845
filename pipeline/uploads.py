"""Uploads in parts that nobody finished: S3 keeps them, invisible and paid for, until they are aborted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.filesystems import StorageError, filesystem, is_storage_problem, short
from pipeline.storage import Store


@dataclass(frozen=True)
class Upload:
    """`started` in seconds since 1970, by the store's clock."""

    key: str
    upload_id: str
    started: float


def unfinished(store: Store) -> list[Upload]:
    """Uploads in parts below the lake that are neither complete nor aborted; none but on S3."""
    if store.scheme != "s3":
        return []
    bucket, folder = _split(store)
    found = []
    options: dict[str, Any] = {}
    while True:
        page = _call("list_multipart_uploads", Bucket=bucket, Prefix=folder, **options)
        for upload in page.get("Uploads") or ():
            key = str(upload["Key"]).lstrip("/")
            if key.startswith(folder):  # not every server looks at the prefix
                started = upload["Initiated"].timestamp()
                found.append(Upload(key[len(folder) :], upload["UploadId"], started))
        if not page.get("IsTruncated") or not page.get("NextKeyMarker"):
            return found
        options = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page.get("NextUploadIdMarker", "")}


def abort(store: Store, upload: Upload) -> None:
    bucket, folder = _split(store)
    _call("abort_multipart_upload", Bucket=bucket, Key=folder + upload.key, UploadId=upload.upload_id)


def _split(store: Store) -> tuple[str, str]:
    """Bucket, and what the keys of the lake begin with in it."""
    bucket, _, folder = store.root.removeprefix("s3://").partition("/")
    return bucket, f"{folder}/" if folder else ""


def _call(method: str, **arguments: Any) -> dict[str, Any]:
    try:
        return filesystem("s3").call_s3(method, **arguments)
    except Exception as error:
        if not is_storage_problem(error):
            raise
        raise StorageError(f"{method}: {short(error)}") from None
