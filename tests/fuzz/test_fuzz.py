"""Hostile media, masks and manifests: each is answered, with a cause, in time and within the memory limit.

`make test` runs a seeded sample; `make fuzz` runs all cases, goes on where it was interrupted (delete out/fuzz to begin
anew), prints a table and writes out/fuzz.json.
"""

from __future__ import annotations

import json
from pathlib import Path

import cases
import corpus
import harness
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import records
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config import JobConfigError
from pipeline.manifest import read_manifest

ROOT = Path(__file__).parents[2]
MINIMUM_CASES = 2000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def line(folder: Path) -> harness.Line:
    return harness.Line(folder, corpus.seeds(folder / "seeds")["mkv"])


@pytest.fixture(autouse=True)
def elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `touch pwned` would leave its file."""
    monkeypatch.chdir(folder)
    return folder


def test_seeds_themselves_are_decoded(line: harness.Line, folder: Path) -> None:
    for kind, content in corpus.seeds(folder / "seeds").items():
        outcome = harness.run_case(line, harness.Case("seeds", f"seed.{kind}", content))
        assert outcome.causes == {"decoded": 1}, kind
    for kind, content in corpus.mask_seeds(folder / "seeds").items():
        outcome = harness.run_case(line, harness.Case("masks: seeds", f"masks.{kind}", content))
        assert outcome.causes == {"decoded": 1}, kind


def test_sample_of_all_cases_is_answered_in_time_and_within_memory(line: harness.Line, folder: Path) -> None:
    outcomes = list(harness.run_all(line, cases.sample(folder, mutants=3, manifests=4)))
    figures = harness.report(outcomes)
    harness.show(figures)
    assert figures["faults"] == {}
    assert len(figures["causes"]) > 8  # it is hostile enough
    assert not (folder / "pwned").exists()


@pytest.mark.fuzz
def test_every_case_is_answered_in_time_and_within_memory() -> None:
    work, out = ROOT / "out" / "fuzz", ROOT / "out"
    line = harness.Line(work, corpus.seeds(work / "seeds")["mkv"])
    outcomes = list(harness.run_all(line, cases.every(work), work / "outcomes.jsonl"))
    figures = harness.report(outcomes)
    harness.show(figures)
    (out / "fuzz.json").write_text(json.dumps(figures, indent=1) + "\n")
    assert figures["faults"] == {}
    assert figures["cases"] >= MINIMUM_CASES


# What hypothesis can shrink: rows, and manifests' columns.

anything = st.one_of(
    st.sampled_from(records.TEXTS),
    st.sampled_from(records.VALUES),
    st.text(max_size=40),
    st.floats(),
    st.integers(),
    st.lists(st.one_of(st.text(max_size=5), st.floats(), st.none()), max_size=4),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
)
slow_machine = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@slow_machine
@given(row=st.dictionaries(st.sampled_from(records.COLUMNS), anything, max_size=8))
def test_any_row_is_planned_or_rejected_with_a_cause(line: harness.Line, row: dict) -> None:
    answers = line.answers([{"asset_id": "a", "uri": str(line.film), **row}])
    assert sum(answers.values()) >= 1
    assert not [cause for cause in answers if cause.partition(":")[0] in harness.FAULTS]


columns = st.sampled_from(
    [
        pa.array([1, 2], pa.int8()),
        pa.array([1.5, None], pa.float16()),
        pa.array(["é", None]),
        pa.array([b"\xff", b""]),
        pa.array([None, None]),
        pa.array([True, None]),
        pa.array([[1], None], pa.list_(pa.int64())),
        pa.array([{"a": 1}, None]),
        pa.array([0, 2**62], pa.timestamp("ns")),
        pa.array([0, 1], pa.duration("s")),
        pa.array(["dog", "cat"]).dictionary_encode(),
        pa.array([["dog"], []], pa.list_(pa.string())),
        pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64())),
        pa.array([1, 2], pa.decimal128(38, 2)),
    ]
)


@slow_machine
@given(table=st.dictionaries(st.sampled_from(records.COLUMNS), columns, min_size=1, max_size=8))
def test_any_manifest_is_answered_row_by_row_or_refused_as_a_whole(line: harness.Line, table: dict) -> None:
    path = line.root / "columns.parquet"
    pq.write_table(pa.table(table), path)
    try:
        answers = line.answers(read_manifest(str(path)))
    except JobConfigError as error:
        assert "asset_id" in str(error) or "uri" in str(error)
        assert not {"asset_id", "uri"} <= table.keys()
        return
    assert sum(answers.values()) == 2
    assert not [cause for cause in answers if cause.partition(":")[0] in harness.FAULTS]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(99) + b"PAR1", b"not a table"])
def test_a_manifest_that_is_no_table_is_refused_with_its_name(folder: Path, content: bytes) -> None:
    path = folder / "broken.parquet"
    path.write_bytes(content)
    with pytest.raises(JobConfigError, match=r"broken\.parquet"):
        list(read_manifest(str(path)))


def _unreadable(kind: str) -> pa.Array:
    if kind == "text":
        raw = pa.array([b"\xff\xfe", b"ok"])
        return pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    return pa.array([2**60, 0], pa.timestamp("ms"))


@pytest.mark.parametrize("kind", ["text", "time"])
def test_a_column_that_python_has_no_values_for_is_named(folder: Path, kind: str) -> None:
    path = folder / "column.parquet"
    pq.write_table(pa.table({"asset_id": ["a", "b"], "uri": ["/a", "/b"], "shelf": _unreadable(kind)}), path)
    with pytest.raises(JobConfigError, match="column shelf cannot be read"):
        list(read_manifest(str(path)))


@pytest.mark.fuzz
def test_a_million_wrong_rows_are_each_rejected_within_memory(folder: Path) -> None:
    """Nine assets of ten are named twice, and each row is wrong in one of four ways: nothing of it can be planned."""
    line = harness.Line(folder / "million", b"no film")
    rows = 1_000_000
    uris = [("/etc/passwd", "http://x/y", "s3://", str(folder / "missing.wav"))[i % 4] for i in range(rows)]
    table = {
        "asset_id": [f"a-{i % 900_000}" for i in range(rows)],
        "uri": uris,
        "channels": [i % 3 for i in range(rows)],
    }
    pq.write_table(pa.table(table), folder / "million.parquet")
    del table, uris
    before = psutil.Process().memory_info().rss
    with harness.peak_memory() as peak:
        answers = line.answers(read_manifest(str(folder / "million.parquet")))
    print(f"\n1,000,000 wrong rows: {dict(answers)}, {(peak[0] - before) / 1e9:.2f} GB more than before")
    assert sum(answers.values()) == rows and set(answers) == {"invalid_row", "forbidden_uri"}
    assert peak[0] - before < 6e9
