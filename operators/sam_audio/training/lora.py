"""Low-rank adapters (Hu et al., 2021) on the linear layers of the DiT: train them, save them, merge them back.

Adapters are written in the released weight layout, whatever the checkpoint they were trained on: `adapter_config.json`
and `adapter_model.safetensors`, with keys such as `transformer.layers.0.attention.wq.lora_a`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ConfigError
from ..model import SAMAudio
from ..sources import CheckpointError
from ..state_files import read_file, write_file

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
# All linear layers of a block: attention and cross-attention, and the feed-forward.
TARGETS = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")


@dataclass(frozen=True)
class LoRAConfig:
    """rank of the update, which is scaled by alpha / rank; dropout on its input; names of the layers that get one."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = TARGETS

    def __post_init__(self) -> None:
        unknown = sorted(set(self.targets) - set(TARGETS))
        if unknown or not self.targets:
            raise ConfigError(f"lora: targets must be some of {', '.join(TARGETS)}, got {', '.join(unknown) or 'none'}")
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise ConfigError(
                f"lora: rank must be at least 1, alpha positive and dropout in [0, 1), got {self.rank}, "
                f"{self.alpha:g}, {self.dropout:g}"
            )


class LoRALinear(nn.Module):
    """A frozen linear layer plus `scale * b(a(x))`; `b` starts at zero, so nothing changes before the first step."""

    def __init__(self, base: nn.Linear, config: LoRAConfig) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale, self.dropout = config.alpha / config.rank, config.dropout
        # Adapters stay in float32 over a base in bfloat16: steps of the optimiser are smaller than its grain.
        weight = base.weight
        self.lora_a = nn.Parameter(torch.empty(config.rank, weight.shape[1], device=weight.device))
        self.lora_b = nn.Parameter(torch.zeros(weight.shape[0], config.rank, device=weight.device))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    @property
    def weight(self) -> Tensor:
        """The base's weight: other modules ask a linear layer for its type and device."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        low = F.linear(F.dropout(x, self.dropout, self.training).to(self.lora_a.dtype), self.lora_a)
        return cast(Tensor, self.base(x) + self.scale * F.linear(low, self.lora_b).to(x.dtype))

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The base with the update added to its weight, in the base's own type."""
        update = self.scale * self.lora_b.float() @ self.lora_a.float()
        self.base.weight.copy_(self.base.weight.float() + update)
        return self.base


def inject(model: SAMAudio, config: LoRAConfig) -> list[str]:
    """Freeze `model` and put adapters on its blocks' layers; returns the layers' names.

    The model is brought into the released weight layout first, to which adapters belong.
    """
    if any(isinstance(m, LoRALinear) for m in model.modules()):
        raise ValueError("the model has adapters already: merge them first")
    model.transformer.set_heads_first(False)
    model.requires_grad_(False)
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and name.startswith("transformer.layers.")
        and name.rpartition(".")[2] in config.targets
    ]
    for name, module in found:
        _replace(model, name, LoRALinear(module, config))
    return [name for name, _ in found]


def adapters(model: SAMAudio) -> Iterator[tuple[str, LoRALinear]]:
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            yield name, module


def merge(model: SAMAudio) -> SAMAudio:
    """Add the adapters to the weights they belong to and take them out; the model saves and loads like any other."""
    for name, module in list(adapters(model)):
        _replace(model, name, module.merged())
    return model


def adapter_state(model: SAMAudio) -> dict[str, Tensor]:
    """The adapters' weights by the names under which they are saved."""
    return {
        f"{name}.{part}": getattr(module, part).detach()
        for name, module in adapters(model)
        for part in ("lora_a", "lora_b")
    }


def save_adapters(model: SAMAudio, config: LoRAConfig, folder: str | Path, base: str) -> None:
    """Write the adapters into `folder` (made if missing); `base` names the checkpoint that they were trained on."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_NAME).write_text(json.dumps({"base_model": base, **asdict(config)}, indent=1) + "\n")
    write_file(adapter_state(model), folder / WEIGHTS_NAME)


def load_adapters(model: SAMAudio, folder: str | Path) -> LoRAConfig:
    """Put the adapters of `folder` on `model`; `merge` makes them part of it. Raises CheckpointError."""
    folder = Path(folder)
    try:
        values = json.loads((folder / CONFIG_NAME).read_text())
        known = {f.name for f in fields(LoRAConfig)}
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known}
        config = LoRAConfig(**given)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{folder / CONFIG_NAME} describes no adapters ({error})") from error
    state = read_file(folder / WEIGHTS_NAME)
    inject(model, config)
    load_adapter_state(model, state, source=str(folder / WEIGHTS_NAME))
    return config


@torch.no_grad()
def load_adapter_state(model: SAMAudio, state: Mapping[str, Tensor], *, source: str) -> None:
    """Give the adapters of `model` their weights. Raises CheckpointError for those of another model."""
    own = adapter_state(model)
    wrong = sorted(set(own) ^ set(state)) or [k for k, t in own.items() if t.shape != state[k].shape]
    if wrong:
        raise CheckpointError(
            f"{source} does not fit this model ({len(wrong)} adapters differ: {', '.join(wrong[:3])}). "
            "Use the checkpoint that its adapter_config.json names"
        )
    for key, weight in own.items():
        weight.copy_(state[key])


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
