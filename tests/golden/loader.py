"""Golden numbers: inputs, weights and outputs of the reference code, one `NAME.safetensors` + `NAME.json` a case.

The json files say which revision of which repository made the numbers, and what each case covers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Golden:
    """One case. `tolerance` is {"atol": .., "rtol": ..}, ready for `torch.testing.assert_close`."""

    name: str
    tensors: dict[str, Tensor]
    config: dict[str, Any]
    values: dict[str, Any]
    tolerance: dict[str, float]

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def weights(self, prefix: str = "") -> dict[str, Tensor]:
        """The state dict under `prefix` (a reference key prefix such as "audio_codec."), prefix removed."""
        start = "weights." + prefix
        return {k.removeprefix(start): v for k, v in self.tensors.items() if k.startswith(start)}

    def assert_close(self, actual: Tensor, key: str) -> None:
        """Compare with tensor `key` inside this case's own tolerance."""
        torch.testing.assert_close(actual, self.tensors[key], **self.tolerance)


def load(name: str) -> Golden:
    """The case `name`: every tensor on the CPU, in the dtype it was stored in."""
    about = json.loads((FOLDER / f"{name}.json").read_text())
    tensors = load_file(FOLDER / f"{name}.safetensors")
    return Golden(name, tensors, about["config"], about["values"], about["tolerance"])


def released_manifest() -> dict[str, Any]:
    """Key -> shape of the released checkpoints (no weights), a dict per repository name under "keys"."""
    manifest: dict[str, Any] = json.loads((FOLDER / "released_manifest.json").read_text())
    return manifest
