"""Folders of recordings become training manifests: labels by folder, stems by song."""

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from jobs.build_training_manifest import held_out, main
from pipeline.training_manifest import TrainingRow, read_training_manifest


def recording(path: Path, seconds: float = 1.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, np.zeros(int(8000 * seconds), np.float32), 8000)


def build(media: Path, *options: str) -> list[TrainingRow]:
    out = media / "training.parquet"
    assert main(["--media", str(media), "--out", str(out), *options]) == 0
    return read_training_manifest(str(out))


def test_folders_say_what_is_heard_and_on_which_side(tmp_path, capsys):
    recording(tmp_path / "train" / "dog_barking" / "a.wav", 2.0)
    recording(tmp_path / "train" / "man speaking" / "b.flac")
    recording(tmp_path / "test" / "dog_barking" / "c.wav")
    (tmp_path / "train" / "dog_barking" / "notes.txt").write_text("not audio")
    (tmp_path / "train" / "dog_barking" / "broken.wav").write_text("not audio either")
    rows = {Path(row.uri).name: row for row in build(tmp_path)}
    assert set(rows) == {"a.wav", "b.flac", "c.wav"}
    assert (rows["a.wav"].label, rows["a.wav"].kind, rows["a.wav"].duration_seconds) == ("dog barking", "sfx", 2.0)
    assert rows["b.flac"].kind == "speech" and rows["b.flac"].split == "train"
    assert rows["c.wav"].split == "validation"
    said = capsys.readouterr().out
    assert "left out    1" in said and "broken.wav" in said


def test_songs_of_stems_become_mixtures_without_their_mix(tmp_path):
    for stem in ("vocals", "drums", "mixture"):
        recording(tmp_path / "train" / "song" / f"{stem}.wav", 3.0 if stem == "drums" else 2.0)
    recording(tmp_path / "train" / "alone" / "vocals.wav")
    (row,) = build(tmp_path, "--layout", "stems")
    assert sorted(stem.label for stem in row.stems) == ["drums", "vocals"]
    assert row.duration_seconds == 2.0 and row.split == "train" and Path(row.uri).name == "song"


def test_a_tenth_of_each_sound_is_held_out_and_at_least_one_of_three():
    rows = [TrainingRow(uri=f"/d/{i}", label="dog", duration_seconds=1) for i in range(30)]
    rows += [TrainingRow(uri=f"/c/{i}", label="cat", duration_seconds=1) for i in range(3)]
    rows += [TrainingRow(uri=f"/h/{i}", label="hen", duration_seconds=1) for i in range(2)]
    chosen = [row.label for row in held_out(rows) if row.split == "validation"]
    assert (chosen.count("dog"), chosen.count("cat"), chosen.count("hen")) == (3, 1, 0)


@pytest.mark.parametrize("name", ["loose.wav", "train/loose.wav"])
def test_a_recording_in_no_folder_is_left_out_with_the_remedy(tmp_path, capsys, name):
    recording(tmp_path / name)
    recording(tmp_path / "rain" / "a.wav")
    assert [row.label for row in build(tmp_path)] == ["rain"]
    assert "put recordings of a sound into a folder" in capsys.readouterr().out


def test_nothing_to_list_is_an_error(tmp_path, capsys):
    assert main(["--media", str(tmp_path), "--out", str(tmp_path / "m.parquet")]) == 2
    assert "no recordings below" in capsys.readouterr().err
