"""Training manifests: read strictly, split for good, and too little is said before training starts."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from operators.sam_audio.config import ConfigError
from pipeline.config import JobConfigError
from pipeline.training_manifest import TrainingRow, collection, manifest_bytes, read_training_manifest

DOG = {"uri": "/a/dog.wav", "label": "dog", "descriptions": ("dog barking",), "duration_seconds": 3.0}


def write(folder: Path, *rows: dict) -> str:
    pq.write_table(pa.Table.from_pylist(list(rows)), folder / "m.parquet")
    return str(folder / "m.parquet")


def test_rows_come_back_as_they_were_written(tmp_path):
    stems = (DOG, {"uri": "/a/rain.wav", "label": "rain", "duration_seconds": 2.0})
    rows = [TrainingRow(**DOG, split="train"), TrainingRow(uri="/a", stems=stems)]
    (tmp_path / "m.parquet").write_bytes(manifest_bytes(rows))
    assert read_training_manifest(str(tmp_path / "m.parquet")) == rows
    assert rows[1].duration_seconds == 2.0  # of its shortest stem


def test_two_columns_are_enough_and_others_are_allowed(tmp_path):
    (row,) = read_training_manifest(write(tmp_path, {"uri": "/a/x.wav", "duration_seconds": 1.5, "licence": "CC0"}))
    assert (row.kind, row.label, row.stems) == ("sfx", "", ())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"duration_seconds": None}, "row 1: column duration_seconds"),
        ({"kind": "noise"}, "row 1: column kind"),
        ({"split": "eval"}, "row 1: column split"),
        ({"stems": [DOG]}, "row 1: column stems"),
    ],
)
def test_a_wrong_row_is_named_with_its_column(tmp_path, change, message):
    with pytest.raises(JobConfigError, match=message):
        read_training_manifest(
            write(tmp_path, {"kind": "sfx", "split": "train", "stems": None, **DOG}, {**DOG, **change})
        )


def test_a_manifest_that_is_missing_or_empty_is_said_so(tmp_path):
    with pytest.raises(JobConfigError, match="cannot be read"):
        read_training_manifest(str(tmp_path / "none.parquet"))
    (tmp_path / "empty.parquet").write_bytes(manifest_bytes([]))
    with pytest.raises(JobConfigError, match="holds no rows"):
        read_training_manifest(str(tmp_path / "empty.parquet"))


def test_recordings_keep_their_side_and_about_a_twentieth_is_held_out():
    rows = [TrainingRow(uri=f"/a/{i}.wav", duration_seconds=1) for i in range(2000)]
    held_out = [row.uri for row in rows if row.part == "validation"]
    assert 60 < len(held_out) < 140
    assert held_out == [row.uri for row in rows[:] if row.part == "validation"]
    assert TrainingRow(**DOG, split="validation").part == "validation"


def test_a_collection_holds_one_side_and_must_be_enough_to_mix():
    rain = {**DOG, "uri": "/a/rain.wav", "label": "rain"}
    rows = [
        TrainingRow(**DOG, split="train"),
        TrainingRow(**rain, split="train"),
        TrainingRow(**DOG, split="validation"),
    ]
    found = collection(rows, "train")
    assert [source.label for source in found.sources] == ["dog", "rain"] and not found.mixtures
    with pytest.raises(ConfigError, match="two different labels"):
        collection(rows, "validation")
