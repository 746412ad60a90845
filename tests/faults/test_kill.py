"""kill -9 of the driver, then of the actor that holds the model: another run takes over, nothing is lost or doubled.

`make faults` kills everything else, and lets two drivers loose at once.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile as sf
from archive import RATE, mixture, read_stems, write_manifest
from line import Line

from pipeline.config import JobConfig
from pipeline.keys import lease_key
from pipeline.storage import Store
from pipeline.tables import Tables

ROOT = Path(__file__).parents[2]
ASSETS = 2
SEGMENT_SECONDS = 4.0  # the 26 s recordings are cut into seven segments: something is always half done


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    names = [f"tape-{i}.wav" for i in range(ASSETS)]
    for i, name in enumerate(names):
        sf.write(folder / name, mixture(26, offset=i).mean(1), RATE, subtype="PCM_16")
    write_manifest(folder, names, folder / "manifest.parquet")
    return folder


def start(archive: Path, lake: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "jobs" / "archive_reprocess.py"), "--lease", "nightly"]
    command += ["--lake", str(lake), "--description", "speech", "--segment-seconds", str(SEGMENT_SECONDS)]
    command += ["--manifest", str(archive / "manifest.parquet"), "--segments-per-batch", "1", "--lease-seconds", "3"]
    # A session of its own, so that a kill takes the processes that a lost machine would take.
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


def finish(driver: subprocess.Popen[str]) -> str:
    _, said = driver.communicate(timeout=240)
    assert driver.returncode == 0, said
    return said


def wait_until(condition: Callable[[], object], driver: subprocess.Popen[str]) -> object:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        assert driver.poll() is None, "the run ended before it could be disturbed"
        time.sleep(0.02)
    raise AssertionError("nothing happened for two minutes")


def stems_of(lake: Path) -> dict[str, np.ndarray]:
    """Both stems of every asset; asserts that each item was committed exactly once."""
    store = Store(str(lake))
    rows = Tables(store).read("stems").to_pylist()
    assert sorted(row["asset_id"] for row in rows) == [f"tape-{i}.wav" for i in range(ASSETS)]
    assert len(store.list("commits")) == ASSETS
    assert len(store.list("stems")) == 2 * ASSETS
    assert store.list("parts") == []
    return {row["asset_id"]: np.stack(read_stems(row, open)) for row in rows}


@pytest.fixture(scope="module")
def undisturbed(archive, tmp_path_factory) -> dict[str, np.ndarray]:
    lake = tmp_path_factory.mktemp("undisturbed") / "lake"
    config = JobConfig(
        manifest=str(archive / "manifest.parquet"),
        lake=str(lake),
        descriptions=("speech",),
        segment_seconds=SEGMENT_SECONDS,
    )
    return {row.asset_id: np.stack(read_stems(row.model_dump(), open)) for row in Line(config).committed()}


def test_driver_and_then_actor_killed_half_way_lose_and_double_nothing(archive, undisturbed, tmp_path):
    lake = tmp_path / "lake"
    driver = start(archive, lake)
    parts = lake / "parts"
    wait_until(lambda: len(list(parts.rglob("*.residual.wav"))) >= 2, driver)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    kept = set(parts.rglob("*.residual.wav"))
    assert kept

    driver = start(archive, lake)

    def actor() -> psutil.Process | None:
        family = psutil.Process(driver.pid).children(recursive=True)
        return next((p for p in family if "SeparateStage" in " ".join(p.cmdline())), None)

    wait_until(lambda: set(parts.rglob("*.residual.wav")) - kept, driver)
    victim = wait_until(actor, driver)
    assert isinstance(victim, psutil.Process)
    victim.kill()
    assert "token 2" in finish(driver)
    assert Store(str(lake)).list("leases") == [lease_key("nightly", 2)]
    for asset, stems in stems_of(lake).items():
        # One step of the 24-bit files: threads may add up floats in another order.
        np.testing.assert_allclose(stems, undisturbed[asset], atol=2.5e-7)
