"""The stages as plain functions: what they do with errors, dead workers and races. No Ray needed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from archive import write_broken, write_good, write_manifest
from line import Line

from operators.media import StemWriter
from pipeline.attempts import Attempts
from pipeline.config import JobConfig
from pipeline.items import Work, part_names
from pipeline.keys import attempt_key
from pipeline.schema import FailureRow, StemRow
from pipeline.stages import DecodeStage, SeparateStage


def line_over(root: Path, lake: str, names: list[str]) -> Line:
    """The stages of a job over a small archive."""
    write_good(root / "media")
    write_broken(root / "media")
    manifest = write_manifest(root / "media", names, root / "m.parquet")
    prefixes = (str(root / "media"),)
    return Line(
        JobConfig(
            manifest=str(manifest),
            lake=lake,
            allowed_read_prefixes=prefixes,
            descriptions=("speech",),
            segment_seconds=12,
        )
    )


def test_work_survives_the_trip_through_json(tmp_path):
    line = line_over(tmp_path, str(tmp_path / "lake"), ["long.flac"])
    for work in line.plan().todo:
        assert Work.from_json(work.to_json()) == work


def test_plan_is_longest_first_and_the_same_every_time(tmp_path):
    line = line_over(tmp_path, str(tmp_path / "lake"), ["short.wav", "long.flac", "film.mp4"])
    first, second = line.plan(), line.plan()
    assert [w.asset.asset_id for w in first.todo] == ["long.flac"] * 3 + ["film.mp4", "short.wav"]
    assert first.todo == second.todo


def test_last_part_joins_the_item_and_leaves_no_parts(tmp_path, lake):
    line = line_over(tmp_path, lake, ["long.flac"])
    rows = line.separated(line.plan().todo)
    kinds = [result["kind"] for result in line.write(rows[::-1])]  # the order of segments must not matter
    assert kinds == ["part", "part", "stem"]
    assert line.store.list("parts") == []
    assert len(line.store.list("commits")) == 1


def test_plan_leaves_out_stored_parts_and_joins_what_a_dead_run_left(tmp_path, lake):
    line = line_over(tmp_path, lake, ["long.flac"])
    works = line.plan().todo
    rows = line.separated(works)
    assert [r["kind"] for r in line.write(rows[:2])] == ["part", "part"]
    (left,) = line.plan().todo
    assert left.segment is not None and left.segment.index == 2
    (stem,) = [StemRow.model_validate_json(r["row"]) for r in line.write(rows[2:])]
    stems = {key: line.store.read_bytes(key) for key in line.store.list("stems")}
    # Now as if the last writer had died between its part and the marker.
    line.store.delete_prefix("commits")
    for row in rows:
        work = Work.from_json(row["work"])
        *stems_names, facts = part_names(line.context.config_hash, work.asset, work.segment.index)
        line.store.write_bytes(facts, row["facts"].encode())
        for name, samples in zip(stems_names, (row["target"], row["residual"]), strict=True):
            with StemWriter(tmp_path / "part.wav", 48_000, samples.shape[0], "wav") as writer:
                writer.write(samples)
            line.store.upload(tmp_path / "part.wav", name)
    (join,) = line.plan().todo
    assert join.segment is None
    (again,) = line.write(line.separated([join]))
    assert StemRow.model_validate_json(again["row"]).target_uri == stem.target_uri
    assert {key: line.store.read_bytes(key) for key in line.store.list("stems")} == stems


def test_second_writer_of_an_item_gets_the_first_ones_row(tmp_path, lake):
    line = line_over(tmp_path, lake, ["short.wav"])
    rows = line.separated(line.plan().todo)
    first, second = line.write(rows)[0], line.write(rows)[0]
    assert first["row"] == second["row"]
    assert len(line.store.list("commits")) == 1


@pytest.mark.parametrize("stage", ["decode", "separate"])
def test_item_whose_worker_died_too_often_is_recorded_and_not_tried(tmp_path, stage):
    line = line_over(tmp_path, str(tmp_path / "lake"), ["short.wav", "film.mp4"])
    works = line.plan().todo
    victim = next(w for w in works if w.asset.asset_id == "short.wav").asset
    for _ in range(line.context.config.max_attempts):
        line.store.write_bytes(attempt_key(victim.item_id, 0, stage), b"")
    results = line.write(line.separated(works))
    failures = [FailureRow.model_validate_json(r["row"]) for r in results if r["kind"] == "failure"]
    assert [(f.asset_id, f.stage, f.cause) for f in failures] == [("short.wav", stage, "worker_died")]
    assert [r["kind"] for r in results].count("stem") == 1


def test_notes_of_attempts_go_when_the_work_ends(tmp_path):
    line = line_over(tmp_path, str(tmp_path / "lake"), ["short.wav"])
    (work,) = line.plan().todo
    line.store.write_bytes(attempt_key(work.asset.item_id, 0, "separate"), b"")  # one death in an earlier run
    results = line.write(line.separated([work]))
    assert results[0]["kind"] == "stem"
    assert line.store.list("attempts") == []


def test_an_error_inside_an_attempt_is_no_death(tmp_path):
    line = line_over(tmp_path, str(tmp_path / "lake"), ["short.wav"])
    (work,) = line.plan().todo
    with pytest.raises(RuntimeError), Attempts(line.store, work.asset, 0, "decode", 3):
        raise RuntimeError("the decoder gave up")
    assert line.store.list("attempts") == []


def test_bad_segment_fails_alone_in_its_batch(tmp_path):
    line = line_over(tmp_path, str(tmp_path / "lake"), ["short.wav", "film.mp4"])
    works = line.plan().todo
    decoded = [DecodeStage(line.context)({"work": work.to_json()}) for work in works]
    decoded[0]["audio"] = np.full_like(decoded[0]["audio"], np.nan)
    batch = {name: [row[name] for row in decoded] for name in decoded[0]}
    rows = [{name: values[0] for name, values in row.items()} for row in SeparateStage(line.context)(batch)]
    assert sorted(result["kind"] for result in line.write(rows)) == ["failure", "stem"]


def test_file_that_changed_since_the_plan_is_not_separated(tmp_path):
    line = line_over(tmp_path, str(tmp_path / "lake"), ["short.wav"])
    (work,) = line.plan().todo
    path = tmp_path / "media" / "short.wav"
    path.write_bytes(path.read_bytes()[:-4000])
    (result,) = line.write(line.separated([work]))
    assert FailureRow.model_validate_json(result["row"]).cause == "source_changed"


def test_opus_that_ends_before_its_header_says_is_separated(tmp_path):
    line = line_over(tmp_path, str(tmp_path / "lake"), ["tape.opus"])
    source = [str(tmp_path / "media" / name) for name in ("short.wav", "tape.opus")]
    subprocess.run(["ffmpeg", "-v", "error", "-i", source[0], "-c:a", "libopus", source[1]], check=True)
    (result,) = line.write(line.separated(line.plan().todo))
    assert result["kind"] == "stem"


def test_rows_leave_the_model_in_the_order_of_their_batch(tmp_path):
    line = line_over(tmp_path, str(tmp_path / "lake"), ["film.mp4", "cut.wav", "short.wav"])
    works = line.plan().todo
    rows = line.separated(works)
    assert [Work.from_json(row["work"]).asset.asset_id for row in rows] == [work.asset.asset_id for work in works]


def test_what_decodes_and_writes_does_without_torch():
    """Half a gigabyte and four seconds for every worker: only the actor with the model needs it."""
    code = "import sys, pipeline.stages, pipeline.write, operators.media; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
