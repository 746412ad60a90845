"""Files that hang, crash and bloat what reads them, in a run on real Ray: the run goes on, and each has its cause."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile as sf
from archive import RATE, mixture, write_manifest

from operators import sandbox
from operators.describe import describe
from pipeline.config import JobConfig
from pipeline.context import Context
from pipeline.plan import Planner
from pipeline.run import run
from pipeline.schema import FailureRow
from pipeline.stages import DecodeStage
from pipeline.storage import Store
from pipeline.tables import Tables


def job(folder: Path, names: list[str], **settings) -> JobConfig:
    manifest = write_manifest(folder, names, folder / "m.parquet", duration_seconds=[seconds(folder, n) for n in names])
    return JobConfig(
        manifest=str(manifest), lake=str(folder / "lake"), descriptions=("speech",), segment_seconds=12, separators=1,
        progress=False,
        **settings,
    )  # fmt: skip


def seconds(folder: Path, name: str) -> float:
    """As a manifest would say it, so that no file is read before the run."""
    try:
        return sf.info(folder / name).duration
    except sf.SoundFileError:
        return 5.0


def recordings(folder: Path, count: int) -> list[str]:
    names = [f"tape-{i}.flac" for i in range(count)]
    for i, name in enumerate(names):
        sf.write(folder / name, mixture(5, offset=i), RATE)
    return names


@contextmanager
def meddling(sent: signal.Signals, *, on_ray: bool = False) -> Iterator[list[psutil.Process]]:
    """Sends a signal to the first process that reads a file on this one's behalf, or on that of a Ray worker.

    In the end that process is killed: stopped between two files, it would wait for those of a later test.
    """
    hit: list[psutil.Process] = []
    over = threading.Event()

    def meddle() -> None:
        while not over.is_set() and not hit:
            for process in psutil.Process().children(recursive=True):
                try:
                    helper = process.parent()
                    if helper is None or "operators.sandbox_helper" not in helper.cmdline():
                        continue
                    # Idle Ray workers of earlier tests have such processes too, which nobody asks again.
                    ours = on_ray or helper.ppid() == os.getpid()
                    if ours and process.status() != psutil.STATUS_ZOMBIE:
                        process.send_signal(sent)
                        hit.append(process)
                        break
                except psutil.Error:
                    continue
            time.sleep(0.005)

    thread = threading.Thread(target=meddle)
    thread.start()
    try:
        yield hit
    finally:
        over.set()
        thread.join()
        for process in hit:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def decode(config: JobConfig) -> dict[str, str]:
    """Cause (empty: decoded) by asset, without Ray."""
    facts = describe("tiny")
    context = Context(config, config.lake, config.read_prefixes, facts, "c" * 16, "run-1")
    records = [
        {"asset_id": Path(n).name, "uri": str(n), "duration_seconds": seconds(Path(n).parent, Path(n).name)}
        for n in sorted(Path(config.read_prefixes[0]).glob("tape-*"))
    ]
    plan = Planner(config, context.store, facts, "c" * 16, set()).plan(records)
    rows = [DecodeStage(context)({"work": work.to_json()}) for work in plan.todo]
    failures = [FailureRow.model_validate_json(row["failure"]) if row["failure"] else None for row in rows]
    assert context.store.list("attempts") == []  # the stage's own process never died
    return {
        work.asset.asset_id: failure.cause if failure else "" for work, failure in zip(plan.todo, failures, strict=True)
    }


def test_a_decoder_that_is_stopped_is_ended_and_the_next_file_is_read(tmp_path: Path) -> None:
    config = job(tmp_path, recordings(tmp_path, 4), decode_seconds=2)
    sandbox.close()  # of other tests: one of theirs could be hit, and never be asked again
    with meddling(signal.SIGSTOP) as hit:
        causes = decode(config)
    assert hit
    # Stopped while it read a file, or between two: then the next one finds it so.
    assert sorted(causes.values()) == ["", "", "", "decoder_hung"]


def test_a_decoder_that_is_killed_once_costs_nothing(tmp_path: Path) -> None:
    config = job(tmp_path, recordings(tmp_path, 3))
    with meddling(signal.SIGKILL) as hit:
        causes = decode(config)
    assert hit and set(causes.values()) == {""}


def test_sound_that_needs_more_memory_than_allowed_fails_alone(tmp_path: Path) -> None:
    names = recordings(tmp_path, 1)
    sf.write(tmp_path / "tape-wide.flac", np.zeros((192_000 * 60, 8), np.int16), 192_000)
    config = job(tmp_path, [*names, "tape-wide.flac"], decode_memory_gb=0.5).model_copy(
        update={"segment_seconds": 120.0}
    )
    assert decode(config) == {"tape-0.flac": "", "tape-wide.flac": "decoder_memory"}


@pytest.mark.usefixtures("cluster")
def test_a_run_over_hostile_files_ends_well_and_names_each_cause(tmp_path: Path) -> None:
    good = recordings(tmp_path, 3)
    whole = (tmp_path / good[0]).read_bytes()
    bad = {
        "noise.mp3": (np.random.default_rng(2).bytes(20_000), "corrupt"),
        "half.flac": (whole[: len(whole) // 2], "truncated"),
        "nothing.wav": (b"", "empty_file"),
        "playlist.wav": (b"#EXTM3U\nhttp://169.254.169.254/\n" * 9, "mislabelled"),
        "zeros.mkv": (bytes(30_000), "corrupt"),
    }
    for name, (content, _) in bad.items():
        (tmp_path / name).write_bytes(content)
    sf.write(tmp_path / "wide.flac", np.zeros((192_000 * 60, 8), np.int16), 192_000)
    expected = {name: cause for name, (_, cause) in bad.items()} | {"wide.flac": "decoder_memory"}
    config = job(tmp_path, [*good, *expected], decode_memory_gb=0.5)
    config = config.model_copy(update={"segment_seconds": 120.0})
    assert run(config, "test") == 0
    tables = Tables(Store(config.lake))
    assert sorted(row["asset_id"] for row in tables.read("stems").to_pylist()) == good
    assert {row["asset_id"]: row["cause"] for row in tables.read("failures").to_pylist()} == expected


@pytest.mark.usefixtures("cluster")
def test_a_decoder_that_stops_in_a_run_costs_its_asset_only(tmp_path: Path) -> None:
    names = recordings(tmp_path, 4)
    config = job(tmp_path, names, decode_seconds=3, decoders=1)
    with meddling(signal.SIGSTOP, on_ray=True) as hit:
        assert run(config, "test") == 0
    assert hit
    tables = Tables(Store(config.lake))
    failed = {row["asset_id"]: row["cause"] for row in tables.read("failures").to_pylist()}
    assert set(failed.values()) <= {"decoder_hung"} and len(failed) <= 1
    assert len(tables.read("stems")) == len(names) - len(failed)
