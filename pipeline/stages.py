"""Decoding and separation wrapped for Ray: rows in, rows out, an error of one asset as a row like any other.

Rows between the stages: `work` (JSON of plan.Work), `failure` (JSON or empty), `facts` (JSON or empty), audio as
[channels, samples] float32, `video` as bytes of `frame_transport` (empty without masked video).
Only the actor that separates imports torch: half a gigabyte and four seconds that workers which decode do without.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

from operators.errors import AssetError
from operators.segments import Segment
from pipeline.attempts import Attempts
from pipeline.context import Context
from pipeline.decode import decode_media, limits_for, masked_video
from pipeline.facts import Facts
from pipeline.items import Item, Work
from pipeline.keys import commit_key
from pipeline.metrics import BusyClock, count, measured, measured_batches
from pipeline.schema import FailureRow
from pipeline.storage import Store
from pipeline.uris import redact

if TYPE_CHECKING:
    from operators.separator import SegmentStems

Row = dict[str, Any]
NO_AUDIO = np.zeros((0, 0), np.float32)
# Header and sound may differ by a codec frame or two; more means that the header lies.
OVERRUN_SECONDS = 0.5


class DecodeStage:
    """Work -> work with `audio` (and `video`): the segment's samples (and masked frames), once for all its items."""

    def __init__(self, context: Context) -> None:
        self.context = context

    @measured("decode")
    def __call__(self, row: Row) -> Row:
        work = Work.from_json(row["work"])
        out = {"work": row["work"], "failure": "", "audio": NO_AUDIO, "video": b""}
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
                    if work.asset.mask_uri is not None:
                        out["video"] = self.look(store, work.asset, work.segment)
        except Exception as error:  # one asset must not end the run
            out["failure"] = context.failure(work.asset, "decode", error).model_dump_json()
            out["audio"] = NO_AUDIO
        return out

    def decode(self, store: Store, asset: Item, segment: Segment, total_frames: int) -> np.ndarray:
        facts = self.context.facts
        hop, rate = facts.hop_length, facts.sample_rate
        last = segment.end == total_frames
        end = segment.end * hop
        unchanged(store, asset.uri, asset.etag)
        audio = decode_media(
            store,
            asset.uri,
            limits_for(self.context.config, asset.size_bytes),
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
        # Sound may end a little before its header says (Opus: by up to 7 ms in every file; `truncated` is beyond that).
        # Silence fills the gap, so that the segment has the frames that it was planned with.
        missing = (limit - hop + 1 if last else limit) - audio.shape[1]
        return np.pad(audio[:, :limit], ((0, 0), (0, max(missing, 0))))

    def look(self, store: Store, asset: Item, segment: Segment) -> bytes:
        """The masked frames of a segment, one a latent frame, packed for the way to the model."""
        facts = self.context.facts
        assert asset.mask_uri is not None and asset.mask_etag is not None and facts.image_size is not None
        unchanged(store, asset.mask_uri, asset.mask_etag)
        return masked_video(
            store,
            asset.uri,
            asset.mask_uri,
            limits_for(self.context.config, asset.size_bytes),
            start=segment.start,
            end=segment.end,
            hop_length=facts.hop_length,
            sample_rate=facts.sample_rate,
            image_size=facts.image_size,
            interpolation=facts.interpolation,
            masked=self.context.config.masked,
        )


def unchanged(store: Store, uri: str, etag: str) -> None:
    """AssetError when a file is not the version that was planned with."""
    if store.stat_media(uri).etag != etag:
        raise AssetError(
            "source_changed",
            f"{redact(uri)} is no longer the version that the manifest lists",
            "build the manifest again; it then becomes a new item",
            field="etag",
        )


class SeparateStage:
    """Batches of decoded work -> one row an item and segment, with both stems. An actor: it holds the model.

    `separator` makes the model, or what stands for it: a callable of requests as `operators.separator.Separator` is.
    """

    def __init__(
        self, context: Context, threads: int | None = None, separator: Callable[[], Any] | None = None
    ) -> None:
        if threads:
            import torch

            torch.set_num_threads(threads)
        self.context = context
        config = context.config
        self.clock = BusyClock()
        if separator is None:
            from operators.separator import Separator

            self.separator: Any = Separator(
                config.model, config.device, context.options, config.windows_per_batch, vision=context.video
            )
        else:
            self.separator = separator()

    @measured_batches("separate")
    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[dict[str, list[Any]]]:
        rows = [
            {"work": w, "failure": f, "audio": a, "video": v}
            for w, f, a, v in zip(batch["work"], batch["failure"], batch["audio"], batch["video"], strict=True)
        ]
        # Rows leave in the order of the batch, and none before all are done: when an actor dies, Ray repeats the call
        # and skips as many rows as the dead one had handed out.
        together: list[tuple[Row, Work, Attempts]] = []
        done: dict[str, list[dict[str, list[Any]]]] = {row["work"]: [] for row in rows}
        for row in rows:
            work = Work.from_json(row["work"])
            if row["failure"] or work.segment is None:
                done[row["work"]] += self.passed_on(row, work)
                continue
            if not work.items:
                continue
            try:
                attempts = Attempts(
                    self.context.store, work.asset, work.segment.index, "separate", self.context.config.max_attempts
                )
                attempts.check()
            except Exception as error:
                done[row["work"]] += self.failed(work, error)
                continue
            if attempts.earlier:
                done[row["work"]] += self.separate([(row, work, attempts)])  # a suspect is tried alone
            else:
                together.append((row, work, attempts))
        answers = iter(list(self.separate(together)) if together else [])
        for row, work, _ in together:
            done[row["work"]] += [next(answers) for _ in work.items]
        for outputs in done.values():
            yield from outputs

    def separate(self, rows: Sequence[tuple[Row, Work, Attempts]]) -> Iterator[dict[str, list[Any]]]:
        from operators.frame_transport import PackedFrames
        from operators.separator import SegmentRequest

        requests, of = [], []
        for row, work, _ in rows:
            assert work.segment is not None
            audio = np.require(row["audio"], np.float32, ["C", "W"])
            video = PackedFrames(row["video"]) if row["video"] else None
            for item in work.items:
                of.append((item, work))
                requests.append(
                    SegmentRequest(
                        item.noise_key,
                        audio,
                        work.segment.start,
                        work.total_frames,
                        item.description,
                        item.anchors,
                        video,
                        (work.segment.core_start, work.segment.core_end),
                    )
                )
        with ExitStack() as notes:
            try:
                for _, _, attempts in rows:
                    notes.enter_context(attempts)
                with self.clock.busy():
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
                facts = Facts.of(result, self.context.core_seconds(one)).to_json()
                count("windows_total", result.windows - result.windows_skipped, outcome="integrated")
                count("windows_total", result.windows_skipped, outcome="skipped")
                yield stems_row(one.to_json(), "", facts, result.target, result.residual)

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
    work: str, failure: str, facts: str = "", target: np.ndarray = NO_AUDIO, residual: np.ndarray = NO_AUDIO
) -> dict[str, list[Any]]:
    return {"work": [work], "failure": [failure], "facts": [facts], "target": [target], "residual": [residual]}


def threads_per_actor(actors: int) -> int:
    """CPU threads for each of so many models on this machine."""
    return max(1, (os.cpu_count() or 1) // max(actors, 1))
