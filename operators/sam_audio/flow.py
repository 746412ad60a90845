"""Integrating the flow from noise (t = 0) to latents (t = 1), and noise that does not depend on the cluster.

The step grid is torchdiffeq's for fixed-step solvers, which facebookresearch/sam-audio uses. The noise is a
counter-based stream (Philox; Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): key = item,
counter = absolute frame, so any stretch of any recording can be drawn alone, anywhere, in any order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from .config import SolverConfig

METHODS = ("euler", "midpoint")

# One Philox counter step gives four 64-bit words, each of which makes two normals.
_NORMALS_PER_STEP = 8


class SolverError(ValueError):
    """Solver options that cannot be used."""


def noise(key: str, frames: int, channels: int, *, start: int = 0) -> Tensor:
    """Standard normal noise [frames, channels] float32 of absolute frames `start..start + frames` of item `key`.

    Equal to the same rows of any longer draw, bit by bit.
    """
    digest = hashlib.sha256(key.encode()).digest()
    steps = -(-channels // _NORMALS_PER_STEP)
    generator = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    generator.advance(start * steps)
    words = np.asarray(generator.random_raw(frames * steps * 4), dtype="<u8").view("<u4")
    uniform = (words.reshape(-1, 2).astype(np.float64) + 0.5) * 2.0**-32  # in (0, 1): the logarithm is finite
    radius = np.sqrt(-2.0 * np.log(uniform[:, 0]))
    angle = 2.0 * np.pi * uniform[:, 1]
    normals = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).astype(np.float32)
    return torch.from_numpy(normals.reshape(frames, steps * _NORMALS_PER_STEP)[:, :channels].copy())


def candidate_key(key: str, candidate: int) -> str:
    """Key of a candidate's noise; the first has the item's own, so that one candidate is the plain result."""
    return f"{key}#{candidate}" if candidate else key


def time_grid(step_size: float) -> Tensor:
    """Grid 0, h, 2h, ... in float32 whose last point is moved to 1, whether or not h divides 1."""
    if not 0 < step_size <= 1:
        raise SolverError(f"step_size must be in (0, 1], got {step_size}")
    points = int(torch.ceil(torch.tensor(1.0) / step_size + 1))
    grid = torch.arange(points, dtype=torch.float32) * step_size
    grid[-1] = 1.0
    return grid


def evaluations(solver: SolverConfig) -> int:
    """How often a solve evaluates the network."""
    return (len(time_grid(solver.step_size)) - 1) * (2 if solver.method == "midpoint" else 1)


def solve(velocity: Callable[[float, Tensor], Tensor], z: Tensor, solver: SolverConfig) -> Tensor:
    """Integrate dz/dt = velocity(t, z) from t = 0 to 1; `z` is noise at t = 0, the result latents at t = 1."""
    if solver.method not in METHODS:
        raise SolverError(f"method must be one of {', '.join(METHODS)}, got {solver.method!r}")
    grid = time_grid(solver.step_size)
    for start, end in pairwise(grid):
        step = end - start
        slope = velocity(float(start), z)
        if solver.method == "midpoint":
            half = 0.5 * step
            slope = velocity(float(start + half), z + float(half) * slope)
        z = z + float(step) * slope
    return z
