"""What is known of a segment's stems beside their samples, and the same of a whole item."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from operators.judge_scores import COLUMNS, JudgeScores

if TYPE_CHECKING:  # what joins and writes needs no torch
    from operators.separator import SegmentStems

# Spans that end and begin at a cut between segments are one.
TOUCHING_SECONDS = 1e-6


@dataclass(frozen=True)
class Facts:
    """Of a segment's core, or of an item: `seconds` long. scores are None without a judge."""

    seconds: float
    spans: tuple[tuple[float, float], ...] | None = None
    scores: JudgeScores | None = None
    candidates: int = 1
    windows: int = 0
    windows_skipped: int = 0

    @classmethod
    def of(cls, stems: SegmentStems, seconds: float) -> Facts:
        return cls(seconds, stems.spans, stems.scores, stems.candidates, stems.windows, stems.windows_skipped)

    @classmethod
    def from_json(cls, text: str | bytes) -> Facts:
        values = json.loads(text)
        if values["spans"] is not None:
            values["spans"] = tuple((start, end) for start, end in values["spans"])
        if values["scores"] is not None:
            values["scores"] = JudgeScores(*values["scores"])
        return cls(**values)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @property
    def score_columns(self) -> dict[str, float | None]:
        return dict(zip(COLUMNS, self.scores or (None,) * len(COLUMNS), strict=True))

    @property
    def spans_json(self) -> str | None:
        if self.spans is None:
            return None
        return json.dumps([[round(start, 6), round(end, 6)] for start, end in self.spans])


def merge(segments: Sequence[Facts]) -> Facts:
    """Facts of an item from those of its segments in order: scores weighted by duration, spans joined at the cuts."""
    seconds = sum(s.seconds for s in segments)
    scores = None
    if all(s.scores is not None for s in segments):
        columns = zip(*(s.scores for s in segments if s.scores is not None), strict=True)
        scores = JudgeScores(
            *(sum(value * s.seconds for value, s in zip(column, segments, strict=True)) / seconds for column in columns)
        )
    spans: list[tuple[float, float]] | None = None
    if all(s.spans is not None for s in segments):
        spans = []
        for start, end in (span for s in segments for span in s.spans or ()):
            if spans and start - spans[-1][1] <= TOUCHING_SECONDS:
                spans[-1] = (spans[-1][0], end)
            else:
                spans.append((start, end))
    return Facts(
        seconds,
        None if spans is None else tuple(spans),
        scores,
        max(s.candidates for s in segments),
        sum(s.windows for s in segments),
        sum(s.windows_skipped for s in segments),
    )
