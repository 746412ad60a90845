"""From a manifest to the segments that are still to be done: what markers and stored parts say is done is left out."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from operators.describe import ModelFacts
from operators.errors import AssetError
from operators.segments import cut
from pipeline.config import JobConfig, JobConfigError
from pipeline.items import Item, Rejected, Task, Work, item_id, whole_parts
from pipeline.keys import parts_prefix
from pipeline.manifest import complete
from pipeline.prompts import Prompt
from pipeline.schema import ManifestRow
from pipeline.storage import Store
from pipeline.todo import Todo
from pipeline.uris import redact

# Probes wait for the object store, not for the processor.
PROBES = 16
# Rows read ahead of the slowest answer: keeps the threads at work, and bounds what waits in memory.
AHEAD = 1024
# A halo of one window on either side is then 9 % of the work.
SEGMENT_WINDOWS = 20
# A span may end with a recording whose length was rounded.
SPAN_TOLERANCE_SECONDS = 0.5
# Masked video is heavier than sound by far: shorter segments bound what travels, at the price of more halo.
VIDEO_SEGMENT_WINDOWS = 5


@dataclass
class Plan:
    """`todo` holds the work, longest assets first; the counts are of items."""

    todo: Sequence[Work] = ()
    rejected: list[Rejected] = field(default_factory=list)
    items: int = 0
    skipped: int = 0
    audio_seconds: float = 0.0

    @cached_property
    def open_items(self) -> dict[str, Item]:
        """Items to do, by id; made once, when `todo` is there."""
        items = self.todo.items if isinstance(self.todo, Todo) else (i for work in self.todo for i in work.items)
        return {item.item_id: item for item in items}


def core_and_halo(config: JobConfig, facts: ModelFacts, video: bool = False) -> tuple[int, int]:
    """Frames of a segment's core and of the halo on either side. Raises JobConfigError when they do not go together."""
    # Cores on the window grid, so that neighbours agree exactly where they are joined.
    grid = facts.stride_frames
    wanted = (VIDEO_SEGMENT_WINDOWS if video else SEGMENT_WINDOWS) * facts.window_frames
    if config.segment_seconds is not None:
        wanted = facts.frames(config.segment_seconds)
    halo = facts.halo_frames if config.halo_seconds is None else facts.frames(config.halo_seconds)
    core = max(grid, round(wanted / grid) * grid)
    if config.halo_seconds is not None and halo >= core:
        seconds = core * facts.hop_length / facts.sample_rate
        raise JobConfigError(
            f"halo_seconds {config.halo_seconds:g} must be smaller than a segment ({seconds:g} s); "
            "make it smaller, or set a longer segment_seconds"
        )
    return core, halo


# Of one manifest row: rejected, items to do, frames of the asset, and how many items are committed.
_Planned = tuple[list[Rejected], list[Item], int, int]


class Planner:
    """Plans with one configuration. `committed` are the ids of items that need nothing more.

    `wanted`, asked from several threads, can leave out others too: it gets a row, its task and the id of the item.
    """

    def __init__(
        self,
        config: JobConfig,
        store: Store,
        facts: ModelFacts,
        config_hash: str,
        committed: set[str],
        wanted: Callable[[ManifestRow, Task, str], bool] | None = None,
    ) -> None:
        self.wanted = wanted or (lambda row, task, identity: identity not in committed)
        self.config, self.store, self.facts = config, store, facts
        self.config_hash, self.committed = config_hash, committed
        self.cuts = {video: core_and_halo(config, facts, video) for video in (False, True)}

    def plan(self, records: Iterable[dict[str, Any]]) -> Plan:
        plan = Plan()
        # Prompts in several rows of one asset are decoded together.
        assets: dict[tuple[str, str, str, int], list[Item]] = {}
        seen: set[str] = set()
        for rejected, items, total, skipped in self._planned(records):
            plan.rejected += rejected
            plan.items += len(rejected) + skipped
            plan.skipped += skipped
            for item in items:
                if item.item_id not in seen:
                    seen.add(item.item_id)
                    plan.items += 1
                    assets.setdefault((item.asset_id, item.uri, item.etag, total), []).append(item)
        parts = self._stored() if assets else {}
        lengths = [(items, total) for (*_, total), items in assets.items()]
        plan.todo = todo = Todo(lengths, lambda items, total: self._works(items, total, parts))
        plan.audio_seconds = todo.audio_frames * self.facts.hop_length / self.facts.sample_rate
        return plan

    def _planned(self, records: Iterable[dict[str, Any]]) -> Iterator[_Planned]:
        """Records in their order. Those that need the store are asked about in threads, up to so many ahead; for the
        others a thread would cost more than the work."""
        waiting: deque[Future[_Planned] | _Planned] = deque()
        with ThreadPoolExecutor(PROBES) as pool:
            for record in records:
                ask = _asks_store(record)
                waiting.append(pool.submit(self._plan_record, record) if ask else self._plan_record(record))
                while waiting and (len(waiting) > AHEAD or not isinstance(waiting[0], Future)):
                    yield _answer(waiting.popleft())
            while waiting:
                yield _answer(waiting.popleft())

    def _stored(self) -> dict[str, set[str]]:
        """Keys of parts by item: one listing, however many items there are."""
        found: dict[str, set[str]] = {}
        for key in self.store.list(parts_prefix(self.config_hash)):
            found.setdefault(key.split("/")[2], set()).add(key)
        return found

    def _plan_record(self, record: dict[str, Any]) -> _Planned:
        """Rejected, items to do, frames of the asset, and how many items are committed."""
        try:
            return self._plan_row(ManifestRow.from_record(record))
        except AssetError as error:
            problem = _bare(error)
        except Exception as error:  # one row must not end the plan
            problem = AssetError(
                "internal_error",
                f"{type(error).__name__}: {redact(str(error))[:500]}",
                "this is a fault of the pipeline or of the store: run the job again, and report it if it stays",
            )
        digest = hashlib.sha256(json.dumps(record, default=str, sort_keys=True).encode()).hexdigest()[:32]
        asset, uri = str(record.get("asset_id") or "?")[:2048], str(record.get("uri") or "?")[:4096]
        return [Rejected(digest, asset, uri, None, problem)], [], 0, 0

    def _plan_row(self, row: ManifestRow) -> _Planned:
        prompts = self._prompts(row)
        if not prompts:
            error = AssetError(
                "no_prompt",
                f"asset {row.asset_id!r} has no prompt and the job has none",
                "give --descriptions or --prompt, or a column description, anchors, mask_uri or prompts",
                field="prompts",
            )
            nothing = Task(Prompt(), "target", "residual")
            return [self._rejected(row, item_id(row, nothing, self.config_hash), error)], [], 0, 0
        rejected: list[Rejected] = []
        tasks: list[Task] = []
        for prompt in prompts:
            labels = prompt.labels(self.config.target_label, self.config.residual_label)
            try:
                self._check_prompt(row, prompt)
                etag = self.store.stat_media(prompt.mask_uri).etag if prompt.mask_uri else None
                tasks.append(Task(prompt, *labels, etag))
            except AssetError as error:  # of this prompt; the asset's others go on
                named = item_id(row, Task(prompt, *labels), self.config_hash)
                error = AssetError(error.cause, error.message, error.remedy, field="mask_uri")
                rejected.append(self._rejected(row, named, error))
        if not tasks:
            return rejected, [], 0, 0
        try:
            if row.etag is None and row.size_bytes is None:
                row = complete(row, self.store, self.config)
            identified = {item_id(row, task, self.config_hash): task for task in tasks}
            left = {i: task for i, task in identified.items() if self.wanted(row, task, i)}
            skipped = len(tasks) - len(left)
            if not left:
                return rejected, [], 0, skipped
            row = complete(row, self.store, self.config)
            self.store.locate_media(row.uri)
            assert row.duration_seconds is not None
            total = self.facts.frames(row.duration_seconds)
        except AssetError as error:
            ids = [item_id(row, task, self.config_hash) for task in tasks]
            bare = _bare(error)
            lost = [self._rejected(row, i, bare) for i in ids if i not in self.committed]
            return rejected + lost, [], 0, len(ids) - len(lost)
        items = []
        for i, task in left.items():
            outside = self._outside(row, task.prompt)
            if outside is not None:
                rejected.append(self._rejected(row, i, outside))
            else:
                items.append(self._item(row, i, task, total))
        return rejected, items, total, skipped

    def _prompts(self, row: ManifestRow) -> tuple[Prompt, ...]:
        """The row's own prompts; else the job's, with the row's spans and mask where it has some."""
        if row.prompts:
            return row.prompts
        anchors = row.anchors or self.config.anchors
        if row.description:
            return (Prompt(description=row.description, anchors=anchors, mask_uri=row.mask_uri),)
        own: dict[str, Any] = {
            name: value for name, value in (("anchors", row.anchors), ("mask_uri", row.mask_uri)) if value
        }
        if own and not self.config.all_prompts:
            return (Prompt(**own),)
        return tuple(prompt.model_copy(update=own) for prompt in self.config.all_prompts)

    def _check_prompt(self, row: ManifestRow, prompt: Prompt) -> None:
        if prompt.mask_uri is None:
            return
        if self.facts.image_size is None:
            raise AssetError(
                "no_vision",
                f"asset {row.asset_id!r} has a masked video, and model {self.config.model} takes none",
                "use a model with a vision encoder (facebook/sam-audio-*-tv), or take mask_uri out",
                field="mask_uri",
            )
        if row.has_video is False:
            raise AssetError(
                "no_video",
                f"asset {row.asset_id!r} has a mask, and {redact(row.uri)} has no video stream",
                "name the file with the picture, or take mask_uri out",
                field="mask_uri",
            )

    def _outside(self, row: ManifestRow, prompt: Prompt) -> AssetError | None:
        """What is wrong with spans that the recording does not have."""
        duration = row.duration_seconds or 0.0
        for anchor in prompt.anchors:
            if anchor.start >= duration or anchor.end > duration + SPAN_TOLERANCE_SECONDS:
                return AssetError(
                    "bad_anchor",
                    f"asset {row.asset_id!r}: the span {list(anchor)} is not inside the recording of {duration:.2f} s",
                    "correct the span, or the duration_seconds column",
                    field="anchors",
                )
        return None

    def _item(self, row: ManifestRow, identity: str, task: Task, total: int) -> Item:
        assert row.duration_seconds is not None and row.size_bytes is not None and row.etag is not None
        return Item(
            item_id=identity,
            asset_id=row.asset_id,
            uri=row.uri,
            etag=row.etag,
            size_bytes=row.size_bytes,
            duration_seconds=row.duration_seconds,
            description=task.prompt.description,
            anchors=tuple((a.token, a.start, a.end) for a in task.prompt.anchors),
            metadata_json=row.metadata_json,
            segment_count=len(cut(total, *self.cuts[task.prompt.mask_uri is not None])),
            target_label=sys.intern(task.target_label),  # a few names, not a copy for each of a million items
            residual_label=sys.intern(task.residual_label),
            mask_uri=task.prompt.mask_uri,
            mask_etag=task.mask_etag,
        )

    def _rejected(self, row: ManifestRow, identity: str, error: AssetError) -> Rejected:
        return Rejected(identity, row.asset_id, row.uri, row.metadata_json, error)

    def _works(self, items: list[Item], total: int, parts: dict[str, set[str]]) -> list[Work]:
        """Items that look at the same picture, or at none, share their segments: one decode, one encode."""
        works = []
        for mask in dict.fromkeys(item.mask_uri for item in items):
            works += self._segments([item for item in items if item.mask_uri == mask], total, parts)
        return works

    def _segments(self, items: list[Item], total: int, parts: dict[str, set[str]]) -> list[Work]:
        segments = cut(total, *self.cuts[items[0].mask_uri is not None])
        if len(segments) == 1:
            return [Work(tuple(items), segments[0], total)]
        stored = {i.item_id: whole_parts(parts.get(i.item_id, set()), self.config_hash, i) for i in items}
        works = []
        for segment in segments:
            wanting = tuple(item for item in items if segment.index not in stored[item.item_id])
            if wanting:
                works.append(Work(wanting, segment, total))
        # All parts are there and no marker: the run that wrote the last one died before it joined them.
        works += [Work((item,), None, total) for item in items if len(stored[item.item_id]) == len(segments)]
        return works


def _asks_store(record: dict[str, Any]) -> bool:
    """Whether planning a row may wait for the store: its file's version or length, or masks."""
    known = (record.get(name) for name in ("etag", "size_bytes", "duration_seconds"))
    return any(value is None or value != value for value in known) or bool(
        record.get("mask_uri") or record.get("prompts")
    )


def _bare(error: AssetError) -> AssetError:
    """Without its traceback, which would hold the row and all that was made of it, for every row that is rejected."""
    return AssetError(error.cause, error.message, error.remedy, field=error.field)


def _answer(planned: Future[_Planned] | _Planned) -> _Planned:
    return planned.result() if isinstance(planned, Future) else planned
