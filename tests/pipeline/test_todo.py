"""A plan holds assets, cuts them when it is read, and keeps nothing of the rows that it has done with."""

from pathlib import Path

import pytest
import soundfile as sf
from archive import RATE, mixture

from operators.describe import ModelFacts
from pipeline.config import JobConfig
from pipeline.plan import AHEAD, Plan, Planner
from pipeline.storage import Store

FACTS = ModelFacts("v1", 48_000, 1920, 750, 600, 75)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sf.write(tmp_path / "unlisted.wav", mixture(2).mean(1), RATE, subtype="PCM_16")
    return tmp_path


def record(folder: Path, number: int, seconds: float) -> dict:
    listed = {"size_bytes": 10, "etag": f"v{number}", "duration_seconds": seconds}
    return {"asset_id": f"tape-{number}", "uri": str(folder / f"{number}.wav"), **listed}


def plan(folder: Path, records: list[dict]) -> Plan:
    config = JobConfig(
        manifest="m", lake=str(folder / "lake"), descriptions=("speech",), allowed_read_prefixes=(str(folder),)
    )
    return Planner(config, Store(config.lake, (str(folder),)), FACTS, "c" * 16, set()).plan(records)


def test_longest_asset_comes_first_and_others_in_the_order_of_the_manifest(folder):
    found = plan(folder, [record(folder, 0, 5), record(folder, 1, 1500), record(folder, 2, 5)])
    assert [work.asset.asset_id for work in found.todo] == ["tape-1"] * 3 + ["tape-0", "tape-2"]
    assert len(found.todo) == 5
    assert found.audio_seconds == pytest.approx(1510, abs=0.1)
    assert list(found.open_items) == [work.asset.item_id for work in (found.todo[0], *found.todo[3:])]


def test_rows_are_planned_in_order_though_some_wait_for_the_store(folder):
    probed = {"asset_id": "probed", "uri": str(folder / "unlisted.wav")}
    records = [probed, *(record(folder, number, 2) for number in range(AHEAD + 10)), probed | {"asset_id": "last"}]
    names = [work.asset.asset_id for work in plan(folder, records).todo]
    assert names == ["probed", *(f"tape-{number}" for number in range(AHEAD + 10)), "last"]


def test_rejected_rows_keep_the_error_and_not_where_it_came_from(folder):
    bad = plan(folder, [record(folder, 1, -1), record(folder, 2, 2) | {"uri": "/elsewhere/2.wav"}])
    assert [(r.asset_id, r.error.cause) for r in bad.rejected] == [
        ("tape-1", "invalid_row"),
        ("tape-2", "forbidden_uri"),
    ]
    for rejected in bad.rejected:
        assert rejected.error.__traceback__ is None and rejected.error.__context__ is None
