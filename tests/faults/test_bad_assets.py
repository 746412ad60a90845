"""Assets that crash, hang or fill whoever touches them, a full disk, wrong clocks: each costs itself only."""

import os
import shutil
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import cuts
import pytest
import rig as rigs
from proxy import Fault, segfault

from pipeline.storage import Store
from pipeline.tables import Tables

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1500)]


def test_assets_that_crash_hang_or_eat_memory_cost_themselves_only(rig: rigs.Rig) -> None:
    reference, began, lake = rig.reference, time.monotonic(), rig.lake()
    rig.whole()
    crash, hang, killer = "cut-021.flac", "cut-030.ogg", "cut-041.flac"
    bomb = cuts.write_bomb(rig.folder / "bomb.flac")
    rig.fs.put_file(str(rig.folder / bomb), f"{rig.media}/{bomb}")
    info = rig.fs.info(f"{rig.media}/{bomb}")
    known = {"duration_seconds": 100.0, "size_bytes": info["size"], "etag": info["ETag"].strip('"'), "channels": 8}
    manifest = f"{rig.media}-more.parquet"
    rigs.add_rows(rig, {bomb: known}, manifest)
    # Whoever reads the first has a segmentation fault; the second never comes; the third's model actor always dies.
    faults = [
        Fault(rf"GET .*/{crash}", "kill_before", times=None, act=segfault),
        Fault(rf"GET .*/{hang}", "stall", times=None, seconds=120),
        Fault(rf"PUT .*/attempts/{reference[killer]['item_id']}/.*-separate-", "kill_after", times=None),
    ]
    limits = ("--decode-seconds", "20", "--decode-memory-gb", "0.5", "--max-attempts", "2")
    with rig.faults(*faults):
        runs = rig.run_to_end(lake, *limits, manifest=manifest)
    assert len(faults[0].hits) == 2 and len(faults[2].hits) == 2  # tried twice, and then no more
    rig.judge(
        "assets that crash, hang, eat memory, kill",
        lake,
        tried=len(faults) + 1,
        runs=runs,
        began=began,
        hits=[],
        bad={crash: "decoder_died", hang: "decoder_hung", killer: "worker_died", bomb: "decoder_memory"},
    )


def test_worker_with_a_full_disk(rig: rigs.Rig, tmp_path: Path) -> None:
    assert rig.reference
    full = tmp_path / "full"
    full.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=192k", "tmpfs", full], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"needs a small disk, and this user may not mount one: {mounted.stderr.strip()}")
    try:
        rig.whole()
        rig.nodes.lose(rig.nodes.workers[-1])
        rig.nodes.add(TMPDIR=str(full))
        began, lake = time.monotonic(), rig.lake()
        driver = rig.start(lake)
        assert driver.wait(rig.bound) == 0, driver.said()
        hit = time.monotonic()
        causes = {row["cause"] for row in rigs.last_failures(lake)}
        assert causes <= {"disk_full"}
        rig.nodes.lose(rig.nodes.workers[-1])
        rig.nodes.add()
        runs = 1 + rig.run_to_end(lake)
        rig.judge("disk of a worker full", lake, tried=1, runs=runs, began=began, hits=[hit])
    finally:
        subprocess.run(["umount", "-l", full], check=False)


def test_clocks_that_are_ten_minutes_apart_either_way(rig: rigs.Rig, tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler: the clock is moved by a small library that is loaded into the processes")
    assert rig.reference
    library = tmp_path / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)

    def skewed(seconds: int) -> dict[str, str]:
        return {"LD_PRELOAD": str(library), "CLOCK_SKEW_SECONDS": str(seconds)}

    told = subprocess.run(["date", "+%s"], env=os.environ | skewed(-600), capture_output=True, text=True, check=True)
    assert abs(time.time() - 600 - int(told.stdout)) < 60
    rig.whole()
    rig.nodes.lose(rig.nodes.workers[-1])
    with pytest.MonkeyPatch.context() as patch:
        # Ray preloads an allocator into a node, in place of any other library, and takes it away from workers.
        patch.setenv("RAY_JEMALLOC_LIB_PATH", str(library))
        patch.setenv("RAY_LD_PRELOAD_ON_WORKERS", "1")
        rig.nodes.add(CLOCK_SKEW_SECONDS="600")
    began, lake = time.monotonic(), rig.lake()
    try:
        runs = rig.run_to_end(lake, **skewed(-600))
    finally:
        rig.nodes.lose(rig.nodes.workers[-1])
    tables, now = Tables(Store(lake)), datetime.now(UTC)
    ahead = [row for row in tables.read("stems").to_pylist() if row["committed_at"] > now + timedelta(minutes=5)]
    behind = [row for row in tables.read("runs").to_pylist() if row["finished_at"] < now - timedelta(minutes=5)]
    assert ahead and behind  # what they wrote bears their wrong time
    rig.judge("clocks: driver -10, a node +10 minutes", lake, tried=2, runs=runs, began=began, hits=[])
