"""Pseudo-labels: stems of a lake that are good enough to learn from (SAM-Audio paper, data engine).

A separator is run over unlabelled audio, and what passes the judge, CLAP and an activity test is trained on as if it
were a real mixture with known stems.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from ray.data import ActorPoolStrategy

from operators import judge_scores
from operators.errors import AssetError
from operators.sam_audio.ranking_activity import active_spans
from operators.sam_audio.ranking_clap import SAMPLE_RATE, ClapRanker
from operators.sam_audio.training.prompts import kind_of
from operators.sandbox import Limits
from pipeline.decode import decode_media
from pipeline.storage import Store
from pipeline.training_manifest import Sound, TrainingRow

# A stem is heard in pieces of this length: memory does not grow with it.
PIECE_SECONDS = 120.0
COLUMNS = [
    "asset_id", "uri", "description", "target_uri", "residual_uri", "duration_seconds", "committed_at",
    *judge_scores.COLUMNS,
]  # fmt: skip


@dataclass(frozen=True)
class Thresholds:
    """What a target must reach. Judge scores are on its 1 to 5 scale; None does not ask.

    active: share of the duration that is louder than `silence_db` (dB of full scale) for 250 ms or more.
    clap: cosine of CLAP's embeddings of target and description, with the checkpoint `clap_checkpoint`.
    """

    overall: float | None = None
    recall: float | None = None
    precision: float | None = None
    faithfulness: float | None = None
    active: float = 0.05
    silence_db: float = -40.0
    clap: float | None = None
    clap_checkpoint: str | None = None

    def judge_fails(self, row: Mapping[str, Any]) -> str | None:
        """Why the judge's scores of a row of the stems table do not suffice; None when they do."""
        for name in judge_scores.SCORES:
            least, found = getattr(self, name), row[f"judge_{name}"]
            if least is not None and found is None:
                return "not judged"
            if least is not None and found < least:
                return f"{name} under {least:g}"
        return None


def newest(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The last committed row of each asset and description; rows without a description ask for nothing in words."""
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row["committed_at"]):
        if row["description"]:
            found[row["asset_id"], row["description"]] = row
    return list(found.values())


class Hear:
    """Row of the stems table -> the row with `reason`: why its target is not kept, or "" when it is."""

    def __init__(self, thresholds: Thresholds, lake: str, clap: ClapRanker | None = None) -> None:
        self.thresholds, self.store = thresholds, Store(lake, [lake])
        self.clap = clap
        if clap is None and thresholds.clap is not None:
            self.clap = ClapRanker(thresholds.clap_checkpoint)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            return {**row, "reason": self.judge(row)}
        except AssetError as error:
            return {**row, "reason": f"unreadable: {error.cause}"}

    def judge(self, row: Mapping[str, Any]) -> str:
        active = similarity = seconds = 0.0
        for wave in self._pieces(str(row["target_uri"])):
            length = wave.shape[-1] / SAMPLE_RATE
            spans = active_spans(
                torch.from_numpy(wave), SAMPLE_RATE, threshold_mode="abs", sil_threshold=self.thresholds.silence_db
            )
            active += sum(end - start for start, end in spans)
            if self.clap is not None:
                heard = torch.from_numpy(wave.mean(0))[None]
                score = self.clap(
                    extracted_audio=[heard], descriptions=[str(row["description"])], sample_rate=SAMPLE_RATE
                )
                similarity += float(score[0, 0]) * length
            seconds += length
        if not seconds or active / seconds < self.thresholds.active:
            return f"active under {self.thresholds.active:.0%}"
        if self.thresholds.clap is not None and similarity / seconds < self.thresholds.clap:
            return f"CLAP under {self.thresholds.clap:g}"
        return ""

    def _pieces(self, uri: str) -> Iterator[np.ndarray]:
        size, start = round(PIECE_SECONDS * SAMPLE_RATE), 0
        while True:
            wave = decode_media(
                self.store,
                uri,
                Limits(),
                start=start,
                stop=start + size,
                sample_rate=SAMPLE_RATE,
                expected_seconds=None,
            )
            if wave.shape[-1]:
                yield wave
            if wave.shape[-1] < size:
                return
            start += size


def select(rows: list[Mapping[str, Any]], thresholds: Thresholds, lake: str) -> tuple[list[TrainingRow], Counter[str]]:
    """Training rows of the stems that pass, in the order of asset and description, and why the others did not."""
    reasons: Counter[str] = Counter()
    candidates = []
    for row in newest(rows):
        reason = thresholds.judge_fails(row)
        if reason:
            reasons[reason] += 1
        else:
            plain = {k: row[k] for k in ("asset_id", "uri", "description", "target_uri", "residual_uri")}
            candidates.append({**plain, "duration_seconds": row["duration_seconds"]})
    kept = []
    if candidates:
        heard = ray.data.from_items(candidates).map(
            Hear,  # type: ignore[arg-type]
            fn_constructor_args=(thresholds, lake),
            compute=ActorPoolStrategy(min_size=1, max_size=max(1, int(ray.cluster_resources().get("CPU", 1)) - 1)),
        )
        for row in heard.iter_rows():
            if row["reason"]:
                reasons[row["reason"]] += 1
            else:
                kept.append(row)
    kept.sort(key=lambda row: (row["asset_id"], row["description"]))
    return [training_row(row) for row in kept], reasons


def training_row(row: Mapping[str, Any]) -> TrainingRow:
    """An item as a mixture of its two stems; the residual is asked for as everything else."""
    words, seconds = str(row["description"]), float(row["duration_seconds"])
    rest = f"everything except {words}"
    target = Sound(
        uri=row["target_uri"], kind=kind_of(words), label=words, descriptions=(words,), duration_seconds=seconds
    )
    residual = Sound(uri=row["residual_uri"], label=rest, descriptions=(rest,), duration_seconds=seconds)
    # The asset decides on which side it is, whatever was separated from it.
    return TrainingRow(uri=str(row["uri"]), label=words, duration_seconds=seconds, stems=(target, residual))


def thresholds_of(args: argparse.Namespace) -> Thresholds:
    return Thresholds(
        args.min_overall,
        args.min_recall,
        args.min_precision,
        args.min_faithfulness,
        args.min_active,
        args.silence_db,
        args.min_clap,
        args.clap,
    )
