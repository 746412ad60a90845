"""The operators wrapped for Ray: rows in, rows out, an error of one asset as a row like any other.

Rows between the stages: `work` (JSON of plan.Work), `failure` (JSON or empty), audio as [channels, samples] float32.
Result rows: `kind` (stem, failure, part), `row` (JSON of a StemRow or FailureRow), `audio_seconds`.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from operators.describe import ModelFacts
from operators.errors import AssetError
from operators.media import StemReport, StemWriter, decode_range, read_stem
from operators.sam_audio.config import SolverConfig
from operators.segments import Joiner, Segment, cut
from operators.separator import SegmentRequest, SegmentStems, Separator
from pipeline.config import JobConfig
from pipeline.keys import attempt_key, attempts_prefix, commit_key, parts_prefix, stem_key
from pipeline.plan import Item, Work, anchors_text, part_names, stored_parts
from pipeline.schema import FailureRow, StemRow, utc_now
from pipeline.storage import Store, media_errors
from pipeline.uris import redact

Row = dict[str, Any]
NO_AUDIO = np.zeros((0, 0), np.float32)
# Header and sound may differ by a codec frame or two; more means that the header lies.
OVERRUN_SECONDS = 0.5

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Context:
    """What every stage needs; small, and sent to every worker."""

    config: JobConfig
    lake: str
    read_prefixes: tuple[str, ...]
    facts: ModelFacts
    config_hash: str
    run_id: str

    @property
    def store(self) -> Store:
        return Store(self.lake, self.read_prefixes)

    @property
    def solver(self) -> SolverConfig | None:
        if self.config.solver_method is None or self.config.solver_steps is None:
            return None
        return SolverConfig(self.config.solver_method, 1 / self.config.solver_steps)

    def cut(self, total_frames: int) -> list[Segment]:
        from pipeline.plan import Planner

        planner = Planner(self.config, self.store, self.facts, self.config_hash, set())
        return cut(total_frames, planner.core, planner.halo)

    def failure(self, item: Item, stage: str, error: Exception, attempt: int = 1) -> FailureRow:
        """The failures row of an item; anything but an AssetError is our fault and is said to be."""
        if not isinstance(error, AssetError):
            log.exception("item %s failed in %s", item.item_id, stage, exc_info=error)
            error = AssetError(
                "internal_error",
                f"{type(error).__name__}: {redact(str(error))[:500]}",
                "this is a fault of the pipeline or its machine: run the job again, and report it if it stays",
            )
        return failure_row(self.run_id, item, stage, error, attempt)


def failure_row(run_id: str, item: Any, stage: str, error: AssetError, attempt: int = 1) -> FailureRow:
    """`item` is an Item or a Rejected: what has item_id, asset_id, uri and metadata_json."""
    return FailureRow(
        run_id=run_id,
        item_id=item.item_id,
        asset_id=item.asset_id,
        uri=redact(item.uri),
        stage=stage,
        cause=error.cause,
        message=error.message,
        remedy=error.remedy,
        attempt=attempt,
        failed_at=utc_now(),
        metadata_json=item.metadata_json,
    )


class Attempts:
    """Counts tries that may kill their worker, in the store, because the worker cannot tell.

    A note is put before the work and all of them are deleted after it; what dies leaves its note behind.
    """

    def __init__(self, store: Store, item: Item, segment: int, stage: str, limit: int) -> None:
        self.store, self.item, self.segment, self.stage, self.limit = store, item, segment, stage, limit
        prefix = attempts_prefix(item.item_id)
        start = f"{prefix}/{segment:06d}-{stage}-"
        self.earlier = [key for key in store.list(prefix) if key.startswith(start)]

    def check(self) -> None:
        if len(self.earlier) >= self.limit:
            raise AssetError(
                "worker_died",
                f"segment {self.segment} of {self.item.asset_id!r} ended its worker {len(self.earlier)} times "
                f"in {self.stage} (crash, out of memory or lost machine)",
                "check the asset, give workers more memory, then delete its notes under attempts/ and run again",
            )

    def __enter__(self) -> Attempts:
        self.check()
        self.note = attempt_key(self.item.item_id, self.segment, self.stage)
        self.store.write_bytes(self.note, b"")
        return self

    def __exit__(self, *_: object) -> None:
        # Also after an error: an exception is an answer, and has its own row.
        for key in [*self.earlier, self.note]:
            self.store.delete(key)


class DecodeStage:
    """Work -> work with `audio`: the segment's samples, once for all its items."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def __call__(self, row: Row) -> Row:
        work = Work.from_json(row["work"])
        out = {"work": row["work"], "failure": "", "audio": NO_AUDIO}
        store, context = self.context.store, self.context
        try:
            # Another driver may have committed items meanwhile; their work would be thrown away.
            left = tuple(i for i in work.items if not store.exists(commit_key(context.config_hash, i.item_id)))
            if len(left) < len(work.items):
                work = Work(left, work.segment, work.total_frames)
                out["work"] = work.to_json()
            if work.segment is not None and left:
                with Attempts(store, work.asset, work.segment.index, "decode", context.config.max_attempts):
                    out["audio"] = self.decode(store, work.asset, work.segment, work.total_frames)
        except Exception as error:  # one asset must not end the run
            out["failure"] = context.failure(work.asset, "decode", error).model_dump_json()
        return out

    def decode(self, store: Store, asset: Item, segment: Segment, total_frames: int) -> np.ndarray:
        facts = self.context.facts
        hop, rate = facts.hop_length, facts.sample_rate
        last = segment.end == total_frames
        end = segment.end * hop
        with media_errors(asset.uri):
            found = store.stat_media(asset.uri)
            if found.etag != asset.etag:
                raise AssetError(
                    "source_changed",
                    f"{redact(asset.uri)} is no longer the version that the manifest lists",
                    "build the manifest again; it then becomes a new item",
                    field="etag",
                )
            with store.open_media(asset.uri) as file:
                audio = decode_range(
                    file,
                    redact(asset.uri),
                    start=segment.start * hop,
                    stop=end + rate if last else end,
                    sample_rate=rate,
                    expected_seconds=asset.duration_seconds,
                )
        limit = end - segment.start * hop
        if last and audio.shape[1] > limit + OVERRUN_SECONDS * rate:
            raise AssetError(
                "bad_duration",
                f"{redact(asset.uri)} is said to last {asset.duration_seconds:.2f} s, and its sound goes on",
                "re-mux the file so that its header tells its length",
                field="duration_seconds",
            )
        return audio[:, :limit]


class SeparateStage:
    """Batches of decoded work -> one row an item and segment, with both stems. An actor: it holds the model."""

    def __init__(self, context: Context, threads: int | None = None) -> None:
        if threads:
            import torch

            torch.set_num_threads(threads)
        self.context = context
        config = context.config
        self.separator = Separator(config.model, config.device, context.solver, config.windows_per_batch)

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[dict[str, list[Any]]]:
        rows = [
            {"work": w, "failure": f, "audio": a}
            for w, f, a in zip(batch["work"], batch["failure"], batch["audio"], strict=True)
        ]
        together: list[tuple[Row, Work, Attempts]] = []
        for row in rows:
            work = Work.from_json(row["work"])
            if row["failure"] or work.segment is None:
                yield from self.passed_on(row, work)
                continue
            if not work.items:
                continue
            try:
                attempts = Attempts(
                    self.context.store, work.asset, work.segment.index, "separate", self.context.config.max_attempts
                )
                attempts.check()
            except Exception as error:
                yield from self.failed(work, error)
                continue
            if attempts.earlier:
                yield from self.separate([(row, work, attempts)])  # a suspect is tried alone
            else:
                together.append((row, work, attempts))
        if together:
            yield from self.separate(together)

    def separate(self, rows: Sequence[tuple[Row, Work, Attempts]]) -> Iterator[dict[str, list[Any]]]:
        requests, of = [], []
        for row, work, _ in rows:
            assert work.segment is not None
            audio = np.require(row["audio"], np.float32, ["C", "W"])
            for item in work.items:
                of.append((item, work))
                requests.append(
                    SegmentRequest(
                        item.noise_key, audio, work.segment.start, work.total_frames, item.description, item.anchors
                    )
                )
        with ExitStack() as notes:
            try:
                for _, _, attempts in rows:
                    notes.enter_context(attempts)
                results: Sequence[SegmentStems | Exception] = self.separator(requests)
            except Exception as error:
                if len(rows) > 1:  # find out whose fault it is
                    notes.close()
                    for each in rows:
                        yield from self.separate([each])
                    return
                results = [error] * len(requests)
        for (item, work), result in zip(of, results, strict=True):
            one = Work((item,), work.segment, work.total_frames)
            if isinstance(result, Exception):
                yield from self.failed(one, result)
            else:
                yield stems_row(one.to_json(), "", result.target, result.residual)

    def failed(self, work: Work, error: Exception) -> Iterator[dict[str, list[Any]]]:
        for item in work.items:
            failure = self.context.failure(item, "separate", error).model_dump_json()
            yield stems_row(Work((item,), work.segment, work.total_frames).to_json(), failure)

    def passed_on(self, row: Row, work: Work) -> Iterator[dict[str, list[Any]]]:
        for item in work.items:
            failure = row["failure"]
            if failure:
                failure = FailureRow.model_validate_json(failure).model_copy(update={"item_id": item.item_id})
                failure = failure.model_dump_json()
            yield stems_row(Work((item,), work.segment, work.total_frames).to_json(), failure)


def stems_row(
    work: str, failure: str, target: np.ndarray = NO_AUDIO, residual: np.ndarray = NO_AUDIO
) -> dict[str, list[Any]]:
    return {"work": [work], "failure": [failure], "target": [target], "residual": [residual]}


class WriteStage:
    """Stems of one segment -> parts in the store; the last part of an item -> its joined stems and its marker."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def __call__(self, row: Row) -> Row:
        work = Work.from_json(row["work"])
        item, context = work.asset, self.context
        if row["failure"]:
            return {"kind": "failure", "row": row["failure"], "audio_seconds": 0.0}
        seconds = 0.0
        if work.segment is not None:
            frames = work.segment.core_end - work.segment.core_start
            seconds = frames * context.facts.hop_length / context.facts.sample_rate
        try:
            with tempfile.TemporaryDirectory(prefix="stems-") as folder:
                stem = self.write(Path(folder), work, row)
        except Exception as error:  # one item must not end the run
            # Another driver that committed the item deletes its parts, and ours with them, while we join.
            stem = self.committed(item)
            if stem is None:
                failure = context.failure(item, "write", error)
                return {"kind": "failure", "row": failure.model_dump_json(), "audio_seconds": 0.0}
        if stem is None:
            return {"kind": "part", "row": "", "audio_seconds": seconds}
        return {"kind": "stem", "row": stem.model_dump_json(), "audio_seconds": seconds}

    def write(self, folder: Path, work: Work, row: Row) -> StemRow | None:
        store, item = self.context.store, work.asset
        if work.segment is not None and item.segment_count == 1:
            pieces = iter([(row["target"], row["residual"])])
            return self.commit(store, item, folder, pieces)
        if work.segment is not None:
            names = part_names(self.context.config_hash, item, work.segment.index)
            for name, samples in zip(names, (row["target"], row["residual"]), strict=True):
                path = folder / "part.wav"
                with StemWriter(path, self.context.facts.sample_rate, samples.shape[0], "wav") as writer:
                    writer.write(samples)
                store.upload(path, name, if_absent=False)
        # Asked after our own parts are stored: whoever stores last sees them all. Two may: the marker decides.
        stem = self.committed(item)
        if stem is None:
            if len(stored_parts(store, self.context.config_hash, item)) < item.segment_count:
                return None
            stem = self.commit(store, item, folder, self.joined(store, item, work.total_frames, folder))
        store.delete_prefix(parts_prefix(self.context.config_hash, item.item_id))
        return stem

    def committed(self, item: Item) -> StemRow | None:
        """The item's row, if some writer has committed it."""
        marker = commit_key(self.context.config_hash, item.item_id)
        if not self.context.store.exists(marker):
            return None
        return StemRow.model_validate_json(self.context.store.read_bytes(marker))

    def joined(
        self, store: Store, item: Item, total_frames: int, folder: Path
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Target and residual piece by piece, with one part of each in memory."""
        hop = self.context.facts.hop_length
        joiners = Joiner(hop), Joiner(hop)
        for segment in self.context.cut(total_frames):
            pieces = []
            for joiner, name in zip(joiners, part_names(self.context.config_hash, item, segment.index), strict=True):
                path = folder / "joined-part.wav"
                store.download(name, path)
                pieces.append(joiner.add(segment, read_stem(path)))
                path.unlink()
            yield pieces[0], pieces[1]

    def commit(
        self, store: Store, item: Item, folder: Path, pieces: Iterator[tuple[np.ndarray, np.ndarray]]
    ) -> StemRow:
        """Write both stems, store them, and put the marker: of several writers of an item exactly one wins."""
        context, config = self.context, self.context.config
        if (done := self.committed(item)) is not None:
            return done
        paths = [folder / f"{name}.{config.stem_format}" for name in ("target", "residual")]
        reports, channels = write_stems(paths, pieces, context.facts.sample_rate, config.stem_format)
        keys = [
            stem_key(context.config_hash, item.asset_id, item.item_id, label, config.stem_format)
            for label in (config.target_label, config.residual_label)
        ]
        for path, key in zip(paths, keys, strict=True):
            store.upload(path, key)  # when it is there already, an earlier try stored the same stem
        row = StemRow(
            item_id=item.item_id,
            asset_id=item.asset_id,
            uri=redact(item.uri),
            source_etag=item.etag,
            source_size_bytes=item.size_bytes,
            config_hash=context.config_hash,
            model=redact(config.model),
            model_version=context.facts.version,
            description=item.description,
            anchors_json=anchors_text(item),
            target_label=config.target_label,
            residual_label=config.residual_label,
            target_uri=store.url(keys[0]),
            residual_uri=store.url(keys[1]),
            sample_rate=context.facts.sample_rate,
            channels=channels,
            duration_seconds=reports[0].samples / context.facts.sample_rate,
            segment_count=item.segment_count,
            target_peak=reports[0].peak,
            residual_peak=reports[1].peak,
            clipped_samples=reports[0].clipped + reports[1].clipped,
            run_id=context.run_id,
            committed_at=utc_now(),
            metadata_json=item.metadata_json,
        )
        marker = commit_key(context.config_hash, item.item_id)
        store.put_if_absent(marker, row.model_dump_json().encode())
        # Read back: a put whose answer was lost, and was sent again, may have been refused by itself.
        return StemRow.model_validate_json(store.read_bytes(marker))


def write_stems(
    paths: Sequence[Path], pieces: Iterator[tuple[np.ndarray, ...]], sample_rate: int, stem_format: Any
) -> tuple[list[StemReport], int]:
    """Write pieces to one file a stem; their reports and the number of channels."""
    writers: list[StemWriter] = []
    with ExitStack() as files:
        for piece in pieces:
            if not writers:
                writers = [
                    files.enter_context(StemWriter(path, sample_rate, samples.shape[0], stem_format))
                    for path, samples in zip(paths, piece, strict=True)
                ]
            for writer, samples in zip(writers, piece, strict=True):
                writer.write(samples)
        return [writer.close() for writer in writers], writers[0].channels


def threads_per_actor(actors: int) -> int:
    """CPU threads for each of so many models on this machine."""
    return max(1, (os.cpu_count() or 1) // max(actors, 1))
