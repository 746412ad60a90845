"""Of a lake with a past: what a scheduled run makes, what it leaves alone, and why."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import soundfile as sf
from archive import RATE, mixture
from deltalake import write_deltalake
from lake_rows import commit, failure_row, stem_row

from operators.describe import describe
from operators.errors import AssetError
from pipeline.config import JobConfig
from pipeline.items import Rejected, Task, item_id
from pipeline.job import Job
from pipeline.keys import attempt_key
from pipeline.plan import Plan, Planner
from pipeline.prompts import Prompt
from pipeline.schema import STEMS_SCHEMA, ManifestRow
from pipeline.stale import History, Selection, Verdict, refreshed
from pipeline.storage import Store
from pipeline.tables import Tables

NOW = "f" * 16  # the configuration of the run
TASK = Task(Prompt(description="speech"), "speech", "rest")
MASKED = Task(Prompt(description="speech", mask_uri="/media/m.npz"), "speech", "rest", "mask-v2")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "lake"), [str(tmp_path / "media")])


def selection(store: Store, **settings: Any) -> Selection:
    values = {"manifest": "/media/m.parquet", "lake": store.root} | settings
    return Selection(Job(JobConfig(**values), describe("tiny"), NOW, store, Tables(store)))


def row(asset: str = "a", etag: str | None = "v1", **values: Any) -> ManifestRow:
    return ManifestRow(asset_id=asset, uri=f"/media/{asset}", etag=etag, size_bytes=100, **values)


def verdict(of: Selection, manifest: ManifestRow, task: Task = TASK) -> Verdict:
    return of.verdict(manifest, task, item_id(manifest, task, NOW))


def test_asset_without_stems_is_new(store):
    commit(store, stem_row(store, "other"))
    assert verdict(selection(store), row()) is Verdict.NEW


def test_prompt_without_stems_is_new_though_the_asset_has_others(store):
    commit(store, stem_row(store, "a", description="music", config_hash=NOW))
    assert verdict(selection(store), row()) is Verdict.NEW


def test_item_that_is_committed_needs_nothing(store):
    commit(store, stem_row(store, "a", config_hash=NOW, item_id=item_id(row(), TASK, NOW)))
    assert verdict(selection(store, stale="older-than-config"), row()) is Verdict.COMMITTED


@pytest.mark.parametrize("of_config", [NOW, "c" * 16])
def test_other_version_of_the_file_is_changed_whoever_made_the_old_stems(store, of_config):
    commit(store, stem_row(store, "a", source_etag="v0", config_hash=of_config))
    assert verdict(selection(store), row()) is Verdict.CHANGED


def test_without_etags_the_size_tells_versions_apart(store):
    commit(store, stem_row(store, "a", source_etag="whatever", source_size_bytes=100))
    assert verdict(selection(store), row(etag=None)) is Verdict.KEPT_OLDER_MODEL
    assert verdict(selection(store), row("a", None).model_copy(update={"size_bytes": 99})) is Verdict.CHANGED


@pytest.mark.parametrize(
    ("model_version", "stale", "expected"),
    [
        ("m0", "none", Verdict.KEPT_OLDER_MODEL),
        ("m0", "older-than-model", Verdict.OLDER_MODEL),
        ("m0", "older-than-config", Verdict.OLDER_MODEL),
        ("now", "none", Verdict.KEPT_OLDER_CONFIG),
        ("now", "older-than-model", Verdict.KEPT_OLDER_CONFIG),
        ("now", "older-than-config", Verdict.OLDER_CONFIG),
    ],
)
def test_stale_stems_are_made_again_only_when_asked(store, model_version, stale, expected):
    version = describe("tiny").version if model_version == "now" else model_version
    commit(store, stem_row(store, "a", model_version=version))
    assert verdict(selection(store, stale=stale), row()) is expected


def test_stems_of_a_newer_configuration_count_beside_older_ones(store):
    commit(store, stem_row(store, "a", model_version="m0"))
    commit(store, stem_row(store, "a", model_version=describe("tiny").version, config_hash="d" * 16))
    assert verdict(selection(store, stale="older-than-model"), row()) is Verdict.KEPT_OLDER_CONFIG


def test_same_content_under_another_uri_is_left_alone(store):
    commit(store, stem_row(store, "a", config_hash=NOW))
    assert verdict(selection(store), row()) is Verdict.MOVED


def test_other_mask_of_the_same_picture_is_changed(store):
    commit(store, stem_row(store, "a", config_hash=NOW, mask_uri="/media/m.npz"))
    assert verdict(selection(store), row(), MASKED) is Verdict.CHANGED


def test_failures_are_retried_by_cause_and_in_a_bounded_number_of_runs(store):
    item = item_id(row(), TASK, NOW)
    Tables(store).add_failures([failure_row(item, "storage_error", run=1)])
    assert verdict(selection(store, retry_limit=2), row()) is Verdict.RETRY
    Tables(store).add_failures([failure_row(item, "storage_error", run=2)])
    assert verdict(selection(store, retry_limit=2), row()) is Verdict.GAVE_UP
    assert verdict(selection(store, retry_limit=3), row()) is Verdict.RETRY
    assert verdict(selection(store, retry_causes=("not_found",)), row()) is Verdict.FAILED_FOR_GOOD


def test_last_cause_decides(store):
    item = item_id(row(), TASK, NOW)
    Tables(store).add_failures([failure_row(item, "truncated", run=2), failure_row(item, "not_found", run=1)])
    assert verdict(selection(store), row()) is Verdict.FAILED_FOR_GOOD
    assert verdict(selection(store, retry_causes=("truncated",)), row()) is Verdict.RETRY


def test_broken_file_that_was_replaced_is_tried(store):
    Tables(store).add_failures([failure_row(item_id(row(), TASK, NOW), "truncated")])
    assert verdict(selection(store), row()) is Verdict.FAILED_FOR_GOOD
    assert verdict(selection(store), row(etag="v2")) is Verdict.NEW


def test_item_that_killed_its_worker_starts_with_a_clean_slate_when_it_is_retried(store):
    item = item_id(row(), TASK, NOW)
    for _ in range(3):
        store.write_bytes(attempt_key(item, 0, "decode"), b"")
    store.write_bytes(attempt_key("0" * 32, 0, "decode"), b"")
    Tables(store).add_failures([failure_row(item, "worker_died")])
    careful = selection(store)
    assert not careful.wanted(row(), TASK, item)
    careful.begin()
    assert len(store.list("attempts")) == 4
    willing = selection(store, retry_causes=("worker_died",))
    assert willing.wanted(row(), TASK, item)
    willing.begin()
    assert [key.split("/")[1] for key in store.list("attempts")] == ["0" * 32]


def test_counts_and_their_table_name_every_verdict_once_an_item(store):
    commit(store, stem_row(store, "old"))
    chosen = selection(store)
    for manifest in (row("old"), row("a"), row("a")):
        chosen.wanted(manifest, TASK, item_id(manifest, TASK, NOW))
    assert chosen.counts == {Verdict.NEW: 1, Verdict.KEPT_OLDER_MODEL: 1}
    assert [line.split()[0] for line in chosen.describe().splitlines()] == ["make", "skip"]
    assert "--stale older-than-model" in chosen.describe()


def test_rows_that_were_rejected_before_do_not_fill_the_failures_table(store):
    Tables(store).add_failures([failure_row("1" * 32, "invalid_row"), failure_row("2" * 32, "no_audio")])
    plan = Plan()
    for digit, cause in (("1", "invalid_row"), ("2", "truncated"), ("3", "invalid_row")):
        plan.rejected.append(Rejected(digit * 32, "a", "/media/a", None, AssetError(cause, "m", "r")))
    selection(store).prune(plan)
    assert [r.item_id[0] for r in plan.rejected] == ["2", "3"]  # another cause than before; and one that is new
    assert plan.skipped == 1


def test_superseded_are_the_earlier_stems_of_prompts_that_are_committed_anew(store):
    earlier = [stem_row(store, "a", source_etag="v0"), stem_row(store, "a", config_hash=NOW, source_etag="v0")]
    for made in [*earlier, stem_row(store, "b"), stem_row(store, "a", description="music")]:
        commit(store, made)
    chosen = selection(store, stale="older-than-model")
    ids = {asset: item_id(row(asset), TASK, NOW) for asset in ("a", "b")}
    for asset, item in ids.items():
        assert chosen.wanted(row(asset), TASK, item)
    found = chosen.superseded({ids["a"]})  # b is not committed: its old stems are all there is
    assert {(made.item_id, newer) for made, newer in found} == {(made.item_id, ids["a"]) for made in earlier}


def test_history_reads_a_lake_without_tables(store):
    history = History(Tables(store))
    assert not history.made and not history.failed


def test_history_reads_a_table_of_a_version_that_lacked_columns(store):
    rows = pa.Table.from_pylist([stem_row(store, "a").record()], schema=STEMS_SCHEMA)
    older = rows.drop_columns(["mask_uri", "source_etag", "source_size_bytes"])
    write_deltalake(store.url("tables/stems"), older)
    assert verdict(selection(store), row()) is Verdict.CHANGED  # nothing says that it is the same version


def test_file_that_changed_since_it_was_listed_is_probed_anew(store, tmp_path):
    (tmp_path / "media").mkdir()
    path = tmp_path / "media" / "a.wav"
    sf.write(path, mixture(2), RATE, subtype="PCM_16")
    found = store.stat_media(str(path))
    listed = {
        "asset_id": "a",
        "uri": str(path),
        "etag": f'"{found.etag}"',
        "size_bytes": found.size_bytes,
        "duration_seconds": 2.0,
        "channels": 2,
        "shelf": "B7",
    }
    assert refreshed(listed, store) is listed
    os.utime(path, (1, 1))  # the same size at another time
    assert refreshed({k: v for k, v in listed.items() if k != "etag"}, store)["size_bytes"] == found.size_bytes
    changed = refreshed(listed, store)
    assert changed["etag"] == store.stat_media(str(path)).etag != found.etag
    assert (changed["duration_seconds"], changed["channels"], changed["shelf"]) == (None, None, "B7")
    path.unlink()
    assert refreshed(listed, store) is listed  # its stems may be committed: nothing to do then


def test_planner_leaves_out_what_the_selection_does_not_want(store, tmp_path):
    (tmp_path / "media").mkdir()
    for name in ("kept", "new"):
        sf.write(tmp_path / "media" / f"{name}.wav", mixture(2), RATE, subtype="PCM_16")
    uris = {name: str(tmp_path / "media" / f"{name}.wav") for name in ("kept", "new")}
    etag = store.stat_media(uris["kept"]).etag
    commit(store, stem_row(store, "kept", source_etag=etag, residual_label="speech_residual"))
    chosen = selection(store, descriptions=("speech",), allowed_read_prefixes=(str(tmp_path / "media"),))
    records = [{"asset_id": name, "uri": uri} for name, uri in uris.items()]
    planner = Planner(chosen.config, store, describe("tiny"), NOW, set(), chosen.wanted)
    plan = planner.plan(chosen.records(records))
    assert [item.asset_id for item in plan.open_items.values()] == ["new"]
    assert (plan.items, plan.skipped) == (2, 1)
    assert chosen.counts == {Verdict.NEW: 1, Verdict.KEPT_OLDER_MODEL: 1}
