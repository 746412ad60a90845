"""What is evaluated: one mixture with its prompt, and, where the set knows them, the true sounds in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from ..sam_audio.anchors import Anchor

_UNSAFE = re.compile(r"[^A-Za-z0-9]+")


class SetError(ValueError):
    """A set cannot be read: names the file and the field, and says what to do."""


@dataclass(frozen=True, eq=False)
class Item:
    """One mixture, one prompt.

    item_id: unique in its set, `<setting>/<name>`, safe as a relative path.
    mixture, target, other: mono [samples] float32 at `sample_rate`; target + other = mixture. Sets of real recordings
    know no target. `kind` is "speech" where speech and nothing else is asked for: what a speech denoiser can do.
    anchors: spans that belong to the prompt. masked_video: [frames, 3, H, W] uint8, spread over the recording.
    """

    item_id: str
    setting: str
    mixture: np.ndarray
    sample_rate: int
    description: str
    kind: str = ""
    target: np.ndarray | None = None
    other: np.ndarray | None = None
    anchors: tuple[Anchor, ...] = ()
    masked_video: Tensor | None = None

    @property
    def seconds(self) -> float:
        return len(self.mixture) / self.sample_rate


class EvaluationSet(Protocol):
    """Items by number: the same ones in every process, each made alone, so that any of them can be made again."""

    name: str
    notes: list[str]  # what a reader of the figures has to know about the set

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Item: ...


class Joined:
    """Several sets, one after the other."""

    def __init__(self, name: str, sets: Sequence[EvaluationSet]) -> None:
        self.name, self.sets = name, sets
        self.notes = [note for found in sets for note in found.notes]

    def __len__(self) -> int:
        return sum(map(len, self.sets))

    def __getitem__(self, index: int) -> Item:
        for found in self.sets:
            if index < len(found):
                return found[index]
            index -= len(found)
        raise IndexError(index)


def slug(*parts: object) -> str:
    """A file name of letters, digits and dashes: names in a set's tables are data, never trusted as paths."""
    return _UNSAFE.sub("-", " ".join(str(part) for part in parts)).strip("-")[:120] or "item"
