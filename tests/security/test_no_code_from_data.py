"""Nothing that is read can run: no pickle of objects, no eval, no shell, no code out of a checkpoint's repository."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from operators.errors import AssetError
from operators.masks import open_masks
from operators.sam_audio.checkpoint import CheckpointError
from operators.sam_audio.state_files import read_file

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ("operators", "pipeline", "jobs") for path in (ROOT / folder).rglob("*.py"))
# The helper process unpickles requests of its own parent, over a socket nobody else holds; answers are JSON.
MAY_UNPICKLE = {"operators/sandbox_helper.py"}
NEVER = {
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "yaml.load",
    "marshal.loads",
    "shelve.open",
    "torch.hub.load",
    "joblib.load",
}
UNPICKLE = {"pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads"}


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    tree = ast.parse(path.read_text())
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def keyword(call: ast.Call, name: str) -> object:
    return next((ast.unparse(k.value) for k in call.keywords if k.arg == name), None)


def test_sources_are_found() -> None:
    assert len(SOURCES) > 50
    assert any(name == "torch.load" for path in SOURCES for name, _ in calls(path))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_call_runs_what_it_reads(path: Path) -> None:
    relative = str(path.relative_to(ROOT))
    for name, call in calls(path):
        where = f"{relative}:{call.lineno}"
        assert name not in NEVER, where
        assert name not in UNPICKLE or relative in MAY_UNPICKLE, where
        if name == "torch.load":
            assert keyword(call, "weights_only") == "True", where
        if name in ("np.load", "numpy.load"):
            assert keyword(call, "allow_pickle") in (None, "False"), where
        assert keyword(call, "trust_remote_code") in (None, "False"), where
        assert keyword(call, "shell") in (None, "False"), where
        if name.startswith("yaml.") and keyword(call, "Loader") is not None:
            assert "Safe" in str(keyword(call, "Loader")), where


class Evil:
    """Unpickled as an object it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "among tensors"])
def test_a_checkpoint_that_holds_code_is_refused_and_does_not_run(tmp_path: Path, inside: bool) -> None:
    evil = Evil(tmp_path / "ran")
    torch.save({"a": torch.zeros(2), "b": evil} if inside else evil, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        read_file(tmp_path / "checkpoint.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["npy", "npz masks", "npz times"])
def test_masks_that_hold_code_are_refused_and_do_not_run(tmp_path: Path, kind: str) -> None:
    evil = np.array([Evil(tmp_path / "ran")], dtype=object)
    path = tmp_path / ("masks.npy" if kind == "npy" else "masks.npz")
    good = np.ones((1, 4, 4), bool)
    if kind == "npy":
        np.save(path, evil, allow_pickle=True)
    elif kind == "npz masks":
        np.savez(path, masks=evil, timestamps_seconds=np.zeros(1))
    else:
        np.savez(path, masks=good, timestamps_seconds=evil)
    with path.open("rb") as file, pytest.raises(AssetError) as raised, open_masks(file, path.name, 1.0) as masks:
        masks.at(0.0)
    assert raised.value.cause == "bad_mask"
    assert not (tmp_path / "ran").exists()
