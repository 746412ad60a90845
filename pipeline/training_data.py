"""Training examples on Ray Data: numbers -> plans -> decoded pieces -> mixtures, in order, from any step on.

Example k is a function of manifest, seed and k alone (`operators.sam_audio.training.mixing`), so neither the number of
workers nor a restart changes what a step sees: the position in the data is the step. Only the ranges that are heard are
read, from local folders and from the lake alike.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
import torch
from ray.data import DataContext, ExecutionResources, TaskPoolStrategy

from operators.errors import AssetError
from operators.frame_transport import unpack
from operators.sam_audio.training.batches import WaveBatch
from operators.sam_audio.training.mixing import Collection, MixingOptions, Piece, plan, render
from operators.sandbox import Limits
from pipeline.decode import decode_media, masked_video
from pipeline.filesystems import StorageError
from pipeline.storage import Store
from pipeline.training_progress import Speaker

# Plans that are tried for one example; after so many unreadable recordings something else is wrong.
MAX_PLANS = 10
# What a store may need to answer again.
PAUSES = (1.0, 4.0, 16.0)
# A dataset's tasks are listed when it starts: a long run is read as several, one after the other.
STEPS_PER_DATASET = 500


@dataclass(frozen=True)
class Pictures:
    """How masked video is made for a model that takes it."""

    image_size: int
    interpolation: str


@dataclass(frozen=True)
class ExampleSource:
    """What examples are made of, for every task. `collection` is a reference, as it may hold a million recordings."""

    collection: ray.ObjectRef
    options: MixingOptions
    seed: int
    sample_rate: int
    hop_length: int
    lake: str
    read_prefixes: tuple[str, ...]
    pictures: Pictures | None = None
    speaker: Speaker = field(default_factory=lambda: Speaker(None))


@dataclass(frozen=True)
class Share:
    """A worker's part of every step: `size` of the `total` examples, from `offset` on."""

    offset: int
    size: int
    total: int

    def number(self, first_step: int, index: int) -> int:
        """The number of the worker's example `index`, counted from the beginning of step `first_step`."""
        step, within = divmod(index, self.size)
        return (first_step + step) * self.total + self.offset + within


def batches(source: ExampleSource, share: Share, first_step: int, steps: int, size: int) -> Iterator[WaveBatch]:
    """The worker's micro batches of `size` examples of the steps first_step..steps, in order.

    Runs a dataset in this process; tasks take the CPUs that the cluster has left.
    """
    # Its limits are the cluster's and not those of this actor, which holds a CPU or a GPU of its own.
    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ExecutionResources()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for start in range(first_step, steps, STEPS_PER_DATASET):
        count = min(STEPS_PER_DATASET, steps - start)
        tasks = count * share.size // size
        flow = ray.data.range(count * share.size, override_num_blocks=tasks).map(
            MakeExample(source, share, start).__call__,
            compute=TaskPoolStrategy(size=_tasks(share)),
            num_cpus=1,
        )
        for found in flow.iter_batches(batch_size=size, prefetch_batches=2, batch_format="numpy"):
            yield wave_batch(found)


def first_examples(source: ExampleSource, share: Share, size: int) -> list[WaveBatch]:
    """The worker's part of the first `share.total` examples: what validation hears, at any number of workers alike."""
    return list(batches(source, share, 0, 1, size)) if share.size else []


class MakeExample:
    """Row {id} -> row {number, waves [2, n] float32, description, anchors (JSON), video}."""

    def __init__(self, source: ExampleSource, share: Share, first_step: int) -> None:
        self.source, self.share, self.first_step = source, share, first_step

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        number = self.share.number(self.first_step, int(row["id"]))
        collection = _collection(self.source.collection)
        for again in range(MAX_PLANS):
            try:
                return make_example(self.source, collection, number, again)
            except AssetError as error:
                self.source.speaker.warn(f"training example {number}: {error}; another is made in its place")
                last = error
        raise StorageError(
            f"{MAX_PLANS} recordings in a row could not be read, the last with {last}. Check the manifest and the store"
        )


def make_example(source: ExampleSource, collection: Collection, number: int, again: int = 0) -> dict[str, Any]:
    """Plan, decode and mix one example. Raises AssetError for a recording that cannot be read."""
    store = Store(source.lake, source.read_prefixes)
    found = plan(
        collection,
        source.options,
        source.seed,
        number,
        sample_rate=source.sample_rate,
        hop=source.hop_length,
        again=again,
    )

    def read(piece: Piece) -> np.ndarray:
        return _patiently(store, piece, source.sample_rate)

    target, residual, anchors = render(found, read, source.sample_rate)
    video = b""
    if found.video is not None and found.video.source.mask_uri and source.pictures is not None:
        first = found.video.start // source.hop_length
        video = masked_video(
            store,
            found.video.source.uri,
            found.video.source.mask_uri,
            Limits(),
            start=first,
            end=first + found.samples // source.hop_length,
            hop_length=source.hop_length,
            sample_rate=source.sample_rate,
            image_size=source.pictures.image_size,
            interpolation=source.pictures.interpolation,
        )
    return {
        "number": number,
        "waves": np.stack([target, residual]),
        "description": found.description,
        "anchors": json.dumps(anchors),
        "video": video,
    }


def wave_batch(found: dict[str, np.ndarray]) -> WaveBatch:
    """A batch of rows of `MakeExample` as the model's side takes it."""
    waves = torch.from_numpy(np.stack(list(found["waves"])))
    videos = [torch.cat(list(unpack(bytes(video)))) if video else None for video in found["video"]]
    return WaveBatch(
        waves[:, 0],
        waves[:, 1],
        [str(text) for text in found["description"]],
        [[(token, start, end) for token, start, end in json.loads(anchors)] for anchors in found["anchors"]],
        [int(number) for number in found["number"]],
        videos if any(video is not None for video in videos) else None,
    )


def _patiently(store: Store, piece: Piece, sample_rate: int) -> np.ndarray:
    """The piece in mono. A store that fails is asked again: an example is not to depend on a bad minute of it."""
    for pause in (*PAUSES, None):
        try:
            wave = decode_media(
                store,
                piece.source.uri,
                Limits(),
                start=piece.start,
                stop=piece.start + piece.length,
                sample_rate=sample_rate,
                expected_seconds=None,
            )
            return wave.mean(0)
        except AssetError as error:
            if error.cause != "storage_error":
                raise
            if pause is None:
                raise StorageError(str(error)) from None
            time.sleep(pause)
    raise AssertionError("unreachable")


# One manifest at a time: a process serves one run.
_held: dict[str, Collection] = {}


def _collection(reference: ray.ObjectRef) -> Collection:
    key = reference.hex()
    if key not in _held:
        _held.clear()
        _held[key] = ray.get(reference)
    return _held[key]


def _tasks(share: Share) -> int:
    """Tasks at a time: the cluster's CPUs in fair parts."""
    workers = max(1, share.total // share.size)
    return max(1, int(ray.cluster_resources().get("CPU", 1)) // workers)
