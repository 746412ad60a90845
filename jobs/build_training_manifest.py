"""List recordings below a folder or URL as a training manifest: what the folders are called is what is learned.

    python jobs/build_training_manifest.py --media sounds --out sounds/training.parquet
    python jobs/build_training_manifest.py --media multitracks --layout stems --out multitracks/training.parquet

labels: `sounds/dog barking/a.wav` is a recording of one sound, described by the folder it is in ("dog barking").
stems: `multitracks/<song>/vocals.wav`, `.../drums.wav` are the aligned stems of one mixture, described by their names;
a `mixture` or `mix` beside them is left out. A folder called `train`, `test`, `valid` or `validation` above says on
which side it is. Kinds (speech, music, sfx) follow from the words, or --kind; they decide by how much levels differ.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from jobs.build_manifest import is_media, list_files
from operators.errors import AssetError
from operators.sam_audio.training.prompts import kind_of
from operators.sandbox import Limits
from pipeline.config import JobConfigError
from pipeline.decode import probe_media
from pipeline.filesystems import StorageError, is_storage_problem, short
from pipeline.storage import Store
from pipeline.training_manifest import Kind, Sound, Split, TrainingRow, manifest_bytes
from pipeline.uris import redact

SPLITS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "valid": "validation",
    "validation": "validation",
    "test": "validation",
}
MIXTURES = ("mixture", "mix")


def phrase(name: str) -> str:
    """A folder's or stem's name as a description."""
    return " ".join(name.lower().replace("_", " ").split())


def side(parts: tuple[str, ...]) -> Split | None:
    return next((SPLITS[part.lower()] for part in parts if part.lower() in SPLITS), None)


def sound(store: Store, uri: str, label: str, kind: Kind | None) -> Sound | AssetError:
    try:
        seconds = probe_media(store, uri, Limits()).duration_seconds
        if not seconds:
            raise AssetError("empty_file", f"{redact(uri)} lasts 0 s", "take it out of the folder")
    except AssetError as error:
        return error
    return Sound(uri=uri, kind=kind or kind_of(label), label=label, descriptions=(label,), duration_seconds=seconds)


def labelled(relative: str) -> tuple[str, Split | None]:
    """Description and side of a recording, by the folders it is in. AssetError for one that is in none."""
    folders = PurePosixPath(relative).parts[:-1]
    named = [part for part in folders if part.lower() not in SPLITS]
    if not named:
        raise AssetError(
            "no_label",
            f"{relative} is in no folder that says what it is",
            "put recordings of a sound into a folder called by it, such as sounds/dog barking/",
        )
    return phrase(named[-1]), side(folders)


def rows_of(found: list[tuple[str, Sound]], stems: bool) -> tuple[list[TrainingRow], list[AssetError]]:
    """Rows of (path, sound), and what is wrong with the rest."""
    if not stems:
        return [TrainingRow(**s.model_dump(), split=side(PurePosixPath(path).parts[:-1])) for path, s in found], []
    songs: dict[str, list[Sound]] = {}
    for path, s in found:
        songs.setdefault(str(PurePosixPath(path).parent), []).append(s)
    rows, problems = [], []
    for song, parts in songs.items():
        if len(parts) < 2:
            remedy = "put at least two stems of a mixture into one folder"
            problems.append(AssetError("no_label", f"{song} holds one stem only", remedy))
            continue
        shortest = min(s.duration_seconds for s in parts)
        uri, split = parts[0].uri.rpartition("/")[0], side(PurePosixPath(song).parts)
        rows.append(TrainingRow(uri=uri, duration_seconds=shortest, kind="music", stems=tuple(parts), split=split))
    return rows, problems


def held_out(rows: list[TrainingRow]) -> list[TrainingRow]:
    """The rows with a side each: where no folder said so, a tenth of each sound is held out, at least one of three.

    Which ones follows from their URIs, so a row keeps its side as others come.
    """
    if any(row.split for row in rows):
        return [row if row.split else row.model_copy(update={"split": row.part}) for row in rows]
    by_label: dict[str, list[TrainingRow]] = {}
    for row in rows:
        by_label.setdefault(row.label, []).append(row)
    chosen: set[str] = set()
    for group in by_label.values():
        count = max(len(group) // 10, len(group) >= 3)
        chosen |= {row.uri for row in sorted(group, key=lambda row: zlib.crc32(row.uri.encode()))[:count]}
    return [row.model_copy(update={"split": "validation" if row.uri in chosen else "train"}) for row in rows]


def build(media: str, out: str, layout: str, kind: Kind | None, workers: int) -> int:
    store = Store(media, [media])
    jobs: list[tuple[str, str, str]] = []
    problems: list[AssetError] = []
    for relative, uri in list_files(store.root):
        path = PurePosixPath(relative)
        if not is_media(relative) or (layout == "stems" and path.stem.lower() in MIXTURES):
            continue
        try:
            jobs.append((relative, uri, phrase(path.stem) if layout == "stems" else labelled(relative)[0]))
        except AssetError as error:
            problems.append(error)
    with ThreadPoolExecutor(workers) as pool:
        probed = pool.map(lambda job: sound(store, job[1], job[2], kind), jobs)
        sounds = list(tqdm(probed, "probe", len(jobs), unit="file"))
    problems += [s for s in sounds if isinstance(s, AssetError)]
    good = [(relative, s) for (relative, *_), s in zip(jobs, sounds, strict=True) if isinstance(s, Sound)]
    rows, more = rows_of(good, layout == "stems")
    rows, problems = held_out(rows), [*problems, *more]
    if not rows:
        raise JobConfigError(
            f"no recordings below {redact(media)}; {problems[0] if problems else 'give another folder'}"
        )
    folder, _, name = out.rpartition("/")
    Store(folder or "/").write_bytes(name, manifest_bytes(rows))
    summarise(rows, problems, out)
    return 0


def summarise(rows: list[TrainingRow], problems: list[AssetError], out: str) -> None:
    sounds = [s for row in rows for s in (row.stems or (row,))]
    labels = Counter(s.label for s in sounds)
    parts = Counter(row.part for row in rows)
    print(f"manifest    {redact(out)}")
    print(f"rows        {len(rows):,}: {parts['train']:,} to train on, {parts['validation']:,} held out")
    print(f"audio       {sum(s.duration_seconds for s in sounds) / 3600:.2f} h in {len(sounds):,} recordings")
    print(f"sounds      {', '.join(f'{label} {count:,}' for label, count in labels.most_common(12))}")
    print(f"kinds       {', '.join(f'{k} {n:,}' for k, n in Counter(s.kind for s in sounds).most_common())}")
    print(f"left out    {len(problems):,}")
    for problem in problems[:5]:
        print(f"              {problem}")


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 written, 1 the storage failed, 2 wrong arguments or nothing to list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--media", required=True, help="folder or URL (s3://...) under which the recordings lie")
    parser.add_argument("--out", required=True, help="Parquet file to write: a path or URL")
    parser.add_argument("--layout", choices=("labels", "stems"), default="labels", help="what folders mean (labels)")
    parser.add_argument("--kind", choices=("speech", "music", "sfx"), help="kind of all recordings")
    parser.add_argument("--workers", type=int, default=8, metavar="N", help="files probed at a time (8)")
    args = parser.parse_args(argv)
    if args.workers < 1:
        parser.error("--workers must be at least 1")
    try:
        return build(_absolute(args.media), _absolute(args.out), args.layout, args.kind, args.workers)
    except (AssetError, JobConfigError) as error:
        print(f"build_training_manifest: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if not (is_storage_problem(error) or isinstance(error, StorageError)):
            raise
        print(f"build_training_manifest: {short(error)}", file=sys.stderr)
        return 1


def _absolute(url: str) -> str:
    return url if "://" in url else str(Path(url).expanduser().absolute())


if __name__ == "__main__":
    sys.exit(main())
