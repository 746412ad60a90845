"""Work for the sandbox's tests: what hostile files and their libraries might do to the process that reads them."""

from __future__ import annotations

import ctypes
import io
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from operators.errors import AssetError
from operators.reader import probe


def echo(samples: np.ndarray, data: bytes, note: str) -> dict[str, Any]:
    return {"samples": samples * 2, "data": data[::-1], "note": note, "pid": os.getpid()}


def refuse() -> dict[str, Any]:
    raise AssetError("corrupt", "a.wav is damaged", "restore it", field="mask_uri")


def fail() -> dict[str, Any]:
    raise LookupError("no such thing")


def crash() -> dict[str, Any]:
    ctypes.string_at(8)
    raise AssertionError("unreachable")


def crash_once(note: str) -> dict[str, Any]:
    if not os.access(note, os.F_OK):
        os.mkdir(note)  # a folder: files cannot be written here  # noqa: PTH102
        os.kill(os.getpid(), signal.SIGSEGV)
    return {"tries": 2}


def eat(gigabytes: float) -> dict[str, Any]:
    held = np.ones(int(gigabytes * 2**27))
    return {"bytes": held.nbytes}


def sleep(seconds: float) -> dict[str, Any]:
    time.sleep(seconds)
    return {}


def spin() -> dict[str, Any]:
    """Never gives the interpreter's lock back: no thread of this process could stop it."""
    re.match(r"(a+)+$", "a" * 64 + "b")
    return {}


def stop() -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGSTOP)
    return {}


def write(path: str) -> dict[str, Any]:
    Path(path).write_bytes(b"taken over")
    return {}


def environment() -> dict[str, Any]:
    return {"names": sorted(os.environ)}


class HangingFile(io.BytesIO):
    """A file whose storage stops answering after so many bytes."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() > 4096:
            time.sleep(3600)
        return super().read(size)


def probe_hanging(data: bytes) -> dict[str, Any]:
    return vars(probe(HangingFile(data), "tape.wav"))


def lie(head: bytes) -> dict[str, Any]:
    """Answers over the socket itself, as a helper that a file has taken over could."""
    for fd in range(3, 32):
        try:
            os.write(fd, head)
        except OSError:
            continue
    time.sleep(3600)
    return {}
