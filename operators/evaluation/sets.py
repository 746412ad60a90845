"""The sets there are, by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .eval_split import PAIRS, EvalSplit
from .items import EvaluationSet, SetError
from .musdb import EXCERPT_SECONDS, Musdb
from .sam_audio_bench import SamAudioBench

SETS = {
    "eval-split": "held-out mixes of this repository's own recordings (--data: a folder of training.fetch)",
    "eval-split-pauses": "the same with sources that pause, start late or end early",
    "musdb18hq": "MUSDB18-HQ (--data: the folder above test/); with --segments SAM-Audio's instr-pro",
    "sam-audio-bench": "SAM-Audio-Bench (--data: its tables and media; see operators/evaluation/sam_audio_bench.py)",
}


def open_set(
    name: str,
    data: Path,
    *,
    settings: Sequence[str] | None = None,
    limit: int | None = None,
    segments: Path | None = None,
    excerpt_seconds: float = EXCERPT_SECONDS,
) -> EvaluationSet:
    """A set of `SETS`. settings: some of its settings; limit: items a setting. Raises SetError."""
    if name in ("eval-split", "eval-split-pauses"):
        pauses = name.endswith("pauses")
        unknown = [s for s in settings or () if s not in PAIRS]
        if unknown:
            raise SetError(f"unknown setting {unknown[0]!r}; known are {', '.join(PAIRS)}")
        pairs = [PAIRS[s] for s in settings] if settings else None
        return EvalSplit(data, count=100 if limit is None else limit, pauses=pauses, pairs=pairs)
    if name == "musdb18hq":
        return Musdb(data, segments=segments, excerpt_seconds=excerpt_seconds, settings=settings, limit=limit)
    if name == "sam-audio-bench":
        return SamAudioBench(data, settings=settings, limit=limit)
    raise SetError(f"unknown set {name!r}; known are {', '.join(SETS)}")
