"""Correlation of a judge's scores with the truth, on mixtures of the eval split and on separators it never heard.

    python -m operators.sam_audio.training.eval_judge SHARDS [--judge tiny] [--out out/eval-judge.json]

SHARDS/eval is what judge_data.py --part eval makes. Every output is judged as an answer to its own description, to that
of the other sound (a wrong answer), and to one of a sound that is not there.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..judge import SAMAudioJudgeModel
from .judge_data import Shard
from .judge_truth import SCORES
from .train_judge import pearson

# Not in training: see judge_systems.py.
HELD_OUT = ("tiny", "deepfilternet3", "oracle-binary", "oracle-bins")
TARGET_CORRELATION = 0.8


@dataclass
class Judged:
    """What one system's outputs got and deserve, [R, 4] each. asked [R]: as an answer to their own description."""

    predicted: Tensor
    true: Tensor
    asked: Tensor


@torch.no_grad()
def judged(judge: SAMAudioJudgeModel, folder: Path) -> dict[str, Judged]:
    """Scores of every output in the shards of `folder`, by system."""
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise FileNotFoundError(f"no shards in {folder}: make them with judge_data --part eval")
    rng = np.random.default_rng(0)
    found: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
    for path in paths:
        shard = Shard.load(path)
        given = judge.hear(shard.mixture.float().mT)
        for k, system in enumerate(shard.systems):
            separated = judge.hear(shard.outputs[:, k].float().mT)
            for i in range(shard.scores.shape[2]):
                text = judge.descriptions([row[i].draw(rng) for row in shard.sounds])
                answers = judge.rate(given, separated, text, None)
                asked = (shard.asked[:, k] == i) & (i < 2)
                found.setdefault(system, []).append((answers, shard.scores[:, k, i], asked))
    return {
        system: Judged(*(torch.cat(column) for column in zip(*rows, strict=True))) for system, rows in found.items()
    }


def figures(rows: list[Judged]) -> dict[str, Any]:
    """Correlations and mean absolute errors of the four scores over all rows."""
    predicted, true = torch.cat([r.predicted for r in rows]), torch.cat([r.true for r in rows])
    return {
        "rows": len(true),
        "correlation": dict(zip(SCORES, pearson(predicted, true).tolist(), strict=True)),
        "mean_absolute_error": dict(zip(SCORES, (predicted - true).abs().mean(0).tolist(), strict=True)),
    }


def only_asked(row: Judged) -> Judged:
    return Judged(row.predicted[row.asked], row.true[row.asked], row.asked[row.asked])


def evaluate(judge: SAMAudioJudgeModel, folder: Path) -> dict[str, Any]:
    rows = judged(judge, folder)
    seen, held_out = [s for s in rows if s not in HELD_OUT], [s for s in rows if s in HELD_OUT]
    groups = {"systems of the training": seen, "systems held out": held_out} | {f"  {s}": [s] for s in held_out}
    return {
        "judge_parameters": sum(p.numel() for p in judge.parameters()),
        "all descriptions": {name: figures([rows[s] for s in systems]) for name, systems in groups.items()},
        "own description": {name: figures([only_asked(rows[s]) for s in systems]) for name, systems in groups.items()},
        "mean_overall": {
            s: {"true": float(r.true[r.asked, 0].mean()), "judge": float(r.predicted[r.asked, 0].mean())}
            for s, r in rows.items()
        },
    }


def table(report: dict[str, Any]) -> str:
    lines = []
    for which in ("all descriptions", "own description"):
        lines.append(f"{'correlation: ' + which:34}" + "".join(f"{s:>14}" for s in SCORES) + f"{'rows':>8}")
        for name, row in report[which].items():
            cells = "".join(f"{row['correlation'][s]:14.2f}" for s in SCORES)
            lines.append(f"{name:34}{cells}{row['rows']:>8}")
        lines.append("")
    lines.append(f"{'mean overall score':34}{'truth':>14}{'judge':>14}")
    for system, row in sorted(report["mean_overall"].items(), key=lambda item: item[1]["true"]):
        mark = "*" if system in HELD_OUT else ""
        lines.append(f"{system + mark:34}{row['true']:14.2f}{row['judge']:14.2f}")
    worst = min(report["all descriptions"]["systems held out"]["correlation"].values())
    verdict = "reached" if worst >= TARGET_CORRELATION else "short of target"
    lines += ["* held out", f"target: each correlation at least {TARGET_CORRELATION}: {verdict} (lowest {worst:.2f})"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shards", type=Path)
    parser.add_argument("--judge", default="tiny")
    parser.add_argument("--out", type=Path, default=Path("out/eval-judge.json"))
    args = parser.parse_args()
    report = evaluate(SAMAudioJudgeModel.from_pretrained(args.judge), args.shards / "eval")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))


if __name__ == "__main__":
    main()
