from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from media_files import DEMO

from operators.encode import read_stem
from operators.render import Output, Rendered, render

RATE = 48_000
Pair = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def stems() -> Pair:
    """Speech and music, `[2, n]` float32, four seconds."""
    speech, music = (
        soundfile.read(DEMO / name, frames=4 * RATE, dtype="float32")[0].T for name in ("speech.flac", "music.flac")
    )
    return speech.copy(), music.copy()


def loud(stems: Pair, peak: float) -> Pair:
    """The stems with the target's highest sample at `peak`."""
    gain = np.float32(peak / np.abs(stems[0]).max())
    return stems[0] * gain, stems[1] * gain


def write(folder: Path, stems: Pair, output: Output, rate: int = RATE, piece: int = 50_001) -> Rendered:
    def pieces() -> Iterator[Pair]:
        for begin in range(0, stems[0].shape[1], piece):
            yield stems[0][:, begin : begin + piece], stems[1][:, begin : begin + piece]

    return render([folder / "target", folder / "residual"], pieces, rate, output)


def test_stems_within_full_scale_are_stored_as_they_are(stems: Pair, tmp_path: Path) -> None:
    rendered = write(tmp_path, stems, Output("flac", RATE))
    np.testing.assert_allclose(read_stem(tmp_path / "target"), stems[0], atol=2**-24)
    np.testing.assert_allclose(read_stem(tmp_path / "residual"), stems[1], atol=2**-24)
    assert (rendered.gain_db, rendered.bit_depth, rendered.channels, rendered.sample_rate) == (0, 24, 2, RATE)
    assert rendered.duration_seconds == 4


@pytest.mark.parametrize(("form", "bits"), [("flac", 24), ("flac", 16), ("wav", 16), ("opus", None)])
def test_overs_turn_both_stems_down_by_the_same_gain(form: str, bits: int | None, stems: Pair, tmp_path: Path) -> None:
    stems = loud(stems, 1.7)
    rendered = write(tmp_path, stems, Output(form, RATE, bits))  # type: ignore[arg-type]
    assert rendered.gain_db == pytest.approx(-20 * math.log10(1.7), abs=0.01)
    assert [report.clipped for report in rendered.reports] == [0, 0]
    assert 0.999 < rendered.reports[0].peak <= 1
    if form == "opus":
        return
    gain = 10 ** (rendered.gain_db / 20)
    for name, stem in zip(("target", "residual"), stems, strict=True):
        np.testing.assert_allclose(read_stem(tmp_path / name), stem * gain, atol=2.0 ** (2 - (bits or 0)))


def test_stems_that_were_turned_down_still_sum_to_the_mixture_in_proportion(stems: Pair, tmp_path: Path) -> None:
    stems = loud(stems, 3.0)
    rendered = write(tmp_path, stems, Output("flac", RATE))
    total = read_stem(tmp_path / "target") + read_stem(tmp_path / "residual")
    np.testing.assert_allclose(total / 10 ** (rendered.gain_db / 20), stems[0] + stems[1], atol=1e-6)


def test_clipping_is_counted_when_it_was_asked_for(stems: Pair, tmp_path: Path) -> None:
    stems = loud(stems, 1.7)
    rendered = write(tmp_path, stems, Output("flac", RATE, on_overs="clip"))
    assert rendered.gain_db == 0
    assert rendered.reports[0].clipped == np.count_nonzero(np.abs(stems[0]) > 1) > 0
    assert rendered.reports[0].peak == pytest.approx(1.7)
    assert np.abs(read_stem(tmp_path / "target")).max() == pytest.approx(1, abs=1e-6)


def test_float_wav_keeps_overs_and_says_so(stems: Pair, tmp_path: Path) -> None:
    stems = loud(stems, 1.7)
    rendered = write(tmp_path, stems, Output("wav", RATE))
    np.testing.assert_array_equal(read_stem(tmp_path / "target"), stems[0])
    assert (rendered.gain_db, rendered.bit_depth, rendered.reports[0].clipped) == (0, 32, 0)
    assert (rendered.loudness[0].true_peak_dbtp or 0) >= 20 * math.log10(1.7) - 0.01


def test_overs_that_only_the_new_sample_rate_has_do_not_clip(tmp_path: Path) -> None:
    # At 48 kHz the samples of this tone stay at 0.9, and the waveform between them goes up to 1.27.
    wave = (0.9 * math.sqrt(2) * np.sin(np.arange(RATE) * np.pi / 2 + np.pi / 4)).astype(np.float32)[None]
    rendered = write(tmp_path, (wave, wave / 2), Output("flac", 96_000))
    assert rendered.gain_db < -1.5
    assert [report.clipped for report in rendered.reports] == [0, 0]


@pytest.mark.parametrize("rate", [16_000, 44_100, 96_000])
def test_stems_at_another_rate_are_the_same_sound(rate: int, stems: Pair, tmp_path: Path) -> None:
    there = write(tmp_path, stems, Output("flac", rate))
    assert soundfile.info(tmp_path / "target").samplerate == there.sample_rate == rate
    assert there.reports[0].samples == 4 * rate
    plain = write(tmp_path, stems, Output("flac", RATE))
    for one, other in zip(there.loudness, plain.loudness, strict=True):
        assert one.integrated_lufs == pytest.approx(other.integrated_lufs, abs=0.5)


def test_the_size_of_pieces_changes_nothing(stems: Pair, tmp_path: Path) -> None:
    stems = loud(stems, 1.2)
    output = Output("flac", 44_100, 16)
    one = write(tmp_path, stems, output, piece=1 << 20)
    whole = read_stem(tmp_path / "target")
    other = write(tmp_path, stems, output, piece=4_801)
    np.testing.assert_allclose(read_stem(tmp_path / "target"), whole, atol=2**-15)
    assert other.gain_db == pytest.approx(one.gain_db, abs=1e-4)


def test_opus_stores_a_rate_that_it_lacks_at_the_next_higher_one(stems: Pair, tmp_path: Path) -> None:
    rendered = write(tmp_path, stems, Output("opus", 22_050))
    assert (rendered.sample_rate, rendered.bit_depth) == (24_000, None)
    assert rendered.duration_seconds == pytest.approx(4, abs=1e-3)


def test_an_error_leaves_no_half_written_stems(stems: Pair, tmp_path: Path) -> None:
    bad = stems[0].copy()
    bad[1, 150_000] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        write(tmp_path, (bad, stems[1]), Output("flac", RATE))
    assert list(tmp_path.iterdir()) == []


def test_an_item_without_sound_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no piece"):
        render([tmp_path / "target"], list, RATE, Output("flac", RATE))
