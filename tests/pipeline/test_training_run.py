"""Training as a job on real Ray Train: what it leaves and refuses, and (make faults) workers and drivers killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile as sf

from jobs.build_training_manifest import main as build_manifest
from operators.sam_audio import SAMAudio
from operators.sam_audio.training.train import tiny_config
from pipeline.training_config import checked
from pipeline.training_run import main
from pipeline.training_store import TrainingStore

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "jobs" / "demo_media"


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    """A folder of wavs of three sounds, one of them broken, and a smaller model to train on them."""
    folder = tmp_path_factory.mktemp("sounds")
    for name, label in (("speech", "speech"), ("music", "music"), ("dog", "dog barking")):
        wave = sf.read(DEMO / f"{name}.flac", dtype="float32", always_2d=True)[0][:, 0]
        for i, piece in enumerate(np.array_split(wave, 3)):
            path = folder / ("validation" if i == 2 else "train") / label / f"{i}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            sf.write(path, piece, 48_000)
    assert build_manifest(["--media", str(folder), "--out", str(folder / "training.parquet")]) == 0
    (folder / "train" / "music" / "1.wav").write_bytes(b"broken since it was listed")
    SAMAudio(tiny_config(dim=32, layers=1, heads=2)).save_pretrained(folder / "model")
    return folder


def settings(sounds: Path, lake: Path, **more: object) -> dict[str, object]:
    return {
        "manifest": str(sounds / "training.parquet"),
        "lake": str(lake),
        "run": "r",
        "model": str(sounds / "model"),
        "mode": "scratch",
        "steps": 12,
        "examples_per_step": 4,
        "micro_batch": 2,
        "validate_every": 4,
        "checkpoint_every": 2,
        "validation_examples": 4,
        "warmup_steps": 2,
        "learning_rate": 3e-3,
        "ema": 0.5,
        "mixing": '{"clip_seconds": 1.0}',
        **more,
    }


def arguments(values: dict[str, object]) -> list[str]:
    return [text for name, value in values.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def start(values: dict[str, object]) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, str(ROOT / "jobs" / "train_separator.py"), *arguments(values)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def wait_for(condition, job: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 500
    while not condition():
        assert job.poll() is None and time.monotonic() < deadline, "training did not get so far"
        time.sleep(0.1)


def ended(job: subprocess.Popen[str]) -> str:
    said, _ = job.communicate(timeout=500)
    assert job.returncode == 0, said[-4000:]
    return said


def weights(store: TrainingStore) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy() for name, p in SAMAudio.from_pretrained(store.url("model")).named_parameters()}


def test_a_run_leaves_curves_figures_and_a_model_and_is_never_overwritten(sounds, tmp_path, capsys):
    values = settings(sounds, tmp_path)
    store = TrainingStore(checked(values))
    said = ended(start(values))
    assert [line.split(":")[0].split(",")[0] for line in said.splitlines() if line.startswith("step ")] == [
        *["step 0/12"] * 2, "step 4/12", "step 8/12", "step 12/12"
    ]  # fmt: skip
    assert "mislabelled" in said and "another is made in its place" in said
    assert "pid=" not in said  # nothing of what else Ray's processes print
    log = json.loads(store.store.read_bytes(store.key("log.json")))
    assert [row["step"] for row in log] == [0, 4, 8, 12]
    assert log[-1]["validation_loss"] < log[0]["validation_loss"]
    assert any("tfevents" in key for key in store.store.list(store.key("curves")))
    assert store.figures()["examples"] == 48
    assert all(np.isfinite(weight).all() for weight in weights(store).values())
    assert main(arguments(values), "") == 2
    assert "has ended" in capsys.readouterr().err


@pytest.mark.faults
@pytest.mark.timeout(1500)
def test_a_run_whose_workers_and_driver_were_killed_ends_as_one_that_was_left_alone(sounds, tmp_path):
    whole, broken = (settings(sounds, tmp_path / name) for name in ("whole", "broken"))
    broken |= {"workers": 2, "micro_batch": 1, "lease_seconds": 15}
    store = TrainingStore(checked(broken))

    job = start(broken)
    wait_for(lambda: len(store.steps()) > 0, job)
    workers = [p for p in psutil.Process(job.pid).children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())]
    assert len(workers) == 2
    workers[0].send_signal(signal.SIGKILL)
    before = store.steps()[-1]
    wait_for(lambda: store.steps()[-1] > before + 2, job)  # Ray Train has started another group of workers
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    for process in psutil.process_iter():  # what Ray started in sessions of its own
        if str(tmp_path) in " ".join(process.cmdline() if process.status() != psutil.STATUS_ZOMBIE else []):
            process.kill()

    # With one worker: neither their number nor the interruptions change what is learned.
    said = ended(start(broken | {"workers": 1, "micro_batch": 4}))
    assert "goes on from step" in said
    ended(start(whole))
    expected = weights(TrainingStore(checked(whole)))
    for name, found in weights(store).items():
        np.testing.assert_allclose(found, expected[name], atol=2e-3, err_msg=name)
    log = json.loads(store.store.read_bytes(store.key("log.json")))
    assert [row["step"] for row in log] == [0, 4, 8, 12]
    assert log[-1]["validation_loss"] < log[0]["validation_loss"]


def test_a_name_belongs_to_the_settings_it_was_begun_with(sounds, tmp_path, capsys):
    values = settings(sounds, tmp_path)
    store = TrainingStore(checked(values))
    assert store.claim({"manifest_sha256": "a"}) is None
    assert store.claim({"manifest_sha256": "a"}) is None
    assert main(arguments(values), "") == 2  # another manifest
    assert "was begun with other settings" in capsys.readouterr().err
    store.store.write_bytes(store.key("checkpoints/step-00000004.pt"), b"state")
    assert store.claim({"manifest_sha256": "a"}) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"examples_per_step": 5}, "no multiple of workers 1 x micro_batch 2"),
        ({"mode": "full", "prediction": "x"}, "for mode scratch"),
        ({"size": "huge"}, "size 'huge' is unknown; use small, base, large"),
        ({"alignment": "cepstra"}, "alignment and alignment_weight go together"),
        ({"objective": '{"weight": 1}'}, "objective: unknown weight"),
        ({"mixing": '{"clip_seconds": -1}'}, "clip_seconds must be positive"),
        ({"lora": '{"rank": 0}'}, "rank must be at least 1"),
        ({"steps": 0}, "steps: Input should be greater than or equal to 1"),
        ({"manifest": "nowhere.parquet"}, "cannot be read"),
        ({"allowed_read_prefixes": "/nowhere"}, "outside the folders that may be read"),
    ],
)
def test_wrong_settings_are_said_before_anything_starts(sounds, tmp_path, capsys, change, message):
    assert main(arguments(settings(sounds, tmp_path) | change), "") == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.json"))
