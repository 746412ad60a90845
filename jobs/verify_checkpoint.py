"""Load a SAM-Audio checkpoint, separate the demo clip with it and say whether the answers are right.

    python jobs/verify_checkpoint.py facebook/sam-audio-large

The checks need no reference output: see `checkpoint_checks.py`. Prints PASS, FAIL or SKIP a check and writes them
as JSON. Exit code 1 when one failed, or the checkpoint cannot be loaded.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from jobs.checkpoint_checks import CHECKS, Failed, Skipped, Subject
from operators.sam_audio import CheckpointError, SAMAudio
from operators.sam_audio.ranking import RELEASED_JUDGE
from operators.sam_audio.sources import SHIPPED

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help='Hub name, folder, URL, or "tiny"')
    parser.add_argument("--judge", help='Judge to ask, or "none" (the released one; the small one for "tiny")')
    parser.add_argument("--revision", help="Revision of a hub model")
    parser.add_argument("--cache-dir", help="Where downloads are kept (the hub's own cache)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (auto)")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="Type of all weights but the codec's (fp32)")
    parser.add_argument("--seconds", type=float, default=10.0, help="Length of the clip, 2 to 30 (10)")
    parser.add_argument("--out", default="out/verify-checkpoint.json", help="File for the results")
    args = parser.parse_args(argv)
    if not 2 <= args.seconds <= 30:
        parser.error(f"--seconds must be 2 to 30, got {args.seconds}")
    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    started = time.monotonic()
    print(f"verify {args.model} on {device}, {args.dtype}", flush=True)
    results = [_load(args, device)]
    if results[0]["status"] == "PASS":
        subject = results[0].pop("subject")
        results += [_run(name, subject) for name in CHECKS]
    failed = [result["check"] for result in results if result["status"] == "FAIL"]
    report = {
        "model": args.model,
        "revision": args.revision,
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "dtype": args.dtype,
        "torch": torch.__version__,
        "gpu_peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if device.startswith("cuda") else None,
        "passed": not failed,
        "checks": results,
    }
    path = Path(args.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    counts = ", ".join(f"{sum(r['status'] == s for r in results)} {s}" for s in ("PASS", "FAIL", "SKIP"))
    print(f"{counts} in {time.monotonic() - started:.0f} s; {path}")
    return 1 if failed else 0


def _load(args: argparse.Namespace, device: str) -> dict[str, Any]:
    started = time.monotonic()
    try:
        model = SAMAudio.from_pretrained(
            args.model, device=device, dtype=DTYPES[args.dtype], revision=args.revision, cache_dir=args.cache_dir
        )
    except CheckpointError as error:
        return _report("load", "FAIL", str(error), started)
    judge = args.judge or (args.model if args.model in SHIPPED else RELEASED_JUDGE)
    subject = Subject(args.model, model, args.seconds, None if judge == "none" else judge)
    result = _report("load", "PASS", "every key and shape fits config.json", started)
    return result | {"subject": subject}


def _run(name: str, subject: Subject) -> dict[str, Any]:
    started = time.monotonic()
    try:
        with torch.inference_mode():
            return _report(name, "PASS", CHECKS[name](subject), started)
    except Skipped as reason:
        return _report(name, "SKIP", str(reason), started)
    except CheckpointError as error:  # a part with a checkpoint of its own that cannot be had here
        return _report(name, "SKIP", str(error), started)
    except Failed as failure:
        return _report(name, "FAIL", str(failure), started)
    except Exception as error:  # the other checks still have something to say
        return _report(name, "FAIL", f"{type(error).__name__}: {error}", started)


def _report(name: str, status: str, detail: str, started: float) -> dict[str, Any]:
    seconds = round(time.monotonic() - started, 2)
    print(f"{status}  {name:13} {seconds:6.1f} s  {detail}", flush=True)
    return {"check": name, "status": status, "seconds": seconds, "detail": detail}


if __name__ == "__main__":
    sys.exit(main())
