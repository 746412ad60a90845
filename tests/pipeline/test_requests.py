"""How many requests a segment costs: the object store's bill at scale (infra/SCALING.md) rests on these numbers."""

from __future__ import annotations

import uuid
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import soundfile as sf
from archive import RATE, mixture
from bench.stub_separator import StubSeparator

from pipeline.config import JobConfig
from pipeline.context import Context
from pipeline.filesystems import filesystem
from pipeline.job import open_job
from pipeline.plan import Planner
from pipeline.stages import DecodeStage, SeparateStage
from pipeline.write import WriteStage

# What the store charges ten times as much for as for a read.
WRITES = ("PutObject", "ListObjectsV2", "CopyObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload")


@pytest.fixture
def requests(s3_server: str) -> Counter[str]:
    """Requests of this process by operation, counted as they are made; what the decoders' processes read is not."""
    made: Counter[str] = Counter()
    fs = filesystem("s3")
    fs.connect()
    fs.s3.meta.events.register("before-call.s3", lambda model, **_: made.update([model.name]))
    return made


def cost(requests: Counter[str], folder: Path, seconds: float, segment_seconds: float) -> tuple[int, int, int]:
    """Segments of one asset, and what they all cost: requests that write or list, requests that read."""
    sf.write(folder / "a.wav", mixture(seconds).mean(1), RATE, subtype="PCM_16")
    uri = f"s3://media/{uuid.uuid4().hex}.wav"
    filesystem("s3").put_file(str(folder / "a.wav"), uri)
    config = JobConfig(
        manifest="s3://media/m",
        lake=f"s3://lake/{uuid.uuid4().hex}",
        descriptions=("speech",),
        allowed_read_prefixes=("s3://media",),
        segment_seconds=segment_seconds,
        halo_seconds=1,
    )
    job = open_job(config)
    plan = Planner(config, job.store, job.facts, job.config_hash, set()).plan([{"asset_id": "a", "uri": uri}])
    context = Context(config, job.store.root, config.read_prefixes, job.facts, job.config_hash, "run", False)
    decode, write = DecodeStage(context), WriteStage(context)
    separate = SeparateStage(context, None, partial(StubSeparator, 0.0, str(folder)))
    requests.clear()
    for work in plan.todo:
        row = decode({"work": work.to_json()})
        for stems in separate({name: [value] for name, value in row.items()}):
            result = write({name: value[0] for name, value in stems.items()})
    assert result["kind"] == "stem"
    writing = sum(requests[name] for name in WRITES)
    return len(plan.todo), writing, sum(requests.values()) - writing - requests["DeleteObject"]


def test_a_short_asset_costs_ten_writing_requests(requests, tmp_path):
    segments, writing, reading = cost(requests, tmp_path, 3, 10)
    assert segments == 1
    assert writing <= 10
    assert reading <= 10


def test_a_segment_of_a_long_asset_costs_eleven_writing_requests_and_the_asset_five(requests, tmp_path):
    segments, writing, reading = cost(requests, tmp_path, 40, 10)
    assert segments == 4
    assert writing <= 11 * segments + 5
    assert reading <= 13 * segments
