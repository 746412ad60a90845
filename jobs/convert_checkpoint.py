"""Rewrite a SAM-Audio checkpoint for fast loading on a cluster, and check one that was rewritten.

python jobs/convert_checkpoint.py facebook/sam-audio-large s3://models/sam-audio-large --dtype bf16
python jobs/convert_checkpoint.py --verify s3://models/sam-audio-large
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

import torch

from operators.sam_audio.conversion import convert, verify
from operators.sam_audio.model import SAMAudio
from operators.sam_audio.sources import CheckpointError

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help='Hub name, folder, URL, or "tiny"')
    parser.add_argument("target", nargs="?", help="Folder or URL to write to; must hold no checkpoint yet")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="Type of all weights but the codec's (bf16)")
    parser.add_argument("--shard-gb", type=float, default=2.0, help="Size of a weight file, 10^9 bytes (2)")
    parser.add_argument("--revision", help="Revision of a hub model")
    parser.add_argument("--cache-dir", help="Where downloads are kept (the hub's own cache)")
    parser.add_argument("--verify", metavar="TARGET", help="Compare a written checkpoint with its SHA256SUMS")
    args = parser.parse_args(argv)
    if bool(args.verify) == bool(args.model) or bool(args.model) != bool(args.target):
        parser.error("give MODEL and TARGET, or --verify TARGET")
    if args.shard_gb <= 0:
        parser.error(f"--shard-gb must be positive, got {args.shard_gb}")
    try:
        return _verify(args.verify) if args.verify else _convert(args)
    except (CheckpointError, OSError) as error:
        print(f"convert_checkpoint: {error}", file=sys.stderr)
        return 1


def _convert(args: argparse.Namespace) -> int:
    started = time.monotonic()
    # In the type it will be written in: then the host never holds the larger one.
    model = SAMAudio.from_pretrained(
        args.model, dtype=DTYPES[args.dtype], revision=args.revision, cache_dir=args.cache_dir
    )
    print(f"loaded   {args.model}, {time.monotonic() - started:.1f} s", flush=True)
    total = 0
    for file in convert(model, args.target, dtype=DTYPES[args.dtype], shard_bytes=int(args.shard_gb * 1e9)):
        total += file.size
        print(f"wrote    {file.name}  {file.size / 1e9:.3f} GB", flush=True)
    print(f"done     {args.target}: {total / 1e9:.3f} GB in {time.monotonic() - started:.1f} s; --model {args.target}")
    return 0


def _verify(target: str) -> int:
    problems = 0
    for name, problem in verify(target):
        problems += problem is not None
        print(f"{'FAIL' if problem else 'ok':4}  {name}{f': {problem}' if problem else ''}", flush=True)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
