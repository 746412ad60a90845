"""Measure the shipped model on held-out mixes and hold it against its targets.

    python -m operators.evaluation.tiny DATA_DIR [--model tiny] [--mixes 100] [--out out/eval-tiny.json]

Mixes of 8 s at 0 dB from recordings of the eval split, which training never sees: sources that sound throughout, that
have pauses, and that come and go (gated). Beside the model DeepFilterNet3 and RNNoise, the model with true spans, what
silence outside these spans would give by itself, and the bound of its codec. Prints a table, writes the figures as JSON
and, beside it, a page to look at and listen to. On one thread.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..sam_audio import SAMAudio
from ..sam_audio.sources import SHIPPED
from .bootstrap import Interval, mean_interval
from .eval_split import PAIRS, PAUSES, EvalSplit
from .items import Joined
from .metrics import SiSdr
from .plan import open_baseline
from .reference_free import Metric
from .report import Page, examples, render
from .run import Row, Summary, evaluate, summarise
from .spans import Gated
from .systems import Separator, Silenced, System
from .targets import Target, table

WANTED_DB = {"speech in music": 8.0, "speech in sfx": 8.0, "music in speech": 7.0, "sfx in music": 5.0}
# What is known of the sources, by what stands behind a setting's name.
SOURCES = {Gated.SUFFIX: "that come and go", PAUSES: "with pauses", "": "that sound throughout"}
OBEYED, SPANS_DB, X_REAL_TIME, MEGABYTES = 97.0, 1.0, 20.0, 25.0


def targets(rows: list[Row], summary: Summary, model: str, spans: str, megabytes: float | None) -> list[Target]:
    """The targets of the shipped model. Obeyed and gains by spans are means over all pairs."""
    cells = summary.cells["si_sdri_db"]
    found = [
        Target(f"{pair}, SI-SDR improvement", cells[pair][model].mean, wanted, "dB", cells[pair][model])
        for pair, wanted in WANTED_DB.items()
    ]
    mine = [row for row in rows if row.get("system") == model and not row.get("error")]
    obeyed = mean_interval([100 * row["obeyed"] for row in mine if row["setting"] in PAIRS])
    found.append(Target("prompt obeyed, all pairs", obeyed.mean, OBEYED, "%", obeyed))
    for suffix, sources in SOURCES.items():
        gain = _gain(rows, model, spans, suffix)
        found.append(Target(f"gain by true spans, sources {sources}", gain.mean, SPANS_DB, "dB", gain))
    found.append(Target("speed on one core", summary.x_real_time[model], X_REAL_TIME, "x RT"))
    if megabytes is not None:
        found.append(Target("size of config and weights", megabytes, MEGABYTES, "MB", at_most=True))
    return found


def _gain(rows: list[Row], model: str, spans: str, suffix: str) -> Interval:
    settings = {pair + suffix for pair in PAIRS}
    by_system = {
        system: {
            row["index"]: row["si_sdri_db"]
            for row in rows
            if row.get("system") == system and not row.get("error") and row["setting"] in settings
        }
        for system in (model, spans)
    }
    return mean_interval([value - by_system[model][index] for index, value in by_system[spans].items()])


def size_megabytes(name: str) -> float | None:
    """Of a shipped model or a folder: `config.json` and the weights beside it."""
    folder = SHIPPED.get(name, Path(name))
    files = [p for p in folder.glob("*") if p.name == "config.json" or p.suffix == ".safetensors"]
    return sum(p.stat().st_size for p in files) / 1e6 if files else None


def printed(summary: Summary) -> str:
    """The table: mean SI-SDR improvement of every system, half of the confidence interval's width, prompts obeyed."""
    first = summary.systems[0]
    width = max(map(len, summary.systems)) + 2
    lines = [f"{'SI-SDR improvement, dB':26}" + "".join(f"{s:>{width}}" for s in summary.systems) + f"{'obeyed':>9}"]
    for setting in summary.settings:
        row = summary.cells["si_sdri_db"][setting]
        cells = [f"{row[s].mean:.2f} ± {row[s].half_width:.2f}" if s in row else "-" for s in summary.systems]
        obeyed = summary.cells["obeyed"][setting][first].mean
        lines.append(f"{setting:26}" + "".join(f"{c:>{width}}" for c in cells) + f"{obeyed:>9.0%}")
    return "\n".join(lines)


def measure(data_dir: Path, name: str, count: int) -> tuple[dict[str, Any], str, str]:
    """The report as JSON values, as text to print, and as a page."""
    torch.set_num_threads(1)
    model = SAMAudio.from_pretrained(name)
    short = Path(name).name
    own: list[System] = [Separator(model, name=short), Separator(model, name=short, spans="true")]
    if model.config.span_predictor in SHIPPED:
        own.append(Separator(model, name=short, spans="predicted"))
    own.append(Silenced(own[0]))
    others = [open_baseline(b) for b in ("deepfilternet3", "rnnoise")]
    bound = open_baseline("oracle")
    plain = EvalSplit(data_dir, count=count)
    items = Joined("eval split", [plain, EvalSplit(data_dir, count=count, pauses=True), Gated(plain)])
    metrics: list[Metric] = [SiSdr()]
    rows: list[Row] = []
    # Denoisers are asked once: what pauses and gates change is a matter of spans.
    runs: list[tuple[list[System], range]] = [
        ([*own, *others, bound], range(len(plain))),
        ([*own, bound], range(len(plain), len(items))),
    ]
    with tqdm(total=len(items), unit="mix", mininterval=5) as bar:
        for systems, indices in runs:
            for of_item in evaluate(items, systems, metrics, indices):
                rows += of_item
                bar.update()
    summary = summarise(rows, SiSdr.columns)
    aims = targets(rows, summary, own[0].name, own[1].name, size_megabytes(name))
    record = {
        "model": name,
        "mixes_per_pair": count,
        "pairs": list(PAIRS),
        "targets": [t.record() for t in aims],
        **summary.record(),
    }
    facts = {"Model": name, "Mixes": f"{count} a pair", "Machine": f"{platform.machine()}, one thread"}
    page = Page(f"Small model {short!r} on held-out mixes", items.name, items.notes, {}, facts, aims)
    shown = examples(items, [own[0], *others], rows, summary, settings=list(WANTED_DB))
    text = (
        f"{printed(summary)}\n± half of the 95 % confidence interval (bootstrap over mixes); {count} mixes of 8 s a "
        f"pair at 0 dB\n\n{table(aims)}"
    )
    return record, text, render(page, summary, rows, shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--mixes", type=int, default=100, help="mixes a pair")
    parser.add_argument("--out", type=Path, default=Path("out/eval-tiny.json"))
    args = parser.parse_args()
    record, text, page = measure(args.data_dir, args.model, args.mixes)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    args.out.with_suffix(".html").write_text(page)
    print(f"{text}\n\n{args.out}, {args.out.with_suffix('.html')}")


if __name__ == "__main__":
    main()
