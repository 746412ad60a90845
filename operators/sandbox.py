"""Runs code that parses files of unknown origin in a process that may die, hang or fill its memory without harm.

FFmpeg's libraries are large and written in C: some file will crash them, send them round in circles, or make them ask
for all memory there is. So a stage never calls them itself. `call` hands the work to a helper process under two limits,
and whatever happens there comes back as an AssetError about the one file.

A first helper imports the code and then only forks: a new process costs milliseconds and shares the imported pages.
Processes are used again while they behave. Requests are pickled, because they come from us; answers are not, because
a helper that was taken over by a file must not run code here.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from operators.errors import AssetError

START_SECONDS = 60.0  # imports from a cold disk, on a busy machine
# A leak in a library is forgotten after so many files.
CALLS_PER_PROCESS = 500
MAX_HEADER_BYTES = 16 << 20
ARRAY_TYPES = {"float32", "uint8"}
# What the helpers have no use for.
WITHHELD = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")

# Variables that say how storage is reached: helpers that started with others are replaced.
ACCESS = ("AWS_", "AZURE_", "FSSPEC_", "GOOGLE_")


@dataclass(frozen=True)
class Limits:
    """What one call may use: seconds of wall time, and bytes of memory beyond what its imports take (RLIMIT_DATA: all
    that is not mapped files)."""

    seconds: float = 60.0
    memory_bytes: int = 4 << 30


class SandboxFault(RuntimeError):
    """An exception in the helper that is no AssetError: a fault of ours, with its type and message."""


def call(function: Callable[..., dict[str, Any]], *args: Any, name: str, limits: Limits) -> dict[str, Any]:
    """`function(*args)` in a helper process; `name` is what messages call the file.

    `function` is a module's own, and returns a dict of what JSON holds, float32 or uint8 arrays, and bytes. Its
    AssetErrors pass as they are; other exceptions become SandboxFault.
    Further causes: `decoder_hung`, `decoder_died`, `decoder_memory`.
    """
    # A process that was killed may have been the kernel's choice when memory was short: a fresh one tells.
    for last in (False, True):
        process = _forker_here().process(function.__module__) if last else _borrow(function.__module__)
        try:
            answer = process.call(function, args, name, limits)
        except _Died:
            process.kill()
            if last:
                raise AssetError(
                    "decoder_died",
                    f"{name} ended the process that read it, twice",
                    "re-encode the file (ffmpeg -i IN OUT); keep it if you can, and report it: a file must not do this",
                ) from None
            continue
        except BaseException:
            process.kill()
            raise
        _give_back(process)
        return _opened(answer)
    raise AssertionError("unreachable")


class _Died(Exception):
    """The helper is gone."""


class _Process:
    """One helper and the socket to it."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.channel, self.calls = channel, 0
        try:
            self.handle = os.pidfd_open(pid)  # a number may be given to another process, a handle may not
        except ProcessLookupError:
            channel.close()
            raise _Died from None

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], name: str, limits: Limits) -> dict[str, Any]:
        self.calls += 1
        deadline = time.monotonic() + limits.seconds
        request = pickle.dumps((limits.seconds, limits.memory_bytes, function, args))
        try:
            self.channel.settimeout(limits.seconds)
            self.channel.sendall(struct.pack("<Q", len(request)) + request)
            (length,) = struct.unpack("<Q", self._receive(8, deadline))
            if length > MAX_HEADER_BYTES:
                raise _Died
            answer = json.loads(bytes(self._receive(length, deadline)))
            for key, kind, shape in answer.get("arrays", ()):
                answer["value"][key] = self._array(kind, shape, limits, deadline)
            for key, size in answer.get("bytes", ()):
                answer["value"][key] = bytes(self._receive(_bounded(size, limits), deadline))
            if not (isinstance(answer.get("value", {}), dict) and {"value", "error", "memory"} & answer.keys()):
                raise _Died
        except TimeoutError:
            raise AssetError(
                "decoder_hung",
                f"reading {name} took longer than {limits.seconds:.0f} s, and was stopped",
                "run the job again if its storage was slow; else re-encode the file, or raise decode_seconds",
            ) from None
        except (
            OSError,
            EOFError,
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
        ):  # gone, or no longer our code that answers
            raise _Died from None
        if answer.get("memory"):
            raise AssetError(
                "decoder_memory",
                f"reading {name} needs more than {limits.memory_bytes / 2**30:.1f} GiB of memory",
                "make segment_seconds shorter or decode_memory_gb larger; if the file is small, its header lies",
            )
        return answer

    def _array(self, kind: str, shape: list[int], limits: Limits, deadline: float) -> np.ndarray:
        if kind not in ARRAY_TYPES or len(shape) > 4 or not all(isinstance(n, int) and n >= 0 for n in shape):
            raise _Died
        _bounded(int(np.prod(shape, dtype=object)) * np.dtype(kind).itemsize, limits)
        array = np.empty(shape, kind)
        if array.size:
            self._fill(array.reshape(-1).view(np.uint8).data, deadline)
        return array

    def _receive(self, length: int, deadline: float) -> bytearray:
        data = bytearray(length)
        self._fill(memoryview(data), deadline)
        return data

    def _fill(self, view: memoryview, deadline: float) -> None:
        while view:
            self.channel.settimeout(max(0.01, deadline - time.monotonic()))
            count = self.channel.recv_into(view)
            if not count:
                raise EOFError
            view = view[count:]
            if view and time.monotonic() > deadline:
                raise TimeoutError

    def kill(self) -> None:
        """End the helper, also one that is stopped. Does not wait: one that hangs in the kernel goes when it can."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.handle, signal.SIGKILL)
        self.close()

    def close(self) -> None:
        self.channel.close()
        os.close(self.handle)


def _access() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(ACCESS)}


class _Forker:
    """The helper that imports and forks, and never reads a file itself. One to a process, made when first needed."""

    def __init__(self) -> None:
        self.owner, self.access = os.getpid(), _access()
        self.lock = threading.Lock()
        self.idle: list[_Process] = []
        self.control: socket.socket | None = None
        self.program: subprocess.Popen[bytes] | None = None

    def process(self, module: str) -> _Process:
        """A fresh helper that has imported `module`."""
        with self.lock:
            for last in (False, True):
                try:
                    return self._forked(module)
                except (OSError, EOFError, _Died) as error:  # somebody ended the forker: start another
                    self._stop()
                    if last:
                        raise SandboxFault(f"no helper process could be started: {error}") from error
        raise AssertionError("unreachable")

    def _forked(self, module: str) -> _Process:
        if self.control is None:
            self.control, self.program = _start()
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self.control.settimeout(START_SECONDS)
                socket.send_fds(self.control, [module.encode()], [theirs.fileno()])
                pid = struct.unpack("<i", self.control.recv(4, socket.MSG_WAITALL))[0]
            except (OSError, struct.error):
                ours.close()
                raise EOFError(f"the helper that imports {module} ended") from None
        return _Process(pid, ours)

    def close(self) -> None:
        with self.lock:
            while self.idle:
                self.idle.pop().close()
            self._stop()

    def _stop(self) -> None:
        if self.control is not None:
            self.control.close()
            self.control = None
        if self.program is not None:
            self.program.kill()
            self.program.wait()
            self.program = None


_forker = _Forker()
_changing = threading.Lock()


def _start() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = {name: value for name, value in os.environ.items() if name not in WITHHELD}
    # One core a helper; no thread pools in the process that forks.
    environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    environment |= {"PYTHONPATH": os.pathsep.join(path or "." for path in sys.path), "PYTHONDONTWRITEBYTECODE": "1"}
    with theirs:
        program = subprocess.Popen(
            [sys.executable, "-m", "operators.sandbox_helper", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    return ours, program


def _forker_here() -> _Forker:
    global _forker
    with _changing:
        if _forker.owner != os.getpid():  # after a fork the helpers are the parent's
            _forker = _Forker()
        elif _forker.access != _access():
            _forker.close()
            _forker = _Forker()
        return _forker


@atexit.register
def close() -> None:
    """End this process's helpers; the next call starts others."""
    if _forker.owner == os.getpid():
        _forker.close()


def _borrow(module: str) -> _Process:
    forker = _forker_here()
    with forker.lock:
        if forker.idle:
            return forker.idle.pop()
    return forker.process(module)


def _give_back(process: _Process) -> None:
    if process.calls >= CALLS_PER_PROCESS:
        process.close()
        return
    with _forker.lock:
        _forker.idle.append(process)


def _bounded(size: int, limits: Limits) -> int:
    if not 0 <= size <= limits.memory_bytes:
        raise _Died
    return size


def _opened(answer: dict[str, Any]) -> dict[str, Any]:
    """The value, or the exception that the helper describes."""
    if "value" in answer:
        return answer["value"]
    kind, fields = answer["error"]
    if kind == "AssetError":
        cause, message, remedy, field = map(str, fields)
        raise AssetError(cause, message, remedy, field=field)
    raise SandboxFault(f"{kind}: {' '.join(map(str, fields))}"[:1000])
