"""A proxy in front of an S3 server that refuses, resets, delays or halves on request, and can end whoever asks.

Because every object that a run writes has a deterministic key, "when this key is put" is an exact moment of the run: so
the same proxy is how processes are killed half way through something, wherever on the cluster they are.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Kind = Literal["slow_down", "reset", "stall", "lost_answer", "half_answer", "half_request", "kill_before", "kill_after"]
_CHUNK = 1 << 18
_SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your rate.</Message></Error>"


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def segfault(pid: int) -> None:
    os.kill(pid, signal.SIGSEGV)


@dataclass
class Fault:
    """What becomes of requests whose "METHOD /path?query" `match` finds, after the first `skip` of them.

    slow_down: 503. reset: broken off, the store never hears of it. half_request: the store gets half of it.
    lost_answer: the store has done it and nobody is told. half_answer: the connection breaks in the body. stall:
    `seconds` of silence.
    kill_before, kill_after: `act` gets the process id of who asks, before or after the store has done it.
    """

    match: str
    kind: Kind
    times: int | None = 1
    skip: int = 0
    share: float = 1.0
    seconds: float = 20.0
    act: Callable[[int], None] = kill
    hits: list[float] = field(default_factory=list)
    struck: threading.Event = field(default_factory=threading.Event)

    def strikes(self, request: str, dice: random.Random) -> bool:
        if (self.times is not None and len(self.hits) >= self.times) or not re.search(self.match, request):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.share < 1 and dice.random() >= self.share:
            return False
        self.hits.append(time.monotonic())
        return True


class Proxy:
    """Serves on `port` of 127.0.0.1 until `close`. `faults` may be replaced at any time; `commits` are the times of
    commit markers that the store took."""

    def __init__(self, upstream_port: int, seed: int = 1) -> None:
        self.upstream_port, self.faults = upstream_port, []  # type: ignore[var-annotated]
        self.requests = 0
        self.commits: list[float] = []
        self._dice = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True, name="s3-proxy")
        self._thread.start()
        if not ready.wait(10):
            raise RuntimeError("the proxy did not start")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=512))
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.1))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (OSError, EOFError, asyncio.LimitOverrunError, asyncio.CancelledError):
            _break(writer)
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; whether the connection goes on."""
        head = await reader.readuntil(b"\r\n\r\n")
        method, target = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")[:2]
        request = f"{method} {target}"
        self.requests += 1
        fault = next((f for f in tuple(self.faults) if f.strikes(request, self._dice)), None)
        kind = fault.kind if fault else None
        if fault is not None and kind == "reset":
            fault.struck.set()
            raise ConnectionResetError
        if fault is not None and kind == "stall":
            fault.struck.set()
            await asyncio.sleep(fault.seconds)
            raise ConnectionResetError
        if _header(head, b"expect"):  # answered here; the signature does not cover it
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            head = re.sub(rb"\r\nexpect:[^\r]*", b"", head, flags=re.I)
        if fault is not None and kind == "slow_down":
            await _copy_body(reader, None, head)
            body = b"" if method == "HEAD" else _SLOW_DOWN
            writer.write(b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\n")
            writer.write(b"Content-Length: %d\r\n\r\n" % len(_SLOW_DOWN) + body)
            await writer.drain()
            fault.struck.set()
            return True
        if fault is not None and kind == "kill_before":
            self._strike(fault, writer)
            raise ConnectionResetError
        back, forth = await asyncio.open_connection("127.0.0.1", self.upstream_port)
        try:
            forth.write(head)
            if fault is not None and kind == "half_request":
                length = int(_header(head, b"content-length") or 0)
                forth.write(await reader.readexactly(length // 2))
                await forth.drain()
                _break(forth)
                fault.struck.set()
                raise ConnectionResetError
            await _copy_body(reader, forth, head)
            return await self._answer(back, writer, request, fault)
        finally:
            forth.close()

    async def _answer(
        self, back: asyncio.StreamReader, writer: asyncio.StreamWriter, request: str, fault: Fault | None
    ) -> bool:
        head = await back.readuntil(b"\r\n\r\n")
        while head.startswith(b"HTTP/1.1 1"):
            head = await back.readuntil(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        empty = request.startswith("HEAD") or status in (204, 304)
        if status < 300 and re.match(r"PUT /.*/commits/", request):
            self.commits.append(time.monotonic())
        if fault is not None:
            length = int(_header(head, b"content-length") or 0)
            if fault.kind == "half_answer" and length and not empty:
                writer.write(head + await back.readexactly(length // 2))
                with suppress(OSError):
                    await writer.drain()
                fault.struck.set()
            else:
                await _copy_body(back, None, head, empty=empty, to_end=True)
                self._strike(fault, writer)
            raise ConnectionResetError
        writer.write(head)
        goes_on = await _copy_body(back, writer, head, empty=empty, to_end=True)
        await writer.drain()
        return goes_on and b"close" not in (_header(head, b"connection") or b"").lower()

    def _strike(self, fault: Fault, writer: asyncio.StreamWriter) -> None:
        if fault.kind.startswith("kill"):
            pid = owner(writer.get_extra_info("peername")[1], self.port)
            if pid is not None:
                with suppress(ProcessLookupError):
                    fault.act(pid)
        fault.struck.set()


async def _copy_body(
    source: asyncio.StreamReader,
    sink: asyncio.StreamWriter | None,
    head: bytes,
    *,
    empty: bool = False,
    to_end: bool = False,
) -> bool:
    """Pass the body on that `head` announces. False when only the end of the connection ended it."""

    async def put(data: bytes) -> None:
        if sink is not None:
            sink.write(data)
            await sink.drain()

    length = _header(head, b"content-length")
    if empty or (length is None and not to_end and not _header(head, b"transfer-encoding")):
        return True
    if b"chunked" in (_header(head, b"transfer-encoding") or b"").lower():
        while True:
            line = await source.readline()
            await put(line)
            size = int(line.split(b";")[0], 16)
            if size:
                await put(await source.readexactly(size + 2))
                continue
            while line not in (b"\r\n", b""):
                line = await source.readline()
                await put(line)
            return True
    if length is None:
        while data := await source.read(_CHUNK):
            await put(data)
        return False
    left = int(length)
    while left:
        data = await source.read(min(left, _CHUNK))
        if not data:
            raise EOFError
        await put(data)
        left -= len(data)
    return True


def _header(head: bytes, name: bytes) -> bytes | None:
    found = re.search(rb"\r\n" + name + rb":[ \t]*([^\r]*)", head, re.I)
    return found.group(1) if found else None


def _break(writer: asyncio.StreamWriter) -> None:
    """Close with a reset, as a peer does that has crashed."""
    raw = writer.get_extra_info("socket")
    if raw is not None:
        with suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def owner(port: int, remote_port: int) -> int | None:
    """The process of this machine that holds the TCP connection from `port` to `remote_port`."""
    inode = None
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[1].rpartition(":")[2], 16) == port and int(fields[2].rpartition(":")[2], 16) == remote_port:
            inode = fields[9]
    if inode is None:
        return None
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                for fd in (folder / "fd").iterdir():
                    with suppress(OSError):
                        if str(fd.readlink()) == f"socket:[{inode}]":
                            return int(folder.name)
    return None
