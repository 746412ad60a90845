"""Stems into the store: parts, the join of the last one, and the commit marker.

Result rows: `kind` (stem, failure, part), `row` (JSON of a StemRow or FailureRow), `audio_seconds`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from operators.media import StemReport, StemWriter, read_stem
from operators.segments import Joiner
from pipeline.context import Context
from pipeline.keys import commit_key, parts_prefix, stem_key
from pipeline.plan import Item, Work, anchors_text, part_names, stored_parts
from pipeline.schema import StemRow, utc_now
from pipeline.storage import Store
from pipeline.uris import redact


class WriteStage:
    """Stems of one segment -> parts in the store; the last part of an item -> its joined stems and its marker."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
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

    def write(self, folder: Path, work: Work, row: dict[str, Any]) -> StemRow | None:
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
