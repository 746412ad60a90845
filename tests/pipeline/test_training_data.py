"""Examples on Ray Data: the same ones in the same order, whoever makes them, from any step on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import soundfile as sf
import torch

from operators.errors import AssetError
from operators.sam_audio.training.mixing import Collection, MixingOptions, Source
from pipeline.storage import StorageError
from pipeline.training_data import ExampleSource, MakeExample, Share, batches, make_example

RATE, HOP = 8000, 320


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(0)
    for name in ("dog", "rain", "bell"):
        sf.write(folder / f"{name}.wav", rng.normal(0, 0.1, 3 * RATE), RATE)
    (folder / "broken.wav").write_bytes(b"no sound")
    return folder


def recording(folder: Path, name: str) -> Source:
    return Source(str(folder / f"{name}.wav"), "sfx", name, 3.0, (name,))


def sounds(folder: Path, *names: str) -> Collection:
    return Collection(tuple(recording(folder, name) for name in names), ())


def source(folder: Path, reference: object = None) -> ExampleSource:
    options = MixingOptions(clip_seconds=0.4)
    return ExampleSource(reference, options, 7, RATE, HOP, str(folder / "lake"), (str(folder),))  # type: ignore[arg-type]


def test_shares_of_workers_cover_every_step_once():
    whole = [Share(0, 6, 6).number(2, i) for i in range(18)]
    assert whole == list(range(12, 30))
    parts = [Share(offset, 2, 6).number(2, i) for offset in (0, 2, 4) for i in range(6)]
    assert sorted(parts) == whole
    assert [Share(2, 2, 6).number(2, i) for i in range(4)] == [14, 15, 20, 21]


def test_an_example_is_the_same_wherever_it_is_made(folder):
    found = sounds(folder, "dog", "rain", "bell")
    first, again = (make_example(source(folder), found, 5) for _ in range(2))
    assert first["waves"].shape == (2, 3200) and first["waves"].dtype == np.float32
    assert np.array_equal(first["waves"], again["waves"]) and first["description"] == again["description"]
    assert not np.array_equal(first["waves"], make_example(source(folder), found, 6)["waves"])


def test_an_unreadable_recording_costs_its_examples_only(folder):
    with_broken = sounds(folder, "dog", "rain", "broken")
    failing = next(n for n in range(50) if _fails(folder, with_broken, n))
    reference = _Reference(with_broken)
    row = MakeExample(source(folder, reference), Share(0, 1, 1), failing)({"id": 0})
    assert row["number"] == failing and np.isfinite(row["waves"]).all() and row["waves"].any()


def test_a_manifest_of_which_nothing_can_be_read_ends_the_run(folder):
    gone = Collection((recording(folder, "gone"), recording(folder, "lost")), ())
    with pytest.raises(StorageError, match="could not be read, the last with not_found"):
        MakeExample(source(folder, _Reference(gone)), Share(0, 1, 1), 0)({"id": 0})


def test_recordings_outside_the_allowed_folders_are_not_read(folder):
    elsewhere = replace(source(folder), read_prefixes=("/nowhere",))
    with pytest.raises(AssetError, match="forbidden_uri"):
        make_example(elsewhere, sounds(folder, "dog", "rain"), 0)


class _Reference:
    """Stands for an object of Ray's store that this process has fetched before."""

    def __init__(self, held: Collection) -> None:
        from pipeline import training_data

        training_data._held.clear()
        training_data._held[self.hex()] = held

    def hex(self) -> str:
        return f"{id(self):x}"


def _fails(folder: Path, found: Collection, number: int) -> bool:
    try:
        make_example(source(folder), found, number)
    except AssetError:
        return True
    return False


@pytest.mark.usefixtures("cluster")
def test_a_worker_that_starts_later_sees_what_it_would_have_seen(folder):
    made = source(folder, ray.put(sounds(folder, "dog", "rain", "bell")))
    share = Share(2, 2, 4)
    whole = list(batches(made, share, 0, 3, 2))
    assert [batch.numbers for batch in whole] == [[2, 3], [6, 7], [10, 11]]
    later = list(batches(made, share, 1, 3, 1))
    assert [batch.numbers for batch in later] == [[6], [7], [10], [11]]
    assert torch.equal(later[2].target[0], whole[2].target[0])
    assert [b.descriptions for b in later[:2]] == [[text] for text in whole[1].descriptions]
