"""URIs that come from a manifest: data, never trusted as paths, never printed with a secret in them."""

from __future__ import annotations

import os
import re
from typing import NamedTuple
from urllib.parse import quote, quote_plus

from operators.errors import AssetError

# Object stores and the local disk. http(s) is left out: a redirect may lead outside the allowed prefix.
ALLOWED_SCHEMES = ("file", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
# `name:password@`, where a password may hold slashes as AWS's do; `name@`, but for Azure's `container@account`.
_PASSWORD = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^/\s@:]*:[^\s@]+@")
_USERINFO = re.compile(r"((?!abfss?://)\b[A-Za-z][A-Za-z0-9+.-]*://)[^/\s@]+@")
# Keys that show by their form, wherever they stand.
_TOKEN = re.compile(r"\b(?:(?:AKIA|ASIA)[A-Z0-9]{16}|hf_[A-Za-z0-9]{20,}|Bearer\s+[A-Za-z0-9._~+/-]{8,}=*)")
_QUERY_SECRET = re.compile(r"(?i)([?&][^=&\s]*(?:sig|signature|token|secret|key|credential|password)[^=&\s]*=)[^&\s]+")
_SECRET_VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_ACCESS_KEY_ID",
    "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_KEY",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_CLIENT_SECRET",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "RAY_AUTH_TOKEN",
)


class Location(NamedTuple):
    """A URI as its scheme (`file` for plain paths) and the path that the scheme's file system takes."""

    scheme: str
    path: str

    def within(self, folder: Location) -> bool:
        return self.scheme == folder.scheme and (
            self.path == folder.path or self.path.startswith(folder.path.rstrip("/") + "/")
        )


def redact(text: str) -> str:
    """`text` without user:password in URLs, signed query values, keys known by their form or from variables."""
    for name in _SECRET_VARIABLES:
        value = os.environ.get(name, "")
        if len(value) >= 6:  # a shorter one would blank out ordinary words
            for form in {value, quote(value, safe=""), quote_plus(value)}:
                text = text.replace(form, "***")
    text = _USERINFO.sub(r"\1***@", _PASSWORD.sub(r"\1***@", text))
    return _TOKEN.sub("***", _QUERY_SECRET.sub(r"\1***", text))


def scheme_of(uri: str) -> str:
    """The scheme of a URI in lower case; a plain path is `file`."""
    match = _SCHEME.match(uri)
    return match.group(1).lower() if match else "file"


def locate(uri: str) -> Location:
    """Split a URI and refuse what could lead somewhere else than it says.

    Local paths are resolved through symbolic links, so a link cannot lead out of an allowed folder. Raises
    AssetError `forbidden_uri` for unknown schemes, relative local paths, `.`/`..` segments, credentials in it
    and control characters.
    """
    scheme = scheme_of(uri)
    match = _SCHEME.match(uri)
    path = uri[match.end() :] if match else uri
    if scheme not in ALLOWED_SCHEMES:
        raise _forbidden(
            f"{redact(uri)}: scheme {scheme!r} is not read", f"use one of {', '.join(ALLOWED_SCHEMES)} or a path"
        )
    if _CONTROL.search(path):
        raise _forbidden(f"{redact(uri)!r}: control characters in a URI", "correct the URI")
    if any(segment in (".", "..") for segment in path.split("/")):
        raise _forbidden(f"{redact(uri)}: '.' or '..' in a URI", "write the full path without '.' and '..'")
    if scheme == "file":
        if not path.startswith("/"):
            raise _forbidden(
                f"{redact(uri)}: a relative path", "write an absolute path, or a URL such as s3://bucket/key"
            )
        return Location("file", os.path.realpath(path))
    bucket = path.partition("/")[0]
    if not bucket:
        raise _forbidden(f"{redact(uri)}: no bucket", f"write {scheme}://bucket/key")
    if scheme in ("s3", "s3a", "gs", "gcs") and ("@" in bucket or ":" in bucket):  # no bucket's name has either
        raise _forbidden(
            f"{redact(uri)}: credentials in a URI",
            "remove them and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    return Location({"s3a": "s3", "gcs": "gs", "abfss": "abfs"}.get(scheme, scheme), path.rstrip("/"))


def _forbidden(message: str, remedy: str) -> AssetError:
    return AssetError("forbidden_uri", message, remedy)
