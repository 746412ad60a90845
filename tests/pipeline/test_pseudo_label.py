"""Which stems of a lake become training data: thresholds on the judge, on CLAP and on activity; the newest of each."""

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from lake_rows import NOON, stem_row

from jobs.pseudo_label import main
from pipeline.pseudo_label import Hear, Thresholds, newest, training_row
from pipeline.storage import Store
from pipeline.tables import Tables
from pipeline.training_manifest import collection, read_training_manifest

RATE = 48_000


def write_stem(store: Store, url: str, active: float, seconds: float = 2.0) -> None:
    """Noise in the first part of a stem, and a hiss far below the threshold in the rest."""
    rng = np.random.default_rng(0)
    wave = rng.normal(0, 1e-4, round(seconds * RATE))
    wave[: round(active * len(wave))] *= 1000
    path = Path(store._path(store.key_of(url)))
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, wave.astype(np.float32), RATE)


class Clap:
    """Hears a dog in what is loud."""

    def __call__(self, *, extracted_audio, descriptions, sample_rate):
        assert descriptions == ["dog barking"] and sample_rate == RATE
        return torch.stack([wave.std(-1) * 5 for wave in extracted_audio])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "lake"))


def hear(store: Store, active: float, thresholds: Thresholds, clap: Clap | None = None) -> str:
    row = stem_row(store, "a", description="dog barking").model_dump()
    write_stem(store, row["target_uri"], active)
    return Hear(thresholds, store.root, clap)(row)["reason"]


def test_a_target_must_sound_long_enough(store):
    assert hear(store, 0.5, Thresholds(active=0.4)) == ""
    assert hear(store, 0.2, Thresholds(active=0.4)) == "active under 40%"
    assert hear(store, 0.2, Thresholds(active=0.4, silence_db=-90.0)) == ""


def test_a_target_must_agree_with_its_description(store):
    assert hear(store, 1.0, Thresholds(clap=0.3), Clap()) == ""
    assert hear(store, 0.1, Thresholds(clap=0.3), Clap()) == "CLAP under 0.3"


def test_a_stem_that_is_gone_is_left_out_and_named(store):
    row = stem_row(store, "a").model_dump()
    assert Hear(Thresholds(), store.root)(row)["reason"] == "unreadable: not_found"


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ({"judge_overall": 4.5, "judge_precision": 4.0}, None),
        ({"judge_overall": 3.9, "judge_precision": 4.0}, "overall under 4"),
        ({"judge_overall": 4.5, "judge_precision": 2.0}, "precision under 3"),
        ({}, "not judged"),
    ],
)
def test_the_judge_must_be_content(store, scores, reason):
    row = stem_row(store, "a", **scores).model_dump()
    assert Thresholds(overall=4.0, precision=3.0).judge_fails(row) == reason
    assert Thresholds().judge_fails(row) is None


def test_only_the_newest_stems_of_a_prompt_count(store):
    old = stem_row(store, "a", config_hash="a" * 16).model_dump()
    new = stem_row(store, "a", committed_at=NOON + timedelta(hours=1)).model_dump()
    wordless = stem_row(store, "b", description=None).model_dump()
    assert newest([new, old, wordless]) == [new]


def test_an_item_is_a_mixture_of_its_stems(store):
    row = training_row(stem_row(store, "a", description="dog barking").model_dump())
    found = collection([row.model_copy(update={"split": "train"})], "train")
    target, residual = found.mixtures[0].stems
    assert (target.descriptions, target.kind, target.seconds) == (("dog barking",), "sfx", 9.0)
    assert residual.descriptions == ("everything except dog barking",)


@pytest.mark.usefixtures("cluster")
def test_the_job_writes_a_manifest_once_and_says_what_it_left_out(store, tmp_path, capsys):
    rows = [
        stem_row(store, name, description="dog barking", judge_overall=score, duration_seconds=2.0)
        for name, score in (("good", 4.5), ("poor", 2.0), ("still", 4.6))
    ]
    Tables(store).add_stems(rows)
    for row, active in zip(rows, (0.8, 0.8, 0.0), strict=True):
        write_stem(store, row.target_uri, active)
    out = str(tmp_path / "lake" / "manifests" / "dogs.parquet")
    arguments = ["--lake", store.root, "--out", out, "--min-overall", "4"]
    assert main(arguments) == 0
    (kept,) = read_training_manifest(out)
    assert kept.uri == "/media/good" and kept.stems[0].uri == rows[0].target_uri
    said = capsys.readouterr().out
    assert "kept      1 items" in said and "overall under 4 1" in said and "active under 5% 1" in said
    assert main(arguments) == 2
    assert "not overwritten" in capsys.readouterr().err
