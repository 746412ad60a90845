"""Optimiser steps on an objective: accumulation, precision, averaging, and a state that continues where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..sources import CheckpointError
from .averaging import Average
from .muon import Muon
from .objective import LatentBatch, Objective, draw


class Learner:
    """A model in training.

    optimizers: over the objective's trained parameters; their learning rates at construction are the base rates.
    ema: decay of the averaged weights. precision: type of the matrix products (autocast), None for float32.
    forward: what computes the loss, when that is not the objective itself (DistributedDataParallel around it);
    unsynchronised: its `no_sync`, for all micro batches of a step but the last.
    """

    def __init__(
        self,
        objective: Objective,
        optimizers: list[torch.optim.Optimizer],
        *,
        ema: float,
        seed: int = 0,
        precision: torch.dtype | None = None,
        clip_norm: float = 1.0,
        forward: nn.Module | None = None,
        unsynchronised: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.objective, self.model, self.optimizers = objective, objective.model, optimizers
        self.base_rates = [[group["lr"] for group in o.param_groups] for o in optimizers]
        self.precision, self.clip_norm, self.seed = precision, clip_norm, seed
        self.forward, self.unsynchronised = forward or objective, unsynchronised
        self.average = Average(trained(self.model), ema)
        self.step_count = 0

    def autocast(self) -> AbstractContextManager[Any]:
        kind = self.model.device.type
        return torch.autocast(kind, self.precision or torch.bfloat16, enabled=self.precision is not None)

    def step(self, micro_batches: Iterable[LatentBatch], rate: float = 1.0, count: int = 1) -> dict[str, Tensor]:
        """One update from `count` micro batches of equal size, at `rate` times the base rates.

        Returns the means of the objective's terms over the micro batches, "error" [B of all], and "gradient_norm".
        """
        for optimizer, rates in zip(self.optimizers, self.base_rates, strict=True):
            for group, base in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = base * rate
        terms: list[dict[str, Tensor]] = []
        for index, batch in enumerate(micro_batches):
            numbers = batch.numbers.tolist()
            frames, channels = batch.mixture.shape[2], 2 * batch.mixture.shape[1]
            noise, time = draw(self.objective.config, self.seed, numbers, frames, channels, batch.mixture.device)
            torch.manual_seed((self.seed << 40) + numbers[0])  # dropout
            with self.unsynchronised() if index + 1 < count else nullcontext():
                with self.autocast():
                    out = self.forward(batch, noise, time)
                (out["loss"] / count).backward()
            terms.append({name: value.detach() for name, value in out.items()})
        if len(terms) != count:
            raise ValueError(f"a step needs {count} micro batches, got {len(terms)}")
        parameters = [p for p in self.objective.parameters() if p.requires_grad]
        norm = nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.average.update(self.step_count)
        self.step_count += 1
        found = {k: torch.stack([t[k] for t in terms]).mean() for k in terms[0] if k != "error"}
        return {**found, "error": torch.cat([t["error"] for t in terms]), "gradient_norm": norm.detach()}

    def state_dict(self) -> dict[str, Any]:
        """All that a continued run needs: tensors and numbers only, so that it loads without running any code."""
        head = self.objective.head
        return {
            "model": {name: p.detach() for name, p in trained(self.model)},
            "average": self.average.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step_count,
            **({"head": head.state_dict()} if head is not None else {}),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any], source: str = "the checkpoint") -> None:
        """Raises CheckpointError for a state of another model or another choice of trained weights."""
        own = dict(trained(self.model))
        odd = sorted(set(own) ^ set(state["model"])) or [
            n for n, p in own.items() if p.shape != state["model"][n].shape
        ]
        head = self.objective.head
        if odd or (head is None) != ("head" not in state):
            raise CheckpointError(
                f"{source} is of another model or objective ({', '.join(odd[:3]) or 'alignment head'} differs). "
                "Continue with the settings that it was begun with, or begin anew elsewhere"
            )
        for name, p in own.items():
            p.copy_(state["model"][name])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        if head is not None:
            head.load_state_dict(state["head"])
        self.step_count = int(state["step"])


def trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that are trained, by name."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def muon_and_adamw(
    objective: Objective, *, muon_lr: float, adam_lr: float, weight_decay: float = 0.01
) -> list[torch.optim.Optimizer]:
    """Muon for the transformer's matrices (fewer steps to the same loss at small sizes), AdamW for the rest."""
    named = trained(objective.model)
    hidden = [p for n, p in named if n.startswith("transformer.layers.") and p.ndim == 2 and min(p.shape) > 6]
    matrices = {id(p) for p in hidden}
    others = [p for p in objective.parameters() if p.requires_grad and id(p) not in matrices]
    return [
        Muon(hidden, lr=muon_lr),
        torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.99), weight_decay=weight_decay),
    ]


def adamw(objective: Objective, *, lr: float, weight_decay: float = 0.01) -> list[torch.optim.Optimizer]:
    """AdamW; gains, gates, biases and embeddings are not decayed."""
    parameters = [p for p in objective.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=(0.9, 0.99))]


def learning_rate(progress: float, step: int, warmup_steps: int) -> float:
    """Factor on the base rate: warm-up, constant, then linear to 2 % over the last 60 % of the budget."""
    warm = min(1.0, (step + 1) / max(warmup_steps, 1))
    return warm * min(1.0, max(0.02, (1 - progress) / 0.6))
