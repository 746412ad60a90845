"""Measure the small span predictor on held-out mixes, and what its spans are worth to the separator.

    python -m operators.evaluation.eval_spans DATA_DIR --span-predictor out/train-spans/best [--mixes 50]

Mixes of 8 s at 0 dB from recordings of the eval split: as `make eval-tiny` has them, where the target sounds nearly all
the time, and gated, where both sources come and go. Truth: frames (40 ms) of the target within 40 dB of its loudest.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..sam_audio.model import SAMAudio
from ..sam_audio.spans import THRESHOLD, active_frames
from ..sam_audio.training import prompts
from ..sam_audio.training.sound_concepts import ALIKE
from .eval_split import EvalSplit
from .items import EvaluationSet, Item
from .metrics import si_sdr
from .spans import Counts, Gated, segments, true_activity
from .systems import Separator

# Said by users, and in no list that training draws from.
UNSEEN = {"speech": "somebody giving an interview", "music": "an orchestra performing"}
KINDS = {"speech": "speech", "music": "music", "sfx": "sound effects"}
SPANS = ("none", "predicted", "true")


def absent(item: Item, labels: list[str], index: int) -> list[str]:
    """Descriptions of what is not in an item: the kind that its pair lacks, and an effect unlike the one it has."""
    kinds = item.setting.split(",")[0].split(" in ")
    missing = [KINDS[kind] for kind in KINDS if kind not in kinds]
    if kinds[1] == "sfx":  # which effect that is, the item does not say
        return missing
    mine = {label for label in labels if item.description in prompts.label_phrases(label)}
    near = mine.union(*(group for group in ALIKE if group & mine))
    if kinds[0] == "sfx" and not mine:  # an effect of no name: it may be anything
        return missing
    others = [label for label in labels if label not in near]
    return [*missing, prompts.label_phrases(others[index % len(others)])[0]]


def evaluate_set(items: EvaluationSet, model: SAMAudio, labels: list[str], systems: list[Separator]) -> dict[str, Any]:
    """Figures by setting: F1 of frames and of seconds, false alarms of absent sounds, SI-SDRi by kind of spans."""
    predictor, codec = model.span_predictor, model.audio_codec
    rows: dict[str, dict[str, Any]] = {}
    for index in tqdm(range(len(items)), desc=items.name, unit="mix", mininterval=10):
        item = items[index]
        assert item.target is not None
        row = rows.setdefault(
            item.setting,
            {name: Counts() for name in ("frames", "seconds", "always", "unseen", "absent")}
            | {"absent_prompts": 0, "absent_found": 0, "si_sdri": {s.spans: [] for s in systems}},
        )
        unseen = [UNSEEN[item.description]] if item.description in UNSEEN else []
        missing = absent(item, labels, index)
        asked = [item.description, *unseen, *missing]
        latents = codec.encode(torch.from_numpy(item.mixture)[None, None]).transpose(1, 2)
        found = active_frames(predictor.logits(latents.expand(len(asked), -1, -1), None, asked)).cpu()
        truth = true_activity(item.target, codec)
        row["frames"].add(found[0], truth)
        row["always"].add(torch.ones_like(truth), truth)
        row["seconds"].add(segments(found[0]), segments(truth))
        if unseen:
            row["unseen"].add(found[1], truth)
        for wrong in found[1 + len(unseen) :]:
            row["absent"].add(wrong, torch.zeros_like(truth))
            row["absent_prompts"] += 1
            row["absent_found"] += int(wrong.any())
        before = si_sdr(item.mixture, item.target)
        for system in systems:
            out = system(item)
            assert out is not None
            row["si_sdri"][system.spans].append(si_sdr(out, item.target) - before)
    return {setting: _figures(row) for setting, row in rows.items()}


def _figures(row: dict[str, Any]) -> dict[str, Any]:
    frames: Counts = row["frames"]
    figures = {
        "frame_f1": frames.f1,
        "frame_precision": frames.precision,
        "frame_recall": frames.recall,
        "segment_f1": row["seconds"].f1,
        "always_active_frame_f1": row["always"].f1,
        "false_alarm_rate_absent_frames": row["absent"].false_alarm_rate,
        "false_alarm_rate_absent_prompts": row["absent_found"] / max(row["absent_prompts"], 1),
        "si_sdri_db": {name: float(np.mean(v)) for name, v in row["si_sdri"].items()},
    }
    if row["unseen"].total:
        figures["frame_f1_unseen_wording"] = row["unseen"].f1
    if len(row["si_sdri"].get("predicted", ())) > 1:
        gain = np.subtract(row["si_sdri"]["predicted"], row["si_sdri"]["none"])
        figures["predicted_minus_none_db"] = float(gain.mean())
        figures["predicted_minus_none_standard_error_db"] = float(gain.std(ddof=1) / np.sqrt(len(gain)))
    return figures


def evaluate(
    data_dir: Path, name: str, count: int, *, predictor: str | None = None, separation: bool = True
) -> dict[str, Any]:
    """All figures of a model and its span predictor, or the one named; without `separation` the predictor's alone."""
    overrides: dict[str, Any] = {"span_predictor": predictor} if predictor else {}
    model = SAMAudio.from_pretrained(name, **overrides)
    systems = [Separator(model, name=name, spans=spans) for spans in SPANS] if separation else []
    steady = EvalSplit(data_dir, model.audio_codec, count=count)
    labels = sorted(set(steady.engine.pools["sfx"].names) - prompts.UNNAMED)
    with torch.inference_mode():
        settings = evaluate_set(steady, model, labels, systems) | evaluate_set(Gated(steady), model, labels, systems)
    return {"model": name, "mixes_per_setting": count, "threshold": THRESHOLD, "settings": settings}


def table(report: dict[str, Any]) -> str:
    columns = (
        ("frame F1", "frame_f1"),
        ("1-s F1", "segment_f1"),
        ("always", "always_active_frame_f1"),
        ("unseen", "frame_f1_unseen_wording"),
        ("absent", "false_alarm_rate_absent_frames"),
    )
    lines = [f"{'':24}" + "".join(f"{c:>10}" for c, _ in columns) + "".join(f"{s:>11}" for s in SPANS)]
    for setting, row in report["settings"].items():
        cells = [f"{row[key]:>10.3f}" if key in row else f"{'-':>10}" for _, key in columns]
        gains = [f"{row['si_sdri_db'][s]:>8.2f} dB" if s in row["si_sdri_db"] else f"{'-':>11}" for s in SPANS]
        lines.append(f"{setting:24}" + "".join(cells) + "".join(gains))
    lines += [
        f"{report['mixes_per_setting']} mixes of 8 s a row. F1 of 40 ms frames and of seconds; always: F1 of saying",
        "that it sounds throughout; unseen: frame F1 with wording that training never had; absent: share of frames in",
        "which a sound that is not there is found. Last columns: SI-SDR improvement with no, predicted and true spans.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--span-predictor", help="name or folder; default: what the model's config names")
    parser.add_argument("--mixes", type=int, default=50, help="mixes a setting")
    parser.add_argument("--out", type=Path, default=Path("out/eval-spans.json"))
    args = parser.parse_args()
    report = evaluate(args.data_dir, args.model, args.mixes, predictor=args.span_predictor)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1))
    print(table(report))


if __name__ == "__main__":
    main()
