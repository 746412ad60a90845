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

from ...judge_scores import SCORES
from ..judge import SAMAudioJudgeModel
from .judge_data import Shard
from .train_judge import pearson

# Not in training: see judge_systems.py.
HELD_OUT = ("tiny", "deepfilternet3", "oracle-binary", "oracle-bins")
TARGET_CORRELATION = 0.8
RESAMPLES = 2000


@dataclass
class Judged:
    """What one system's outputs got and deserve, [R, 4] each.

    asked [R]: as an answer to their own description. mixture [R]: the number of the mixture they were made from.
    """

    predicted: Tensor
    true: Tensor
    asked: Tensor
    mixture: Tensor

    def only_asked(self) -> Judged:
        return Judged(*(column[self.asked] for column in vars(self).values()))


@torch.no_grad()
def judged(judge: SAMAudioJudgeModel, folder: Path) -> dict[str, Judged]:
    """Scores of every output in the shards of `folder`, by system."""
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise FileNotFoundError(f"no shards in {folder}: make them with judge_data --part eval")
    rng = np.random.default_rng(0)
    found: dict[str, list[tuple[Tensor, ...]]] = {}
    heard = 0
    for path in paths:
        shard = Shard.load(path)
        mixture = torch.arange(heard, heard + len(shard.mixture))
        heard += len(mixture)
        given = judge.hear(shard.mixture.float().mT)
        for k, system in enumerate(shard.systems):
            separated = judge.hear(shard.outputs[:, k].float().mT)
            for i in range(shard.scores.shape[2]):
                text = judge.descriptions([row[i].draw(rng) for row in shard.sounds])
                answers = judge.rate(given, separated, text, None)
                asked = (shard.asked[:, k] == i) & (i < 2)
                found.setdefault(system, []).append((answers, shard.scores[:, k, i], asked, mixture))
    return {
        system: Judged(*(torch.cat(column) for column in zip(*rows, strict=True))) for system, rows in found.items()
    }


def correlation_interval(predicted: Tensor, true: Tensor, mixture: Tensor) -> Tensor:
    """95 % percentile bootstrap interval of the correlations [4], by drawing mixtures with all their rows -> [2, 4]."""
    x, y = predicted.double(), true.double()
    moments = torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y], dim=1)  # [R, 6, 4]
    _, number = mixture.unique(return_inverse=True)
    count = int(number.max()) + 1
    of_mixture = torch.zeros(count, 6, 4, dtype=torch.float64).index_add_(0, number, moments)
    times = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    n, x1, y1, xx, yy, xy = torch.einsum("rm,msc->src", torch.from_numpy(times).double(), of_mixture)
    spread = ((n * xx - x1**2) * (n * yy - y1**2)).clamp_min(1e-12).sqrt()
    edges = torch.tensor([0.025, 0.975], dtype=torch.float64)
    return ((n * xy - x1 * y1) / spread).quantile(edges, dim=0)


def figures(rows: list[Judged]) -> dict[str, Any]:
    """Correlations with their intervals, and mean absolute errors, of the four scores over all rows."""
    predicted, true, mixture = (torch.cat([getattr(r, c) for r in rows]) for c in ("predicted", "true", "mixture"))
    found = {
        "correlation": pearson(predicted, true),
        "correlation_interval": correlation_interval(predicted, true, mixture).T,
        "mean_absolute_error": (predicted - true).abs().mean(0),
    }
    by_score = {name: dict(zip(SCORES, values.tolist(), strict=True)) for name, values in found.items()}
    return {"rows": len(true), "mixtures": len(mixture.unique()), **by_score}


def evaluate(judge: SAMAudioJudgeModel, folder: Path) -> dict[str, Any]:
    rows = judged(judge, folder)
    seen, held_out = [s for s in rows if s not in HELD_OUT], [s for s in rows if s in HELD_OUT]
    groups = {"systems of the training": seen, "systems held out": held_out} | {f"  {s}": [s] for s in held_out}
    return {
        "judge_parameters": sum(p.numel() for p in judge.parameters()),
        "all descriptions": {name: figures([rows[s] for s in systems]) for name, systems in groups.items()},
        "own description": {name: figures([rows[s].only_asked() for s in systems]) for name, systems in groups.items()},
        "mean_overall": {
            s: {"true": float(r.true[r.asked, 0].mean()), "judge": float(r.predicted[r.asked, 0].mean())}
            for s, r in rows.items()
        },
    }


def table(report: dict[str, Any]) -> str:
    lines = []
    for which in ("all descriptions", "own description"):
        lines.append(f"{'correlation: ' + which:34}" + "".join(f"{s:>21}" for s in SCORES) + f"{'rows':>8}")
        for name, row in report[which].items():
            cells = "".join(f"{_cell(row, s):>21}" for s in SCORES)
            lines.append(f"{name:34}{cells}{row['rows']:>8}")
        lines.append("")
    lines.append(f"{'mean overall score':34}{'truth':>14}{'judge':>14}")
    for system, row in sorted(report["mean_overall"].items(), key=lambda item: item[1]["true"]):
        mark = "*" if system in HELD_OUT else ""
        lines.append(f"{system + mark:34}{row['true']:14.2f}{row['judge']:14.2f}")
    worst = min(report["all descriptions"]["systems held out"]["correlation"].values())
    verdict = "reached" if worst >= TARGET_CORRELATION else "short of target"
    lines += ["* held out; in brackets: 95 % bootstrap interval over mixtures"]
    lines += [f"target: each correlation at least {TARGET_CORRELATION}: {verdict} (lowest {worst:.3f})"]
    return "\n".join(lines)


def _cell(row: dict[str, Any], score: str) -> str:
    low, high = row["correlation_interval"][score]
    return f"{row['correlation'][score]:.2f} [{low:.2f}, {high:.2f}]"


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
