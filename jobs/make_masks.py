"""Find an object in every video of a manifest and follow it: mask files, and a manifest whose `mask_uri` names them.

    python jobs/make_masks.py --manifest m.parquet --out masks --phrase "dog"
    python jobs/separate.py --manifest masks/manifest.parquet --allowed-read-prefixes media masks --lake lake ...

What a row asks for comes from its columns `object_phrase`, or `object_box` ([left, top, right, bottom] in pixels) and
`object_points` ([[x, y], ...], or [x, y, 0] for a point off the object) at `object_seconds`; else from --phrase; else
from its `description`. Phrases need SAM 3, boxes and points SAM 2 (--phrase-model, --point-model: hub names, folders).
Rows pass as they are that ask for nothing, that have a mask already, or whose file holds no video unless they name an
object of their own.

A row that fails keeps an empty `mask_uri`, and `failures.parquet` beside the new manifest says why. Run again after
anything: masks that are there are not made anew.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from operators.errors import AssetError
from operators.masklet_files import video_pictures, write_masks
from operators.masklets import MAX_SIDE, PHRASE_MODEL, POINT_MODEL, Masklets, ObjectPrompt, bad_prompt
from operators.sam_audio import CheckpointError
from pipeline.config import JobConfigError
from pipeline.filesystems import is_storage_problem, short
from pipeline.keys import safe_name
from pipeline.manifest import read_manifest
from pipeline.schema import FAILURES_SCHEMA, FailureRow, ManifestRow, to_table, utc_now
from pipeline.storage import StorageError, Store, media_errors
from pipeline.uris import redact

# The separation model looks at 25 pictures a second.
MAX_RATE = 25.0
PLACES = ("object_phrase", "object_box", "object_points")
OBJECT_COLUMNS = (*PLACES, "object_seconds")


def object_prompt(record: Mapping[str, Any], phrase: str | None) -> ObjectPrompt | None:
    """What a manifest record asks for; None for nothing. Raises AssetError `bad_prompt`, naming the column."""
    given: dict[str, Any] = {}
    for column in OBJECT_COLUMNS:
        value = record.get(column)
        try:
            value = value.tolist() if isinstance(value, np.ndarray) else value
            value = json.loads(value) if value and isinstance(value, str) and column != "object_phrase" else value
            if value is None or value in ("", []) or value != value:  # missing in a Parquet file, or NaN
                continue
            if column == "object_box":
                left, top, right, bottom = (float(v) for v in value)
                given["box"] = (left, top, right, bottom)
            elif column == "object_points":
                given["points"] = tuple((float(p[0]), float(p[1]), len(p) < 3 or bool(p[2])) for p in value)
            elif column == "object_seconds":
                given["at_seconds"] = float(value)
            else:
                given["phrase"] = str(value).strip()
        except (TypeError, ValueError, IndexError, KeyError) as error:
            raise bad_prompt(f"column {column} holds {value!r}, which is no such thing ({error})") from None
    if not {"phrase", "box", "points"} & set(given):
        words = phrase or str(record.get("description") or "").strip()
        if not words:
            return None
        given = {"phrase": words}
    return ObjectPrompt(**given)


def mask_key(store: Store, row: ManifestRow, prompt: ObjectPrompt, settings: Mapping[str, Any]) -> str:
    """Where a row's masks lie: another video, prompt or setting is another file."""
    stat = store.stat_media(row.uri)
    identity = [row.uri, stat.size_bytes, stat.etag, asdict(prompt), sorted(settings.items())]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    return f"masks/{safe_name(row.asset_id)}/{digest}.npz"


def make(store: Store, row: ManifestRow, prompt: ObjectPrompt, key: str, masklets: Masklets, max_rate: float) -> int:
    """Make and store one mask file; returns the number of pictures. Raises AssetError."""
    shown = redact(row.uri)
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch) / "masks.npz"
        try:
            with media_errors(row.uri), store.open_media(row.uri) as file, write_masks(local) as writer:
                for seconds, mask in masklets.track(video_pictures(file, shown, max_rate=max_rate), prompt):
                    writer.add(seconds, mask)
        except CheckpointError:
            raise
        except (
            RuntimeError,
            ValueError,
            LookupError,
        ) as error:  # out of memory, or a picture that the model trips over
            raise AssetError(
                "mask_failed",
                f"the model failed on {shown}: {type(error).__name__}: {str(error)[:300]}",
                "run it again on a device with more memory, or leave the row out",
            ) from error
        if not writer.any_set:
            raise AssetError(
                "object_not_found",
                f"the object was found in none of {len(writer.seconds)} pictures of {shown}",
                "name the object otherwise, or point to it with object_box or object_points",
                field="object_phrase" if prompt.phrase is not None else "object_box",
            )
        store.upload(local, key)
    return len(writer.seconds)


def failure(run_id: str, record: Mapping[str, Any], error: AssetError) -> FailureRow:
    asset_id, uri = str(record.get("asset_id") or "?"), redact(str(record.get("uri") or "?"))
    return FailureRow(
        run_id=run_id,
        item_id=hashlib.sha256(json.dumps(["mask", asset_id, uri]).encode()).hexdigest()[:32],
        asset_id=asset_id,
        uri=uri,
        stage="mask",
        cause=error.cause,
        message=error.message,
        remedy=error.remedy,
        attempt=1,
        failed_at=utc_now(),
    )


def run(args: argparse.Namespace) -> int:
    started = time.monotonic()
    manifest, out = _absolute(args.manifest), _absolute(args.out)
    # As for the other jobs, media lie below the manifest unless the caller says where.
    prefixes = [_absolute(p) for p in args.allowed_read_prefixes or [_folder(manifest)]]
    store = Store(out, prefixes)
    records = list(read_manifest(manifest, args.limit))
    settings = {
        "phrase_model": args.phrase_model,
        "point_model": args.point_model,
        "max_side": args.max_side,
        "max_rate": args.max_rate,
    }
    device = _device(args.device)
    masklets = Masklets(
        # Their authors run both models in bfloat16 on GPUs; processors are slow in it.
        dtype=torch.bfloat16 if device.startswith("cuda") else torch.float32,
        phrase_model=args.phrase_model,
        point_model=args.point_model,
        device=device,
        max_side=args.max_side,
    )
    run_id = f"{utc_now():%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
    failures: list[FailureRow] = []
    counts: Counter[str] = Counter()
    pictures = 0
    uris: list[str | None] = []
    for record in tqdm(records, unit="asset", desc="masks"):
        uri, own = None, False
        try:
            row = ManifestRow.from_record(record)
            uri, own = row.mask_uri, any(record.get(column) for column in PLACES)
            prompt = None if uri or (row.has_video is False and not own) else object_prompt(record, args.phrase)
            if prompt is None:
                counts["passed as they are"] += 1
            else:
                key = mask_key(store, row, prompt, settings)
                if store.exists(key):
                    counts["there before"] += 1
                else:
                    pictures += make(store, row, prompt, key, masklets, args.max_rate)
                    counts["made"] += 1
                uri = store.url(key)
        except AssetError as error:
            if error.cause == "no_video" and not own:
                counts["passed as they are"] += 1
            else:
                counts["failed"] += 1
                failures.append(failure(run_id, record, error))
        uris.append(uri)
    _write(store, "manifest.parquet", _with_masks(records, uris))
    _write(store, "failures.parquet", to_table(failures, FAILURES_SCHEMA))
    seconds = time.monotonic() - started
    print(f"manifest  {redact(store.url('manifest.parquet'))}")
    print(f"masks     {', '.join(f'{count:,} {what}' for what, count in sorted(counts.items())) or 'no rows'}")
    for failed in failures[:5]:
        print(f"            {failed.asset_id}: {failed.cause}: {failed.message}. Remedy: {failed.remedy}")
    print(f"time      {seconds:.1f} s, {pictures / max(seconds, 1e-3):.1f} pictures a second")
    return 0


def _with_masks(records: list[dict[str, Any]], uris: list[str | None]) -> pa.Table:
    table = pa.Table.from_pylist([{k: v for k, v in record.items() if k != "mask_uri"} for record in records])
    return table.append_column(pa.field("mask_uri", pa.string()), pa.array(uris, pa.string()))


def _write(store: Store, key: str, table: pa.Table) -> None:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    store.write_bytes(key, buffer.getvalue())


def _folder(manifest: str) -> str:
    return manifest.rpartition("/")[0] if manifest.endswith((".parquet", ".pq")) else manifest


def _absolute(url: str) -> str:
    return url if "://" in url else str(Path(url).expanduser().absolute())


def _device(name: str) -> str:
    return name if name != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 written (rows that failed are in the table), 1 the storage or a model failed, 2 wrong settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", required=True, help="Parquet file or folder: a path or URL")
    parser.add_argument("--out", required=True, help="folder or URL for the masks, the new manifest and the failures")
    parser.add_argument("--phrase", help="object to find where a row names none, e.g. 'dog'")
    parser.add_argument("--phrase-model", default=PHRASE_MODEL, help=f"SAM 3 video model (default {PHRASE_MODEL})")
    parser.add_argument("--point-model", default=POINT_MODEL, help=f"SAM 2 video model (default {POINT_MODEL})")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--max-side", type=int, default=MAX_SIDE, help=f"longer side of a mask, pixels ({MAX_SIDE})")
    parser.add_argument("--max-rate", type=float, default=MAX_RATE, help=f"pictures a second ({MAX_RATE:g})")
    parser.add_argument("--limit", type=int, help="take the first rows only")
    parser.add_argument(
        "--allowed-read-prefixes", nargs="+", metavar="URL", help="folders media may lie in (default: the manifest's)"
    )
    args = parser.parse_args(argv)
    if args.max_side < 1 or not args.max_rate > 0 or (args.limit is not None and args.limit < 1):
        parser.error("--max-side, --max-rate and --limit must be positive")
    try:
        return run(args)
    except (AssetError, JobConfigError) as error:
        print(f"make_masks: {error}", file=sys.stderr)
        return 2
    except (CheckpointError, StorageError) as error:
        print(f"make_masks: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        if not is_storage_problem(error):
            raise
        print(f"make_masks: {short(error)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
