"""The other side of `operators.sandbox`: a process that forks on request, and its children, which do the work.

Run as `python -m operators.sandbox_helper FD`, FD being one end of a socket pair. Everything ends when the other end of
a socket is closed, so nothing outlives the process that asked; a call that never comes back is ended by an alarm, which
the kernel delivers whatever the code is busy with.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import pickle
import resource
import signal
import socket
import struct
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from operators.errors import AssetError

# The asker stops a call at its limit; the alarm is for when the asker is gone.
GRACE_SECONDS = 5


def fork_on_request(control: socket.socket) -> None:
    """Each message is the name of a module to import and the socket of a new child; the answer is the child's pid."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    while True:
        module, sockets, _, _ = socket.recv_fds(control, 4096, 1)
        if not module:
            return
        importlib.import_module(module.decode())
        pid = os.fork()
        if pid == 0:
            control.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _serve(socket.socket(fileno=sockets[0]))
        os.close(sockets[0])
        control.sendall(struct.pack("<i", pid))


def _serve(channel: socket.socket) -> NoReturn:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # it reads, and writes to its socket
    imported = _data_bytes()
    stream = channel.makefile("rb")
    while len(head := stream.read(8)) == 8:
        request = stream.read(struct.unpack("<Q", head)[0])
        modules, before = len(sys.modules), _data_bytes()
        seconds, memory, function, args = pickle.loads(request)
        if len(sys.modules) > modules:  # the function's module was new to this helper
            imported += _data_bytes() - before
        _bound(imported + memory)
        signal.alarm(math.ceil(seconds) + GRACE_SECONDS)
        try:
            answer, payload = _packed(function(*args))
        except MemoryError:
            _refuse_for_memory(channel)
        except AssetError as error:
            # A header that asks for absurd room fails at once, and is damage; only who holds much has run out.
            if _is_memory_error(error) and _resident_bytes() > memory / 4:
                _refuse_for_memory(channel)
            _send(channel, {"error": ["AssetError", [error.cause, error.message, error.remedy, error.field]]}, [])
        except Exception as error:
            if _is_memory_error(error):
                _refuse_for_memory(channel)
            _send(channel, {"error": [type(error).__name__, [str(error)[:700], _place(error)]]}, [])
        else:
            _send(channel, answer, payload)
            del payload
        signal.alarm(0)
    os._exit(0)


def _bound(memory: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _packed(value: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """What JSON can hold, and the bytes that follow it: first of arrays, then of bytes."""
    plain: dict[str, Any] = {}
    arrays, blobs, payload = [], [], []
    for key, item in value.items():
        if isinstance(item, np.ndarray):
            array = np.ascontiguousarray(item)
            arrays.append([key, array.dtype.name, list(array.shape)])
            payload.append(array.reshape(-1).view(np.uint8).data if array.size else b"")
        elif not isinstance(item, bytes):
            plain[key] = item
    for key, item in value.items():
        if isinstance(item, bytes):
            blobs.append([key, len(item)])
            payload.append(item)
    return {"value": plain, "arrays": arrays, "bytes": blobs}, payload


def _send(channel: socket.socket, answer: dict[str, Any], payload: list[Any]) -> None:
    head = json.dumps(answer).encode()
    channel.sendall(struct.pack("<Q", len(head)) + head)
    for piece in payload:
        channel.sendall(piece)


def _data_bytes() -> int:
    """What RLIMIT_DATA counts. Torch alone maps 0.7 GB, hardly any of it touched, and all of it the forker's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmData:")[2].split(maxsplit=1)[0]) * 1024


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _place(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"({Path(frame.filename).name}:{frame.lineno})"


def _is_memory_error(error: BaseException | None) -> bool:
    """Also when another exception was raised from it: FFmpeg's ENOMEM, PyTorch's allocator."""
    while error is not None:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _refuse_for_memory(channel: socket.socket) -> NoReturn:
    """Answer with what is always there, and end: libraries do not promise to be whole after a failed allocation."""
    head = b'{"memory": true}'
    channel.sendall(struct.pack("<Q", len(head)) + head)
    os._exit(1)


if __name__ == "__main__":
    fork_on_request(socket.socket(fileno=int(sys.argv[1])))
