"""Stems into the store: parts, the join of the last one, and the commit marker.

Result rows: `kind` (stem, failure, part), `row` (JSON of a StemRow or FailureRow), `audio_seconds`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from operators.errors import AssetError
from operators.media import StemWriter, read_stem
from operators.render import Output, Pieces, Rendered, render
from operators.segments import Joiner, Segment
from pipeline.context import Context
from pipeline.decode import limits_for, probe_media
from pipeline.facts import Facts, merge
from pipeline.items import Item, Work, anchors_text, part_names, stored_parts
from pipeline.keys import commit_key, parts_prefix, stem_key
from pipeline.metrics import measured
from pipeline.schema import StemRow, utc_now
from pipeline.storage import StorageError, Store
from pipeline.uris import redact


class WriteStage:
    """Stems of one segment -> parts in the store; the last part of an item -> its joined stems and its marker."""

    def __init__(self, context: Context) -> None:
        self.context = context

    @measured("write")
    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        work = Work.from_json(row["work"])
        item, context = work.asset, self.context
        if row["failure"]:
            return {"kind": "failure", "row": row["failure"], "audio_seconds": 0.0}
        seconds = context.core_seconds(work)
        try:
            with tempfile.TemporaryDirectory(prefix="stems-") as folder:
                stem = self.write(Path(folder), work, row)
        except Exception as error:  # one item must not end the run
            # Another driver that committed the item deletes its parts, and ours with them, while we join.
            stem = None
            with suppress(StorageError):
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
            return self.commit(
                store, item, folder, lambda: [(row["target"], row["residual"])], Facts.from_json(row["facts"])
            )
        if work.segment is not None:
            *stem_names, facts_name = part_names(self.context.config_hash, item, work.segment.index)
            for name, samples in zip(stem_names, (row["target"], row["residual"]), strict=True):
                path = folder / "part.wav"
                with StemWriter(path, self.context.facts.sample_rate, samples.shape[0], "wav") as writer:
                    writer.write(samples)
                store.upload(path, name, if_absent=False)
            store.write_bytes(facts_name, row["facts"].encode())
        # Asked after our own parts are stored: whoever stores last sees them all. Two may: the marker decides.
        stem = self.committed(item)
        if stem is None:
            if len(stored_parts(store, self.context.config_hash, item)) < item.segment_count:
                return None
            segments = self.context.cut(item, work.total_frames)
            names = [part_names(self.context.config_hash, item, segment.index) for segment in segments]
            facts = merge([Facts.from_json(store.read_bytes(name)) for _, _, name in names])
            stem = self.commit(store, item, folder, lambda: self.joined(store, segments, names, folder), facts)
        store.delete_prefix(parts_prefix(self.context.config_hash, item.item_id))
        return stem

    def committed(self, item: Item) -> StemRow | None:
        """The item's row, if some writer has committed it."""
        try:
            return StemRow.model_validate_json(
                self.context.store.read_bytes(commit_key(self.context.config_hash, item.item_id))
            )
        except FileNotFoundError:
            return None

    def joined(
        self, store: Store, segments: Sequence[Segment], names: Sequence[Sequence[str]], folder: Path
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Target and residual piece by piece, with one part of each in memory."""
        hop = self.context.facts.hop_length
        joiners = Joiner(hop), Joiner(hop)
        for segment, (target, residual, _) in zip(segments, names, strict=True):
            pieces = []
            for joiner, name in zip(joiners, (target, residual), strict=True):
                path = folder / "joined-part.wav"
                store.download(name, path)
                pieces.append(joiner.add(segment, read_stem(path)))
                path.unlink()
            yield pieces[0], pieces[1]

    def commit(self, store: Store, item: Item, folder: Path, pieces: Callable[[], Pieces], facts: Facts) -> StemRow:
        """Write both stems, store them, and put the marker: of several writers of an item exactly one wins."""
        context, config = self.context, self.context.config
        if (done := self.committed(item)) is not None:
            return done
        paths = [folder / f"{name}.{config.stem_format}" for name in ("target", "residual")]
        source_rate = self.source_rate(store, item)
        output = Output(config.stem_format, self.output_rate(source_rate), config.bit_depth, config.on_overs)
        rendered = render(paths, pieces, context.facts.sample_rate, output)
        keys = [
            stem_key(context.config_hash, item.asset_id, item.item_id, label, config.stem_format)
            for label in (item.target_label, item.residual_label)
        ]
        for path, key in zip(paths, keys, strict=True):
            store.upload(path, key)  # when it is there already, an earlier try stored the same stem
        row = self.stem_row(item, [store.url(key) for key in keys], rendered, facts, source_rate)
        marker = commit_key(context.config_hash, item.item_id)
        store.put_if_absent(marker, row.model_dump_json().encode())
        for path, key in zip(paths, keys, strict=True):
            if not store.exists(key):  # an old try's stem, which a collector deleted before it could see the marker
                store.upload(path, key)
        # Read back: a put whose answer was lost, and was sent again, may have been refused by itself.
        return StemRow.model_validate_json(store.read_bytes(marker))

    def stem_row(
        self, item: Item, urls: Sequence[str], rendered: Rendered, facts: Facts, source_rate: int | None
    ) -> StemRow:
        context = self.context
        target, residual = rendered.reports
        target_level, residual_level = rendered.loudness
        return StemRow(
            item_id=item.item_id,
            asset_id=item.asset_id,
            uri=redact(item.uri),
            source_etag=item.etag,
            source_size_bytes=item.size_bytes,
            config_hash=context.config_hash,
            model=redact(context.config.model),
            model_version=context.facts.version,
            description=item.description,
            anchors_json=anchors_text(item),
            mask_uri=redact(item.mask_uri) if item.mask_uri else None,
            target_label=item.target_label,
            residual_label=item.residual_label,
            target_uri=urls[0],
            residual_uri=urls[1],
            sample_rate=rendered.sample_rate,
            source_sample_rate=source_rate,
            bit_depth=rendered.bit_depth,
            channels=rendered.channels,
            duration_seconds=rendered.duration_seconds,
            segment_count=item.segment_count,
            target_peak=target.peak,
            residual_peak=residual.peak,
            target_loudness_lufs=target_level.integrated_lufs,
            residual_loudness_lufs=residual_level.integrated_lufs,
            target_true_peak_dbtp=target_level.true_peak_dbtp,
            residual_true_peak_dbtp=residual_level.true_peak_dbtp,
            gain_db=rendered.gain_db,
            clipped_samples=target.clipped + residual.clipped,
            predicted_spans_json=facts.spans_json,
            **facts.score_columns,
            candidates=facts.candidates,
            windows=facts.windows,
            windows_skipped=facts.windows_skipped,
            run_id=context.run_id,
            committed_at=utc_now(),
            metadata_json=item.metadata_json,
        )

    def source_rate(self, store: Store, item: Item) -> int | None:
        """Sample rate of the item's media file, read from its header: a manifest may say another.

        None when the file cannot be read any more and nothing depends on it; else that is the item's AssetError.
        """
        try:
            return probe_media(store, item.uri, limits_for(self.context.config, item.size_bytes)).sample_rate
        except AssetError:
            if self.context.config.output_sample_rate == "source":
                raise
            return None

    def output_rate(self, source_rate: int | None) -> int:
        wanted = self.context.config.output_sample_rate
        if wanted == "source":
            wanted = source_rate
        return self.context.facts.sample_rate if wanted is None else wanted
