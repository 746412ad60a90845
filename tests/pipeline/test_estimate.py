"""GPU hours come from measured runs, money from a price, and what stands out is named with its reason."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from lake_rows import NOON

from pipeline.config import JobConfig
from pipeline.estimate import Survey, cost, largest, throughput
from pipeline.items import Item, Work
from pipeline.plan import Plan
from pipeline.schema import RunRow
from pipeline.storage import Store
from pipeline.tables import Tables


def run_row(run: int, **values: Any) -> RunRow:
    common: dict[str, Any] = {
        "job": "separate",
        "status": "done",
        "started_at": NOON + timedelta(hours=run),
        "config_hash": "c",
        "config_json": "{}",
        "model": "tiny",
        "model_version": "m1",
        "audio_seconds": 36_000.0,
        "elapsed_seconds": 360.0,
        "gpus": 2.0,
    }
    return RunRow(run_id=f"run-{run}", **(common | values))


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    return Tables(Store(str(tmp_path / "lake")))


def config(**settings: Any) -> JobConfig:
    return JobConfig(manifest="/m.parquet", lake="/lake", **settings)


def test_lake_without_runs_knows_no_throughput(tables):
    assert throughput(tables, config(), "c", "m1") is None


def test_throughput_is_per_gpu_and_weighted_by_the_audio_of_the_runs(tables):
    tables.put_run(run_row(1))  # 100 x real time on two GPUs
    tables.put_run(run_row(2, audio_seconds=18_000.0))  # 50 x
    tables.put_run(run_row(3, audio_seconds=10.0, elapsed_seconds=30.0))  # hardly more than Ray's start
    tables.put_run(run_row(4, status="broken", audio_seconds=1e9))
    tables.put_run(run_row(5, status="running", elapsed_seconds=None))
    tables.put_run(run_row(6, gpus=None, audio_seconds=0.0))  # had nothing to do
    rate = throughput(tables, config(), "c", "m1")
    assert rate is not None
    assert rate.expected == pytest.approx(54_010 / 1500)
    assert rate.slowest == pytest.approx(25)
    assert "3 finished runs with these settings" in rate.source


def test_runs_of_the_model_with_other_settings_count_when_there_are_no_better_ones(tables):
    tables.put_run(run_row(1, config_hash="other"))
    tables.put_run(run_row(2, config_hash="third", model_version="m2"))
    rate = throughput(tables, config(), "c", "m1")
    assert rate is not None and rate.expected == pytest.approx(50) and "other settings" in rate.source
    assert throughput(tables, config(), "c", "m3") is None


def test_throughput_in_the_settings_wins(tables):
    tables.put_run(run_row(1))
    rate = throughput(tables, config(audio_hours_per_gpu_hour=168), "c", "m1")
    assert rate is not None and (rate.expected, rate.slowest) == (168, 168)
    found = cost(1680, rate, 3.5)
    assert (found.gpu_hours, found.money) == (pytest.approx(10), pytest.approx(35))
    assert cost(1680, rate, None).money is None


def item(asset: str, seconds: float = 100.0, size: int = 1_000_000, etag: str = "") -> Item:
    return Item(asset + etag, asset, f"/media/{asset}", etag or asset, size, seconds, "speech", (), None, 1, "s", "r")


def plan_of(*items: Item) -> Plan:
    return Plan([Work((one,), None, 1) for one in items], [], len(items))


def test_assets_that_stand_out_are_named_with_the_reason():
    usual = [item(f"usual-{i}", size=1_000_000 + i) for i in range(6)]
    odd = {
        "long": item("long", 13 * 3600, 13 * 36_000_000),
        "short": item("short", 0.5, 5_000),
        "dense": item("dense", size=90_000_001),
        "thin": item("thin", size=1_001),
        "wide": item("wide", size=1_000_021),
        "low": item("low", size=1_000_022),
        "bad": item("bad", size=1_000_023),
        "twin": item("twin", etag="same"),
        "other": item("other", etag="same"),
        "twice": item("twice"),
    }
    again = item("twice", etag="v2")
    survey = Survey()
    records = [
        {"asset_id": "wide", "channels": 6},
        {"asset_id": "low", "sample_rate": 8000},
        {"asset_id": "bad", "uri": "/media/bad", "probe_error": "corrupt: no header"},
        *({"asset_id": one.asset_id, "channels": 2, "sample_rate": 48_000} for one in usual),
    ]
    assert list(survey.watch(records)) == records and survey.rows == 9
    found = {one.asset_id: one.reasons for one in survey.oddest(plan_of(*usual, *odd.values(), again), 99)}
    assert found.keys() == odd.keys()
    said = {asset: reasons[0] for asset, reasons in found.items()}
    assert said["long"] == "lasts 13.0 h" and said["short"] == "lasts 0.50 s"
    assert "median" in said["dense"] and "median" in said["thin"]
    assert said["wide"] == "6 channels" and said["low"] == "8000 Hz" and "no header" in said["bad"]
    assert said["twin"] == said["other"] == "2 assets have this content"
    assert said["twice"] == "2 files have this asset_id"


def test_largest_come_first_and_an_asset_with_two_prompts_once():
    two = [item("b", 50), replace(item("b", 50), item_id="other", description="music")]
    assert [one.asset_id for one in largest(plan_of(item("a", 10), *two, item("c", 99)), 2)] == ["c", "b"]


def test_stem_bytes_count_both_stems_of_every_item_and_channel():
    survey = Survey()
    list(survey.watch([{"asset_id": "mono", "channels": 1}]))
    plan = plan_of(item("mono", 10), item("stereo", 10))
    assert survey.stem_bytes_at_most(plan, 48_000, 3) == 2 * 10 * 48_000 * 3 * (1 + 2)
