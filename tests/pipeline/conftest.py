"""One local Ray for all tests of a session; started after the S3 server, so that workers know its address."""

from collections.abc import Iterator

import pytest

from pipeline import graph
from pipeline.config import JobConfig


@pytest.fixture(scope="session")
def cluster(s3_server: str) -> Iterator[None]:
    import ray

    # Two model replicas can be placed; most tests use one.
    graph.connect(JobConfig(manifest="none", lake="none", separators=2))
    yield
    ray.shutdown()
