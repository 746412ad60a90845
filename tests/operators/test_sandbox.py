"""Whatever a file does to the process that reads it, the caller gets an answer about the file, in time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import sandbox_tasks as tasks
import sandbox_torch

from operators import sandbox
from operators.errors import AssetError
from operators.sandbox import Limits, SandboxFault

SHORT = Limits(seconds=1.0)
LONG = Limits(seconds=60.0)


def cause(function, *args, limits: Limits = LONG) -> str:
    with pytest.raises(AssetError) as raised:
        sandbox.call(function, *args, name="tape.wav", limits=limits)
    assert "tape.wav" in raised.value.message and raised.value.remedy
    return raised.value.cause


def works() -> bool:
    return sandbox.call(tasks.echo, np.ones(3, np.float32), b"ab", "x", name="ok", limits=LONG)["note"] == "x"


def helpers() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended while we looked
            if process.status() != psutil.STATUS_ZOMBIE and "operators.sandbox_helper" in process.cmdline():
                found.append(process)
    return found


def test_arrays_bytes_and_plain_values_come_back() -> None:
    samples = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = sandbox.call(tasks.echo, samples, b"abc", "é", name="ok", limits=LONG)
    np.testing.assert_array_equal(found["samples"], samples * 2)
    assert (found["data"], found["note"]) == (b"cba", "é")
    assert found["pid"] != os.getpid()


def test_empty_and_large_arrays_come_back_whole() -> None:
    for shape in ((2, 0), (2, 5_000_000)):
        samples = np.random.default_rng(1).random(shape, np.float32)
        found = sandbox.call(tasks.echo, samples, b"", "", name="ok", limits=LONG)
        np.testing.assert_array_equal(found["samples"], samples * 2)


def test_a_process_is_used_again() -> None:
    def pid() -> int:
        return sandbox.call(tasks.echo, np.ones(1, np.float32), b"", "", name="ok", limits=LONG)["pid"]

    assert pid() == pid()


def test_errors_about_the_file_pass_with_their_field() -> None:
    with pytest.raises(AssetError) as raised:
        sandbox.call(tasks.refuse, name="a.wav", limits=LONG)
    assert (raised.value.cause, raised.value.remedy, raised.value.field) == ("corrupt", "restore it", "mask_uri")


def test_a_fault_of_ours_says_where_it_is() -> None:
    with pytest.raises(SandboxFault, match=r"LookupError: no such thing \(sandbox_tasks.py:\d+\)"):
        sandbox.call(tasks.fail, name="a.wav", limits=LONG)


def test_a_crash_costs_the_file_only() -> None:
    assert cause(tasks.crash) == "decoder_died"
    assert works()


def test_a_process_that_was_killed_once_is_replaced(tmp_path: Path) -> None:
    found = sandbox.call(tasks.crash_once, str(tmp_path / "note"), name="a.wav", limits=LONG)
    assert found == {"tries": 2}


@pytest.mark.parametrize("task", [tasks.spin, tasks.stop], ids=["never gives the lock back", "stopped"])
def test_what_hangs_is_ended_in_time(task) -> None:
    works()
    begun, known = time.monotonic(), {p.pid for p in helpers()}
    assert cause(task, limits=SHORT) == "decoder_hung"
    assert time.monotonic() - begun < 5
    assert works()
    busy = (psutil.STATUS_STOPPED, psutil.STATUS_RUNNING)

    def left() -> list[int]:
        found = []
        for process in helpers():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.pid in known and process.status() in busy:
                    found.append(process.pid)
        return found

    # The one that forks, which is a helper too, is busy for a moment; one that hangs would stay so.
    while left():
        assert time.monotonic() - begun < 10
        time.sleep(0.05)


def test_a_file_whose_storage_stops_answering_is_given_up(tmp_path: Path) -> None:
    data = b"RIFF" + bytes(8192)
    assert cause(tasks.probe_hanging, data, limits=SHORT) == "decoder_hung"


@pytest.mark.parametrize("first", [tasks.environment, sandbox_torch.nothing])
def test_memory_is_bounded_and_the_next_file_is_read(first) -> None:
    """However much was imported before: torch alone maps 0.7 GB."""
    limits = Limits(memory_bytes=1 << 30)
    sandbox.close()  # so that the helper is a fresh one, whose origin has imported this
    sandbox.call(first, name="a.wav", limits=LONG)
    assert cause(tasks.eat, 2, limits=limits) == "decoder_memory"
    assert sandbox.call(tasks.eat, 0.5, name="ok", limits=limits) == {"bytes": 1 << 29}


def test_helpers_write_no_files_and_see_no_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("AWS_REGION", "elsewhere")  # helpers that were there before must go
    with pytest.raises(SandboxFault, match="File too large"):
        sandbox.call(tasks.write, str(tmp_path / "out"), name="a.wav", limits=LONG)
    names = sandbox.call(tasks.environment, name="a.wav", limits=LONG)["names"]
    assert "AWS_REGION" in names and "HF_TOKEN" not in names


@pytest.mark.parametrize(
    "answer",
    [
        {"value": {}, "arrays": [["samples", "object", [2]]]},
        {"value": {}, "arrays": [["samples", "float32", [1 << 40, 1 << 40]]]},
        {"value": {}, "arrays": [["samples", "float32", [-1]]]},
        {"value": {}, "bytes": [["frames", 1 << 50]]},
        {"value": []},
        {"nothing": 1},
        [],
    ],
    ids=["objects", "huge", "negative", "many bytes", "no dict", "neither", "no answer"],
)
def test_an_answer_that_is_not_ours_ends_the_helper(answer: object) -> None:
    """A helper that a file has taken over can say anything: it is not believed, and cannot make us allocate or run."""
    head = json.dumps(answer).encode()
    assert cause(tasks.lie, struct.pack("<Q", len(head)) + head, limits=SHORT) == "decoder_died"
    assert works()


def test_a_header_without_end_is_refused() -> None:
    assert cause(tasks.lie, struct.pack("<Q", 1 << 60), limits=SHORT) == "decoder_died"


def test_helpers_that_were_killed_while_idle_are_replaced() -> None:
    assert works()
    for process in helpers():
        process.kill()
    assert works()


def test_threads_have_a_helper_each() -> None:
    begun = time.monotonic()
    threads = [
        threading.Thread(target=sandbox.call, args=(tasks.sleep, 1.0), kwargs={"name": "a", "limits": LONG})
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - begun < 3.5


def test_helpers_end_with_a_caller_that_is_killed() -> None:
    script = (
        "import sandbox_tasks, os; from operators import sandbox\n"
        "print(os.getpid(), flush=True)\n"
        "sandbox.call(sandbox_tasks.sleep, 3600.0, name='a', limits=sandbox.Limits(seconds=2))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    caller = subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE)
    assert caller.stdout is not None and caller.stdout.readline()
    deadline = time.monotonic() + 30
    while len(family := psutil.Process(caller.pid).children(recursive=True)) < 2:
        assert time.monotonic() < deadline and caller.poll() is None
        time.sleep(0.05)
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    _, alive = psutil.wait_procs(family, timeout=15)  # its alarm rings 5 s after its limit
    assert not alive
