"""What the small separator learns, and how fast: losses and held-out SI-SDR improvement of a run from scratch.

    python -m operators.evaluation.learning DATA_DIR [--steps 600] [--every 50] [--mixes 25] [--out out/learn-tiny]

The shipped recipe with a schedule of `--steps` steps; every `--every` steps its averaged weights separate mixes of the
eval split. Interrupted, it goes on where it was. Prints the table and writes `<out>.json`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..sam_audio.training.train import Trainer, tiny_config
from .ablate import measured, pair_means, short_recipe
from .bootstrap import mean_interval
from .eval_split import PAIRS, EvalSplit


def curve(trainer: Trainer, items: EvalSplit) -> list[dict[str, Any]]:
    """Every validation of a run that kept its weights, with the SI-SDR improvement that its weights give, in dB."""
    rows = []
    for row in tqdm(trainer.log, desc="separating", unit="model", mininterval=10):
        values = measured(trainer.kept(row["step"]), items)
        mean = mean_interval(values)
        figures = {"si_sdri_db": pair_means(values), "mean_db": mean.mean, "interval_db": [mean.low, mean.high]}
        rows.append({**row, **figures})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'':28}{'error, dB':>18}  SI-SDR improvement on held-out mixes, dB"]
    heads = "".join(f"{name:>17}" for name in PAIRS)
    lines.append(f"{'step':>6}{'latent loss':>12}{'gain loss':>10}{'training':>9}{'held':>9}{heads}   mean (95 %)")
    for row in rows:
        cells = "".join(f"{row['si_sdri_db'][name]:17.2f}" for name in PAIRS)
        low, high = row["interval_db"]
        lines.append(
            f"{row['step']:6}{row['latent']:12.3f}{row['gain']:10.3f}{row['train_db']:9.2f}{row['validation_db']:9.2f}"
            f"{cells}{row['mean_db']:7.2f} ({low:.2f} to {high:.2f})"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--steps", type=int, default=600, help="of 32 clips")
    parser.add_argument("--every", type=int, default=50, help="steps from one measurement to the next")
    parser.add_argument("--mixes", type=int, default=25, help="held-out mixes a pair")
    parser.add_argument("--out", type=Path, default=Path("out/learn-tiny"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    trainer = Trainer(args.data_dir, args.out, tiny_config(), short_recipe(args.steps), args.device, keep=True)
    trainer.train(steps=args.steps, validate_every=args.every)
    rows = curve(trainer, EvalSplit(args.data_dir, count=args.mixes))
    args.out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
    print(
        f"\n{table(rows)}\n\nmean with 95 % bootstrap interval over mixes; held: validation mixes of the training split"
    )


if __name__ == "__main__":
    main()
