"""A local server that speaks as much of the Hugging Face hub's protocol as downloads need.

Files of a repository and revision come from a folder. Files over `LARGE` bytes are behind a redirect, as the hub's
are. `requests` holds (method, path) of what was asked.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LARGE = 100_000


@dataclass
class Hub:
    """repos: name -> revision -> folder. gated: name -> the token that opens it. cut: files to send half of."""

    repos: dict[str, dict[str, Path]]
    gated: dict[str, str] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    broken: bool = False  # every answer is 418, which no client tries again
    requests: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""
    store: str = ""  # the same server by another name: clients may follow redirects inside a host by themselves

    def fetched(self) -> list[str]:
        """Names of the files whose content was asked for, in order."""
        return [Path(path).name for method, path in self.requests if method == "GET"]


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(False)

        def do_GET(self) -> None:
            self.answer(True)

        def answer(self, body: bool) -> None:
            hub.requests.append((self.command, self.path))
            if hub.broken:
                return self.fail(418, "")
            if self.path.startswith("/store/"):
                return self.send(Path("/" + self.path.removeprefix("/store/")), body, {})
            name, _, rest = self.path.lstrip("/").partition("/resolve/")
            revision, _, file = rest.partition("/")
            if name not in hub.repos:
                return self.fail(401, "RepoNotFound")
            token = hub.gated.get(name)
            if token is not None and self.headers.get("Authorization") != f"Bearer {token}":
                return self.fail(403 if self.headers.get("Authorization") else 401, "GatedRepo")
            if revision not in hub.repos[name]:
                return self.fail(404, "RevisionNotFound")
            commit = {"X-Repo-Commit": hashlib.sha1(f"{name}@{revision}".encode()).hexdigest()}
            path = hub.repos[name][revision] / file
            if not path.is_file():
                return self.fail(404, "EntryNotFound", commit)
            if path.stat().st_size <= LARGE:
                return self.send(path, body, commit)
            linked = {"X-Linked-Etag": etag(path), "X-Linked-Size": str(path.stat().st_size)}
            return self.head(302, commit | linked | {"Location": f"{hub.store}/store{path}", "Content-Length": "0"})

        def send(self, path: Path, body: bool, headers: dict[str, str]) -> None:
            content = path.read_bytes()
            self.head(200, {**headers, "ETag": etag(path), "Content-Length": str(len(content))})
            if body and path.name in hub.cut:
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
            elif body:
                self.wfile.write(content)

        def fail(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
            self.head(status, {**(headers or {}), "X-Error-Code": code, "X-Error-Message": code, "Content-Length": "0"})

        def head(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    hub.store = f"http://localhost:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def etag(path: Path) -> str:
    return f'"{hashlib.sha256(path.read_bytes()).hexdigest()}"'
