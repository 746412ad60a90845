"""All fuzz cases by group, in an order that does not change, so that a run can be taken up where it ended."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import corpus
import numpy as np
import records
from harness import Case

MUTANTS = 120  # of each of the twelve kinds
MASK_MUTANTS = 60  # of each of the four kinds
MANIFESTS = 120
ROWS_PER_MANIFEST = 25


def every(folder: Path) -> Iterator[Case]:
    """The 2,000 and more cases of `make fuzz`; seeds and bombs are kept in `folder`."""
    made, masks = corpus.seeds(folder / "seeds"), corpus.mask_seeds(folder / "seeds")
    yield from small(folder)
    for number in range(MUTANTS):
        for kind in made:
            yield mutant(made, kind, number)
    for number in range(MASK_MUTANTS):
        for kind in masks:
            yield mask_mutant(masks, kind, number)
    for number in range(MANIFESTS):
        yield manifest(number)
    for name, path in corpus.bombs(folder / "bombs"):
        yield Case("bombs", name, path)


def small(folder: Path) -> Iterator[Case]:
    """What needs no chance: headers that lie, recordings of hardly any length, mask bombs, names."""
    made = corpus.seeds(folder / "seeds")
    for name, content in corpus.liars(made):
        yield Case("lying headers", name, content)
    for name, maker in corpus.tiny():
        yield Case("0 to 100 samples", name, maker)
    for name, content in corpus.mask_bombs():
        yield Case("masks: bombs", name, content)
    for index, name in enumerate(records.FILE_NAMES):
        yield Case("names", name, made["wav"]) if index % 2 else Case("names", name, made["mkv"])


def sample(folder: Path, mutants: int, manifests: int) -> Iterator[Case]:
    """A few seconds' worth of each group but the bombs."""
    made, masks = corpus.seeds(folder / "seeds"), corpus.mask_seeds(folder / "seeds")
    yield from (case for index, case in enumerate(small(folder)) if index % 6 == 0 or case.group == "names")
    for number in range(mutants):
        for kind in made:
            yield mutant(made, kind, 10_000 + number)
        for kind in masks:
            yield mask_mutant(masks, kind, 10_000 + number)
    for number in range(manifests):
        yield manifest(10_000 + number)


def mutant(made: dict[str, bytes], kind: str, number: int) -> Case:
    other = list(made.values())[number % len(made)]
    name = f"{number}.{kind}"
    return Case(f"mutated {kind}", name, corpus.mutated(made[kind], other, zlib.crc32(name.encode())))


def mask_mutant(masks: dict[str, bytes], kind: str, number: int) -> Case:
    other = list(masks.values())[number % len(masks)]
    name = f"mask-{number}.{kind}"
    return Case("masks: mutated", name, corpus.mutated(masks[kind], other, zlib.crc32(name.encode())))


def manifest(number: int) -> Case:
    """Rows with anything in any column."""
    rng = np.random.default_rng(number)
    rows: list[dict[str, Any]] = [records.record(rng) for _ in range(ROWS_PER_MANIFEST)]
    return Case("manifests", f"manifest-{number}", rows)
