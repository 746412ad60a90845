"""The layouts of sets, read from small copies of them; and what is wrong with a folder is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from evaluation_sets import write_bench, write_musdb
from packs import write_pack
from released_layout import write_released

from operators.errors import AssetError
from operators.evaluation.eval_split import EvalSplit
from operators.evaluation.items import Joined, SetError, slug
from operators.evaluation.metrics import si_sdr
from operators.evaluation.musdb import Musdb
from operators.evaluation.reference_free import JudgeMetric
from operators.evaluation.sam_audio_bench import PICTURE, SETTINGS, SamAudioBench
from operators.evaluation.sets import open_set
from operators.evaluation.systems import Separator
from operators.sam_audio import SAMAudio


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pack(tmp_path_factory.mktemp("pack"))


@pytest.fixture(scope="module")
def musdb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_musdb(tmp_path_factory.mktemp("musdb"))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bench(tmp_path_factory.mktemp("bench"))


def test_mixes_are_the_same_whatever_the_order_and_count(pack: Path):
    forwards, backwards = EvalSplit(pack, count=3), EvalSplit(pack, count=5)
    for pair in range(4):
        for number in (2, 0, 1):
            a, b = forwards[pair * 3 + number], backwards[pair * 5 + number]
            assert a.item_id == b.item_id
            np.testing.assert_array_equal(a.mixture, b.mixture)
    assert len({item.mixture[1000] for item in (forwards[i] for i in range(12))}) == 12


def test_mix_is_its_two_sounds_at_equal_power(pack: Path):
    item = EvalSplit(pack, count=1)[0]
    assert (item.setting, item.description, item.kind) == ("speech in music", "speech", "speech")
    np.testing.assert_allclose(item.mixture, item.target + item.other, atol=1e-6)
    assert np.mean(item.target**2) == pytest.approx(np.mean(item.other**2), rel=1e-3)
    assert item.seconds == 8.0


def test_mixes_with_pauses_have_pauses(pack: Path):
    def silent(items: EvalSplit) -> float:
        targets = [items[i].target for i in range(len(items))]
        return float(np.mean([np.abs(t).reshape(-1, 4800).max(1) < 1e-4 for t in targets]))

    speech = [("speech", "music")]
    assert silent(EvalSplit(pack, count=6, pairs=speech)) < 0.1
    assert silent(EvalSplit(pack, count=6, pairs=speech, pauses=True)) > 0.1


def test_joined_sets_count_on(pack: Path):
    plain, paused = EvalSplit(pack, count=1), EvalSplit(pack, count=1, pauses=True)
    both = Joined("both", [plain, paused])
    assert len(both) == 8 and both[5].item_id == paused[1].item_id
    with pytest.raises(IndexError):
        both[8]


def test_songs_give_the_excerpt_in_which_the_stem_is_loudest(musdb: Path):
    items = Musdb(musdb, excerpt_seconds=6.0)
    assert len(items) == 6 and {items[i].setting for i in range(6)} == {"vocals", "drums", "bass"}
    vocals = items[0]
    assert vocals.sample_rate == 48_000 and len(vocals.mixture) == 6 * 48_000
    start = float(vocals.item_id.rpartition("Second-")[2].rpartition("First-")[2].replace("-", "."))
    assert start >= 5  # before that they rest
    np.testing.assert_allclose(vocals.mixture, vocals.target + vocals.other, atol=1e-6)
    assert si_sdr(vocals.mixture, vocals.target) > -10


def test_whole_songs_and_limits(musdb: Path):
    items = Musdb(musdb, excerpt_seconds=0, settings=["bass"], limit=1)
    assert len(items) == 1 and items[0].seconds == pytest.approx(14.0, abs=0.01)


def test_segments_of_a_table_are_instr_pro(musdb: Path, tmp_path: Path):
    rows = [{"id": "A Band - First", "start_time": 2.0, "end_time": 4.5, "description": d} for d in ("drums", "piano")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "segments.parquet")
    items = Musdb(musdb, segments=tmp_path / "segments.parquet")
    assert [items[i].description for i in range(2)] == ["drums", "piano"]
    assert items[0].seconds == 2.5 and items[0].target is not None
    assert items[1].target is None  # MUSDB has no such stem


@pytest.mark.parametrize("name", ["../../etc", "A Band - Third"])
def test_a_segment_of_no_song_is_refused(musdb: Path, tmp_path: Path, name: str):
    row = {"id": name, "start_time": 0.0, "end_time": 1.0, "description": "bass"}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "segments.parquet")
    with pytest.raises(SetError, match="column id"):
        Musdb(musdb, segments=tmp_path / "segments.parquet")


def test_bench_gives_each_setting_its_prompts(bench: Path):
    items = SamAudioBench(bench, settings=["speech", "speech-span", "speaker-visual", "music"])
    text, span, visual, music = (items[i] for i in range(4))
    assert text.kind == "speech" and text.anchors == () and text.masked_video is None and text.target is None
    assert text.seconds == pytest.approx(4.0) and text.description == "man speaking"
    assert span.anchors == (("+", 0.5, 2.0), ("+", 3.0, 3.5))
    np.testing.assert_array_equal(span.mixture, text.mixture)
    assert visual.masked_video.shape == (100, 3, PICTURE, PICTURE)
    # The object (left half) is kept, the rest is black.
    left, right = visual.masked_video[:, :, :, : PICTURE // 2 - 4], visual.masked_video[:, :, :, PICTURE // 2 + 4 :]
    assert left.float().mean() > 10 and right.float().mean() < 1
    assert music.seconds == pytest.approx(4.0, abs=0.1)  # from a file that was cut already
    assert len({items[i].item_id for i in range(4)}) == 4


def test_bench_media_that_is_missing_fails_its_item_only(bench: Path):
    items = SamAudioBench(bench, settings=["sfx", "music"])
    with pytest.raises(AssetError, match=r"gone\.mp4 is missing"):
        items[0]
    assert items[1].description == "music"


def test_bench_names_cannot_lead_out_of_the_folder(bench: Path):
    with pytest.raises(SetError, match="no file name"):
        SamAudioBench(bench, settings=["instr-wild"])[0]


def test_all_settings_of_the_paper_are_known():
    plain = {"sfx", "speech", "speaker", "music", "instr-wild"}
    assert plain | {f"{s}-span" for s in plain} | {f"{s}-visual" for s in ("sfx", "speaker", "instr-wild")} == set(
        SETTINGS
    )


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("eval-split", None, "training.fetch"),
        ("musdb18hq", None, "one folder a song"),
        ("sam-audio-bench", None, "facebook/sam-audio-bench"),
        ("sam-audio-bench", ["instr-pro"], "MUSDB18-HQ"),
        ("fsd", None, "known are eval-split"),
    ],
)
def test_a_folder_that_is_no_such_set_is_explained(tmp_path: Path, name: str, settings: list[str] | None, said: str):
    with pytest.raises(SetError, match=said):
        open_set(name, tmp_path, settings=settings)


def test_names_from_tables_become_plain_file_names():
    assert slug("../../etc/passwd", 3) == "etc-passwd-3"
    assert slug("…") == "item"


def test_a_model_of_the_released_layout_sees_the_video_and_is_judged(bench: Path, tmp_path: Path):
    """Random weights: what counts is that prompts, rates and pictures arrive, and that the judge answers."""
    released = write_released(tmp_path)
    visual, text = (SamAudioBench(bench, settings=[s])[0] for s in ("speaker-visual", "speech"))
    model = SAMAudio.from_pretrained(str(released.sam_audio))
    system = Separator(model, name="random")
    seen, unseen = system(visual), system(text)
    assert seen.shape == visual.mixture.shape and np.isfinite(seen).all()
    assert not np.allclose(seen, unseen, atol=1e-4)
    scores = JudgeMetric(str(released.judge))(text, unseen)
    assert set(scores) == set(JudgeMetric.columns) and np.isfinite(list(scores.values())).all()
