"""A training run in the lake: its settings, checkpoints, curves and the model that comes out.

training/<run>/run.json                    settings, written once: the run's claim to its name
training/<run>/checkpoints/step-00000500.pt    the newest ones
training/<run>/log.json, curves/           every measurement; TensorBoard event files
training/<run>/model/, adapters/           the averaged weights; with LoRA merged, and the adapters alone
training/<run>/done.json                   written last
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.config import JobConfigError
from pipeline.storage import Store
from pipeline.training_config import TrainingConfig
from pipeline.uris import redact


class TrainingStore:
    """The files of one run."""

    def __init__(self, config: TrainingConfig) -> None:
        self.config, self.store = config, Store(config.lake, config.read_prefixes)

    def key(self, name: str) -> str:
        return f"{self.config.key}/{name}"

    def url(self, name: str) -> str:
        return self.store.url(self.key(name))

    def claim(self, identity: Mapping[str, str]) -> int | None:
        """Take the run's name, or find it taken by the same settings; returns the step that the run goes on from.

        identity: hashes of what the settings only name. None for a new run. Raises JobConfigError when the name is
        another run's, or the
        run has ended: nothing is ever overwritten.
        """
        learned = {**self.config.learned(), **identity}
        self.store.put_if_absent(self.key("run.json"), json.dumps(learned, indent=1).encode())
        before = json.loads(self.store.read_bytes(self.key("run.json")))
        changed = sorted(k for k in learned.keys() | before.keys() if learned.get(k) != before.get(k))
        where = redact(self.url(""))
        if changed:
            said = ", ".join(f"{k} was {before.get(k)!r} and is {learned.get(k)!r}" for k in changed)
            raise JobConfigError(
                f"run: {where} was begun with other settings ({said}); give another --run, or the settings it had"
            )
        if self.store.exists(self.key("done.json")):
            raise JobConfigError(f"run: {where} has ended and is not overwritten; give another --run")
        steps = self.steps()
        return steps[-1] if steps else None

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there, ascending."""
        names = (key.rpartition("/")[2] for key in self.store.list(self.key("checkpoints")))
        return sorted(int(name[5:13]) for name in names if name.startswith("step-") and name.endswith(".pt"))

    def checkpoint(self, device: torch.device | str = "cpu") -> dict[str, Any] | None:
        """The newest checkpoint; None for a new run."""
        steps = self.steps()
        if not steps:
            return None
        with tempfile.TemporaryDirectory(prefix="training-") as folder:
            path = Path(folder) / "state.pt"
            self.store.download(self._checkpoint(steps[-1]), path)
            state: dict[str, Any] = torch.load(path, weights_only=True, map_location=device)
        return state

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Store a checkpoint, whole or not at all, and delete those that are too old."""
        with tempfile.TemporaryDirectory(prefix="training-") as folder:
            path = Path(folder) / "state.pt"
            torch.save(state, path)
            self.store.upload(path, self._checkpoint(step), if_absent=False)
        for old in self.steps()[: -self.config.keep_checkpoints]:
            self.store.delete(self._checkpoint(old))

    def write_log(self, log: list[dict[str, Any]], curves: Path) -> None:
        self.store.write_bytes(self.key("log.json"), (json.dumps(log, indent=1) + "\n").encode())
        self.upload_folder(curves, "curves")

    def upload_folder(self, folder: Path, name: str) -> None:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            self.store.upload(path, self.key(f"{name}/{path.relative_to(folder)}"), if_absent=False)

    def finish(self, figures: dict[str, Any]) -> None:
        self.store.write_bytes(self.key("done.json"), (json.dumps(figures, indent=1) + "\n").encode())

    def figures(self) -> dict[str, Any]:
        return dict(json.load(io.BytesIO(self.store.read_bytes(self.key("done.json")))))

    def _checkpoint(self, step: int) -> str:
        return self.key(f"checkpoints/step-{step:08d}.pt")
