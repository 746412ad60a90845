"""The judge's four scores, in the order in which models give them and tables keep them; imports no torch."""

from __future__ import annotations

from typing import NamedTuple


class JudgeScores(NamedTuple):
    """The judge's opinion of a target, about 1 (poor) to 5 (excellent)."""

    overall: float
    recall: float
    precision: float
    faithfulness: float


SCORES = JudgeScores._fields
COLUMNS = tuple(f"judge_{score}" for score in SCORES)
