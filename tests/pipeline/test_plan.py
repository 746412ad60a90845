"""Plans over a small real archive: what is to be done, what is not, and what cannot be."""

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from archive import MEDIA, RATE, mixture

from operators.describe import ModelFacts, describe
from operators.sam_audio.config import SolverConfig
from operators.separator import Separator, SeparatorOptions
from pipeline.config import JobConfig
from pipeline.items import part_names
from pipeline.plan import Plan, Planner
from pipeline.storage import Store

SECONDS = {"long.wav": 26.013, "short.wav": 9.013}
SEES = ModelFacts("v1", 48_000, 1920, 750, 600, 763, image_size=336)


@pytest.fixture
def media(tmp_path: Path) -> Path:
    folder = tmp_path / "media"
    folder.mkdir()
    for name, seconds in SECONDS.items():
        sf.write(folder / name, mixture(seconds).mean(1), RATE, subtype="PCM_16")
    (folder / "film.mp4").write_bytes((MEDIA / "demo.mp4").read_bytes())
    np.save(folder / "mask.npy", np.zeros((10, 8, 8), np.uint8))
    return folder


def planner(media: Path, facts: ModelFacts | None = None, committed: set[str] | None = None, **settings) -> Planner:
    values = {"manifest": "m.parquet", "lake": str(media.parent / "lake"), "segment_seconds": 12} | settings
    config = JobConfig(**values, allowed_read_prefixes=(str(media),))
    return Planner(config, Store(config.lake, (str(media),)), facts or describe("tiny"), "hash", committed or set())


def plan(media: Path, *rows: dict, **settings) -> Plan:
    records = [{"asset_id": r["file"], "uri": str(media / r["file"]), **r} for r in rows]
    return planner(media, **settings).plan([{k: v for k, v in r.items() if k != "file"} for r in records])


def causes(found: Plan) -> list[tuple[str, str | None]]:
    return [(r.error.cause, r.error.field) for r in found.rejected]


def test_row_that_stands_twice_is_done_once(media):
    row = {"file": "long.wav"}
    twice = plan(media, row, row, descriptions=("speech",))
    assert (len(twice.todo), twice.items) == (3, 1)


def test_prompts_of_one_asset_share_its_segments_however_they_are_given(media):
    row = {"file": "short.wav"}
    by_job = plan(media, row, descriptions=("speech", "music"))
    by_rows = plan(media, row | {"description": "speech"}, row | {"description": "music"})
    by_column = plan(media, row | {"prompts": ["speech", "music"]})
    for found in (by_job, by_rows, by_column):
        (work,) = found.todo
        assert {item.description for item in work.items} == {"speech", "music"}
        assert {item.target_label for item in work.items} == {"speech", "music"}
    assert by_job.open_items.keys() == by_rows.open_items.keys() == by_column.open_items.keys()


def test_a_rows_own_prompts_stand_instead_of_the_jobs(media):
    spans = [["+", 1.0, 2.0]]
    found = plan(
        media,
        {"file": "short.wav", "prompts": [{"name": "dog", "residual_name": "rest", "description": "dog barking"}]},
        {"file": "long.wav", "anchors": spans},
        descriptions=("speech",),
    )
    items = {item.asset_id: item for item in found.open_items.values()}
    assert (items["short.wav"].target_label, items["short.wav"].residual_label) == ("dog", "rest")
    assert items["long.wav"].description == "speech" and items["long.wav"].anchors == (("+", 1.0, 2.0),)


def test_spans_alone_are_a_prompt_and_nothing_at_all_is_none(media):
    found = plan(media, {"file": "short.wav", "anchors": [["+", 1.0, 2.0]]}, {"file": "long.wav"})
    (item,) = found.open_items.values()
    assert (item.description, item.target_label, item.residual_label) == ("", "target", "residual")
    assert causes(found) == [("no_prompt", "prompts")]
    assert found.rejected[0].asset_id == "long.wav"


@pytest.mark.parametrize(
    ("spans", "cause"),
    [
        ([["+", 2.0, 1.0]], "invalid_row"),
        ([["+", float("nan"), 1.0]], "invalid_row"),
        ([["?", 0.0, 1.0]], "invalid_row"),
        ([["+", -1.0, 1.0]], "invalid_row"),
        ([["+", 9.5, 9.8]], "bad_anchor"),
        ([["-", 1.0, 12.0]], "bad_anchor"),
    ],
)
def test_spans_that_cannot_be_are_refused_with_the_assets_name(media, spans, cause):
    found = plan(media, {"file": "short.wav", "anchors": spans}, {"file": "long.wav"}, descriptions=("speech",))
    (problem,) = found.rejected
    assert problem.error.cause == cause and problem.error.field == "anchors"
    assert "short.wav" in problem.error.message
    assert {item.asset_id for item in found.open_items.values()} == {"long.wav"}


def test_masks_are_prompts_of_their_own_version(media):
    row = {"file": "film.mp4", "mask_uri": str(media / "mask.npy")}
    found = plan(media, row, facts=SEES)
    (item,) = found.open_items.values()
    assert item.mask_uri == row["mask_uri"] and item.mask_etag
    np.save(media / "mask.npy", np.ones((10, 8, 8), np.uint8)[:9])
    assert plan(media, row, facts=SEES).open_items.keys() != found.open_items.keys()
    described = plan(media, row, facts=SEES, descriptions=("dog barking", "rain"))
    assert len(described.todo) == 1 and len(described.todo[0].items) == 2


def test_masks_that_cannot_be_used_cost_their_prompt_only(media):
    prompts = [{"description": "dog", "mask_uri": str(media / "none.npy")}, "rain"]
    found = plan(media, {"file": "film.mp4", "prompts": prompts}, facts=SEES)
    assert causes(found) == [("not_found", "mask_uri")]
    assert [item.description for item in found.open_items.values()] == ["rain"]
    outside = {"file": "film.mp4", "mask_uri": "/etc/mask.npy"}
    assert causes(plan(media, outside, facts=SEES)) == [("forbidden_uri", "mask_uri")]
    blind = plan(media, {"file": "film.mp4", "mask_uri": str(media / "mask.npy")})
    assert causes(blind) == [("no_vision", "mask_uri")]
    sound = {"file": "short.wav", "mask_uri": str(media / "mask.npy"), "has_video": False}
    assert causes(plan(media, sound, facts=SEES)) == [("no_video", "mask_uri")]


def test_audio_to_do_is_counted_for_every_item_and_without_stored_parts(media):
    prompts = {"descriptions": ("speech", "music")}
    whole = plan(media, {"file": "long.wav"}, **prompts)
    assert whole.audio_seconds == pytest.approx(2 * 26.013, abs=0.08)
    item = whole.todo[0].items[0]
    store = planner(media).store
    *stems, facts = part_names("hash", item, 0)
    for name in stems:
        store.write_bytes(name, b"a part")
    assert plan(media, {"file": "long.wav"}, **prompts).audio_seconds == whole.audio_seconds  # no facts: not whole
    store.write_bytes(facts, b"{}")
    assert plan(media, {"file": "long.wav"}, **prompts).audio_seconds == pytest.approx(2 * 26.013 - 12, abs=0.08)


def test_etag_of_the_manifest_counts_however_it_is_quoted(media):
    plain = plan(media, {"file": "short.wav", "etag": "abc"}, descriptions=("speech",))
    quoted = plan(media, {"file": "short.wav", "etag": 'W/"abc"'}, descriptions=("speech",))
    assert plain.open_items.keys() == quoted.open_items.keys()
    assert next(iter(plain.open_items.values())).etag == "abc"


def test_a_duration_that_cannot_be_costs_its_row_only(media):
    found = plan(media, {"file": "long.wav", "duration_seconds": 1e15}, {"file": "short.wav"}, descriptions=("speech",))
    assert [item.asset_id for item in found.open_items.values()] == ["short.wav"]
    assert causes(found) == [("bad_duration", "duration_seconds")]


def test_planned_halo_is_the_one_that_the_separator_needs():
    for solver in (None, SolverConfig("midpoint", 1 / 8)):
        separator = Separator("tiny", options=SeparatorOptions(solver=solver))
        assert describe("tiny", solver).halo_frames == separator.halo_frames
