"""List the media under a folder or URL, probe them, write the manifest that jobs read.

    python jobs/build_manifest.py --media s3://archive/radio --out s3://archive/manifests/radio.parquet

Files that cannot be probed stay in the manifest with the reason in `probe_error`: a run records them as failures.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path, PurePosixPath

import pyarrow.parquet as pq
from tqdm import tqdm

from operators.errors import AssetError
from operators.sandbox import Limits
from pipeline.decode import BYTES_PER_SECOND, probe_media
from pipeline.filesystems import StorageError, filesystem, is_storage_problem, short
from pipeline.schema import MANIFEST_SCHEMA, ManifestRow, to_table
from pipeline.storage import Store
from pipeline.uris import Location, locate, redact

SIDECARS = {
    "descriptions": "xml json jsonl yaml yml txt csv tsv md pdf doc docx rtf html htm nfo log ini url",
    "subtitles and lists": "srt vtt ass ssa sub idx ttml dfxp scc stl lrc cue m3u m3u8 pls mpd edl aaf",
    "pictures": "jpg jpeg png gif bmp tif tiff webp svg ico heic psd",
    "checksums, editors' caches": "md5 sha1 sha256 sfv par2 sig asc pek cfa asd reapeaks pkf",
    "archives and unfinished files": "zip gz tar 7z rar parquet db sqlite part tmp crdownload bak lock py",
}
SKIPPED_SUFFIXES = frozenset(suffix for suffixes in SIDECARS.values() for suffix in suffixes.split())
# How many files each thread may have waiting: a listing of millions does not become millions of futures.
QUEUE_PER_WORKER = 16


def is_media(relative: str) -> bool:
    """Whether a path under the prefix is worth a probe: not hidden, not in a hidden folder, not a sidecar."""
    path = PurePosixPath(relative)
    return (
        not any(part.startswith((".", "_")) for part in path.parts) and path.suffix[1:].lower() not in SKIPPED_SUFFIXES
    )


def list_files(media: str) -> Iterator[tuple[str, str]]:
    """Every file below the folder or URL `media` as (path relative to it, URI), sorted by path."""
    folder = locate(media)
    fs = filesystem(folder.scheme)
    if not fs.isdir(folder.path):
        raise AssetError("not_found", f"{redact(media)} is no folder", "give the folder that holds the media")
    prefix = folder.path.rstrip("/") + "/"
    for path in sorted(fs.find(folder.path)):
        if path.startswith(prefix) and not path.endswith("/"):
            yield path[len(prefix) :], _uri(folder, path)


def _uri(folder: Location, path: str) -> str:
    return path if folder.scheme == "file" else f"{folder.scheme}://{path}"


def describe(store: Store, asset_id: str, uri: str) -> ManifestRow:
    """Probe one file; whatever is wrong with it ends in `probe_error`."""
    known: dict[str, object] = {}
    try:
        stat = store.stat_media(uri)
        known = {"size_bytes": stat.size_bytes, "etag": stat.etag}
        seconds = Limits().seconds + stat.size_bytes / BYTES_PER_SECOND
        info = probe_media(store, uri, Limits(seconds=seconds), asset_id)
    except AssetError as error:
        return ManifestRow.from_record({"asset_id": asset_id, "uri": uri, **known, "probe_error": str(error)})
    return ManifestRow.from_record({"asset_id": asset_id, "uri": uri, **known, **vars(info)})


def probe_all(store: Store, files: list[tuple[str, str]], workers: int) -> list[ManifestRow]:
    """Rows in the order of `files`, probed by `workers` threads, with a progress bar."""
    rows: dict[str, ManifestRow] = {}
    hours = 0.0
    waiting: set[Future[ManifestRow]] = set()
    with ThreadPoolExecutor(workers) as pool, tqdm(total=len(files), unit="file", desc="probe") as bar:
        queue = iter(files)
        while True:
            for asset_id, uri in queue:
                waiting.add(pool.submit(describe, store, asset_id, uri))
                if len(waiting) >= workers * QUEUE_PER_WORKER:
                    break
            if not waiting:
                break
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                row = future.result()
                rows[row.asset_id] = row
                hours += (row.duration_seconds or 0.0) / 3600
            bar.update(len(done))
            bar.set_postfix_str(f"{hours:.1f} h of audio")
    return [rows[asset_id] for asset_id, _ in files]


def write(rows: list[ManifestRow], out: str) -> None:
    """Write the manifest as one Parquet file, whole or not at all."""
    location = locate(out)
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch) / "manifest.parquet"
        pq.write_table(to_table(rows, MANIFEST_SCHEMA), local)
        if location.scheme != "file":
            filesystem(location.scheme).put_file(str(local), location.path)
            return
        target = Path(location.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f".{target.name}.{os.getpid()}")
        unfinished.write_bytes(local.read_bytes())
        unfinished.replace(target)


def print_summary(rows: list[ManifestRow], skipped: Counter[str], out: str, seconds: float) -> None:
    fine = [row for row in rows if row.probe_error is None]
    causes = Counter(str(row.probe_error).partition(":")[0] for row in rows if row.probe_error is not None)
    kinds = Counter(f"{(row.container or '?').split(',')[0]}/{row.codec}" for row in fine)
    hours = sum(row.duration_seconds or 0.0 for row in fine) / 3600
    size = sum(row.size_bytes or 0 for row in rows) / 1e9
    print(f"manifest    {redact(out)}")
    print(f"files       {len(rows):,} ({size:,.2f} GB, {sum(row.has_video or False for row in fine):,} with video)")
    print(f"audio       {hours:,.2f} h: {_counts(kinds)}")
    print(f"skipped     {sum(skipped.values()):,} sidecars and hidden files: {_counts(skipped)}")
    print(f"unreadable  {sum(causes.values()):,} (kept, with probe_error): {_counts(causes)}")
    for row in [row for row in rows if row.probe_error is not None][:5]:
        print(f"              {row.probe_error}")
    print(f"time        {seconds:.1f} s, {len(rows) / max(seconds, 1e-3):,.0f} files a second")


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counter.most_common(8)) or "none"


def _absolute(url: str) -> str:
    return url if "://" in url else str(Path(url).absolute())


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 written, 2 wrong arguments or nothing to list, 1 the storage failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--media", required=True, help="folder or URL (s3://...) under which the media lie")
    parser.add_argument("--out", required=True, help="Parquet file to write: a path or URL")
    parser.add_argument("--workers", type=int, default=16, metavar="N", help="files probed at a time (default 16)")
    args = parser.parse_args(argv)
    if args.workers < 1:
        parser.error("--workers must be at least 1")
    started = time.monotonic()
    media, out = _absolute(args.media), _absolute(args.out)
    try:
        files, skipped = [], Counter[str]()
        for relative, uri in list_files(media):
            if is_media(relative):
                files.append((relative, uri))
            else:
                skipped[PurePosixPath(relative).suffix.lower() or "no suffix"] += 1
        if not files:
            print(f"no media files under {redact(media)} ({sum(skipped.values())} skipped)", file=sys.stderr)
            return 2
        rows = probe_all(Store(media, [media]), files, args.workers)
        write(rows, out)
    except AssetError as error:
        print(f"build_manifest: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if not (is_storage_problem(error) or isinstance(error, StorageError)):
            raise
        print(f"build_manifest: {short(error)}", file=sys.stderr)
        return 1
    print_summary(rows, skipped, out, time.monotonic() - started)
    return 0


if __name__ == "__main__":
    sys.exit(main())
