"""The job as people start it: as a script, and through Ray's job server."""

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from archive import write_good, write_manifest

from pipeline.storage import Store
from pipeline.tables import Tables

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "jobs" / "dialogue_extract.py")
RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with socket.socket() as probe:
        while True:
            probe.close()
            probe = socket.socket()
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
            # 10002 to 19999 are the ports of Ray's workers.
            if not 10_002 <= port <= 19_999:
                return port


def test_help_explains_every_setting():
    out = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True, check=True).stdout
    assert "--manifest" in out and "--max-attempts" in out and "--dry-run" in out


def wait_for(environment: dict[str, str], head: subprocess.Popen) -> None:
    """Return when the job server answers."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if not subprocess.run([RAY, "job", "list"], env=environment, capture_output=True).returncode:
            return
        assert head.poll() is None, "ray start --head ended"
    raise AssertionError("the job server did not answer within two minutes")


@pytest.fixture
def job_server(tmp_path):
    """A fresh local cluster with a job server: the environment that reaches it."""
    dashboard = free_port()
    command = [RAY, "start", "--head", f"--port={free_port()}", f"--dashboard-port={dashboard}", "--num-cpus=2"]
    command += [
        "--num-gpus=1",
        f"--dashboard-agent-listen-port={free_port()}",
        f"--ray-client-server-port={free_port()}",
    ]
    # As on a shared cluster: who has no token cannot submit.
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    # `ray stop` would end every Ray on the machine; a head that blocks takes its own processes with it.
    command += ["--disable-usage-stats", "--block"]
    head = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        environment["RAY_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
        wait_for(environment, head)
        yield environment
    finally:
        # Asked to end, it would wait half a minute for its parts.
        family = psutil.Process(head.pid).children(recursive=True)
        for process in [*family, head]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        head.wait(timeout=60)


def test_ray_job_submit_runs_the_job_to_its_end(job_server, tmp_path):
    media, lake = tmp_path / "media", tmp_path / "lake"
    good = write_good(media)
    manifest = write_manifest(media, good, tmp_path / "m.parquet")
    job = [sys.executable, SCRIPT, "--manifest", str(manifest), "--lake", str(lake)]
    job += ["--allowed-read-prefixes", str(media)]
    submitted = subprocess.run(
        [RAY, "job", "submit", "--", *job], env=job_server, capture_output=True, text=True, timeout=240
    )
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    stems = Tables(Store(str(lake))).read("stems").to_pylist()
    assert sorted(row["asset_id"] for row in stems) == good
    assert {(row["target_label"], row["residual_label"]) for row in stems} == {("dialogue", "music_and_effects")}
