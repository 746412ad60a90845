"""Scores of a segment's target: the core in pieces as long as the judges' training clips, weighted by duration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .judge_scores import JudgeScores
from .sam_audio.ranking import Judge, Ranker

PIECE_SECONDS = 30.0


@dataclass(frozen=True, eq=False)
class Extract:
    """What was asked for and what came out, mono [n] at `sample_rate`: the core of one segment.

    spans: (start, end) in seconds from the first sample, where the sound is said to be heard; None when nobody said.
    """

    mixture: Tensor
    target: Tensor
    description: str
    sample_rate: int
    spans: tuple[tuple[float, float], ...] | None = None


def judge_scores(judge: Judge, extract: Extract) -> JudgeScores:
    """Scores of an extract: the mean over its pieces, weighted by their length."""
    mixtures, targets = _pieces(extract.mixture, extract.sample_rate), _pieces(extract.target, extract.sample_rate)
    # Piece by piece: memory does not grow with the segment.
    rows = [judge.score([m], [t], [extract.description])[0] for m, t in zip(mixtures, targets, strict=True)]
    return JudgeScores(*_weighted(torch.stack(rows).cpu(), mixtures).tolist())


def ranker_score(ranker: Ranker, extract: Extract) -> float:
    """What a ranker makes of an extract. With spans it hears the whole at once, because they lie anywhere in it."""
    if extract.spans is None:
        mixtures, targets = _pieces(extract.mixture, extract.sample_rate), _pieces(extract.target, extract.sample_rate)
    else:
        mixtures, targets = [extract.mixture], [extract.target]
    rows = [
        ranker(
            extracted_audio=[target[None]],
            input_audio=[mixture[None]],
            descriptions=[extract.description],
            videos=None,
            sample_rate=extract.sample_rate,
            spans=None if extract.spans is None else [list(extract.spans)],
        )[0]
        for mixture, target in zip(mixtures, targets, strict=True)
    ]
    return float(_weighted(torch.stack(rows).cpu(), mixtures))


def _pieces(wave: Tensor, sample_rate: int) -> Sequence[Tensor]:
    """Equal pieces of at most PIECE_SECONDS."""
    count = max(1, -(-wave.shape[-1] // round(PIECE_SECONDS * sample_rate)))
    return wave.tensor_split(count)


def _weighted(rows: Tensor, pieces: Sequence[Tensor]) -> Tensor:
    weights = torch.tensor([float(piece.shape[-1]) for piece in pieces])
    return (rows.float() * weights[:, None]).sum(0) / weights.sum()
