"""An exponential moving average of the weights that are trained: what validation sees and what is shipped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Averages of named parameters, on their device, in float32.

    The decay rises with the number of updates, (1 + n) / (10 + n) up to `decay`, so that the first steps are forgotten.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of the average must be in [0, 1), got {decay}")
        self.parameters = dict(parameters)
        self.decay = decay
        self.values = {name: p.detach().float().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, updates_before: int) -> None:
        decay = min(self.decay, (1 + updates_before) / (10 + updates_before))
        current = [p.detach().float() for p in self.parameters.values()]
        torch._foreach_lerp_(list(self.values.values()), current, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The parameters hold the averages inside, and what they held before afterwards."""
        before = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._write(self.values)
        try:
            yield
        finally:
            self._write(before)

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, p in self.parameters.items():
            p.copy_(values[name])

    def state_dict(self) -> dict[str, Tensor]:
        return self.values

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Raises KeyError when `state` is of other parameters."""
        if set(state) != set(self.values):
            odd = sorted(set(state) ^ set(self.values))
            raise KeyError(f"the averages are of other weights ({len(odd)} differ: {', '.join(odd[:5])})")
        for name, value in self.values.items():
            value.copy_(state[name])
