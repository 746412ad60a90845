from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from media_files import DEMO

from operators.encode import Quantiser, bit_depth_of, sample_rate_for
from operators.media import StemWriter, decode_range, read_stem, read_stem_blocks

RATE = 48_000


@pytest.fixture(scope="module")
def music() -> np.ndarray:
    """`[2, n]` float32, four seconds."""
    return soundfile.read(DEMO / "music.flac", frames=4 * RATE, dtype="float32")[0].T.copy()


def write(path: Path, samples: np.ndarray, form: str, piece: int = 10_001):
    with StemWriter(path, RATE, samples.shape[0], form) as writer:  # type: ignore[arg-type]
        for begin in range(0, samples.shape[1], piece):
            writer.write(samples[:, begin : begin + piece])
    return writer.close()


@pytest.mark.parametrize(("form", "error"), [("flac", 2**-23), ("wav", 0.0)])
def test_lossless_stems_come_back_as_written(form: str, error: float, music: np.ndarray, tmp_path: Path) -> None:
    report = write(tmp_path / "stem", music, form)
    np.testing.assert_allclose(read_stem(tmp_path / "stem"), music, atol=error, rtol=0)
    assert (report.samples, report.clipped, report.peak) == (music.shape[1], 0, float(np.abs(music).max()))


def test_opus_stem_has_the_length_and_the_sound_of_its_source(music: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "stem.opus"
    report = write(path, music, "opus")
    with path.open("rb") as file:
        decoded = decode_range(file, path.name, start=0, stop=None, sample_rate=RATE, expected_seconds=4.0)
    assert report.samples == music.shape[1]
    assert decoded.shape == music.shape
    assert 10 * np.log10(np.mean(music**2) / np.mean((decoded - music) ** 2)) > 10


@pytest.mark.parametrize("form", ["flac", "wav", "opus"])
@pytest.mark.parametrize("channels", [1, 6, 8])
def test_any_number_of_channels_keeps_its_order(form: str, channels: int, tmp_path: Path) -> None:
    tones = np.sin(np.arange(RATE) * (np.arange(channels)[:, None] + 2) / 50).astype(np.float32) / 2
    path = tmp_path / "stem"
    write(path, tones, form)
    with path.open("rb") as file:
        decoded = decode_range(file, "stem", start=0, stop=None, sample_rate=RATE, expected_seconds=1.0)
    spectra = np.abs(np.fft.rfft(decoded[:, :RATE])).argmax(axis=1)
    expected = np.abs(np.fft.rfft(tones)).argmax(axis=1)
    low = 3 if form == "opus" and channels > 4 else -1  # Opus keeps only the bass of the LFE channel
    keep = np.arange(channels) != low
    np.testing.assert_array_equal(spectra[keep], expected[keep])


@pytest.mark.parametrize("form", ["flac", "opus"])
def test_samples_beyond_full_scale_are_counted(form: str, music: np.ndarray, tmp_path: Path) -> None:
    loud = music / np.abs(music).max() * 1.5
    report = write(tmp_path / "stem", loud, form)
    assert report.clipped == np.count_nonzero(np.abs(loud) > 1) > 0
    assert report.peak == pytest.approx(1.5)


def test_float_wav_keeps_samples_beyond_full_scale(tmp_path: Path) -> None:
    loud = np.linspace(-3, 3, RATE, dtype=np.float32)[None]
    assert write(tmp_path / "stem.wav", loud, "wav").clipped == 0
    np.testing.assert_array_equal(read_stem(tmp_path / "stem.wav"), loud)
    assert (tmp_path / "stem.wav").read_bytes()[:4] == b"RIFF"


def test_blocks_join_to_the_whole_stem(music: np.ndarray, tmp_path: Path) -> None:
    write(tmp_path / "stem.flac", music, "flac")
    blocks = list(read_stem_blocks(tmp_path / "stem.flac", block=50_000))
    assert [block.shape[1] for block in blocks] == [50_000, 50_000, 50_000, 42_000]
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1), read_stem(tmp_path / "stem.flac"))


def test_memory_does_not_grow_with_the_length_of_a_stem(music: np.ndarray, tmp_path: Path) -> None:
    tracemalloc.start()
    with StemWriter(tmp_path / "stem.flac", RATE, 2, "flac") as writer:
        for _ in range(30):
            writer.write(music)
    for block in read_stem_blocks(tmp_path / "stem.flac"):
        assert block.shape[0] == 2
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * music.nbytes  # of 30


def test_a_stem_that_fails_half_way_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not finite"), StemWriter(tmp_path / "stem.flac", RATE, 1) as writer:
        writer.write(np.full((1, 10), np.nan, np.float32))
    assert list(tmp_path.iterdir()) == []


def test_wrong_shape_rate_and_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stem format"):
        StemWriter(tmp_path / "stem.mp3", RATE, 1, "mp3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="44100 Hz"):
        StemWriter(tmp_path / "stem.opus", 44_100, 1, "opus")
    with pytest.raises(ValueError, match=r"expected \[2, n\]"), StemWriter(tmp_path / "s.flac", RATE, 2) as writer:
        writer.write(np.zeros((1, 10), np.float32))


@pytest.mark.parametrize("form", ["flac", "wav"])
@pytest.mark.parametrize("bits", [16, 24])
def test_bit_depth_is_that_of_the_file(form: str, bits: int, music: np.ndarray, tmp_path: Path) -> None:
    with StemWriter(tmp_path / "stem", RATE, 2, form, bits) as writer:  # type: ignore[arg-type]
        writer.write(music)
    assert soundfile.info(tmp_path / "stem").subtype == f"PCM_{bits}"
    steps = (read_stem(tmp_path / "stem") - music) * 2 ** (bits - 1)
    assert np.abs(steps).max() <= (1.5 if bits == 16 else 0.5)


@pytest.mark.parametrize(("form", "bits"), [("flac", 16), ("flac", 24), ("wav", 16), ("wav", 24), ("wav", 32)])
def test_full_scale_survives_and_what_goes_beyond_is_cut(form: str, bits: int, tmp_path: Path) -> None:
    extremes = np.array([[-1.5, -1.0, 1.0, 1.5, 0.0]], np.float32)
    with StemWriter(tmp_path / "stem", RATE, 1, form, bits) as writer:  # type: ignore[arg-type]
        writer.write(extremes)
    expected = extremes if bits == 32 else np.clip(extremes, -1, 1)
    np.testing.assert_allclose(read_stem(tmp_path / "stem"), expected, atol=2.0 ** (3 - bits))
    assert writer.close().clipped == (0 if bits == 32 else 2)


def test_dither_makes_the_error_of_16_bits_independent_of_the_signal() -> None:
    # A sine of 0.4 steps: rounded, nothing would be left of it.
    wave = (0.4 * np.sin(np.arange(200_000) / 20) / 2**15).astype(np.float32)[:, None]
    steps = (Quantiser(16)(wave) >> 16).astype(np.float64)
    error = steps - wave * 2**15
    assert abs(error.mean()) < 0.01
    assert error.var() == pytest.approx(0.25, rel=0.02)  # 1/12 of rounding and 1/6 of triangular dither
    assert np.corrcoef(error[:, 0], wave[:, 0])[0, 1] == pytest.approx(0, abs=0.01)
    assert np.corrcoef(error[:, 0] ** 2, np.abs(wave[:, 0]))[0, 1] == pytest.approx(0, abs=0.01)


def test_dither_is_the_same_every_time_and_another_for_each_stem(music: np.ndarray) -> None:
    def pieces(seed: int, *cuts: int) -> np.ndarray:
        quantiser = Quantiser(16, seed)
        return np.concatenate([quantiser(piece) for piece in np.split(music.T, cuts)])

    np.testing.assert_array_equal(pieces(0), pieces(0, 1, 48_001, 99_999))
    difference = (pieces(0) - pieces(1)) >> 16
    assert difference.var() == pytest.approx(0.5, rel=0.02)  # two errors of 0.25 that are independent


def test_digital_silence_stays_silent_in_16_bits() -> None:
    assert not Quantiser(16)(np.zeros((1_000, 2), np.float32)).any()


def test_integers_of_a_16_and_24_bit_source_come_back_exactly_in_24_bits(tmp_path: Path) -> None:
    integers = np.random.default_rng(1).integers(-(2**23), 2**23, (2, 50_000))
    samples = (integers / 2.0**23).astype(np.float32)
    for form in ("flac", "wav"):
        with StemWriter(tmp_path / "stem", RATE, 2, form, 24) as writer:  # type: ignore[arg-type]
            writer.write(samples)
        np.testing.assert_array_equal(read_stem(tmp_path / "stem"), samples)


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100, 47_951, 96_000, 192_000])
@pytest.mark.parametrize("form", ["flac", "wav"])
def test_lossless_stems_hold_any_sample_rate(form: str, rate: int, music: np.ndarray, tmp_path: Path) -> None:
    with StemWriter(tmp_path / "stem", rate, 2, form) as writer:  # type: ignore[arg-type]
        writer.write(music)
    assert soundfile.info(tmp_path / "stem").samplerate == rate
    np.testing.assert_allclose(read_stem(tmp_path / "stem"), music, atol=2**-23, rtol=0)


def test_formats_refuse_a_bit_depth_that_they_do_not_have() -> None:
    for form, bits, says in (("flac", 32, "16 or 24"), ("wav", 20, "16 or 24 or 32"), ("opus", 16, "none")):
        with pytest.raises(ValueError, match=says):
            bit_depth_of(form, bits)  # type: ignore[arg-type]
    assert [bit_depth_of(form) for form in ("flac", "wav", "opus")] == [24, 32, None]  # type: ignore[arg-type]


def test_opus_takes_the_next_higher_rate() -> None:
    rates = [sample_rate_for("opus", rate) for rate in (6_000, 8_000, 11_025, 22_050, 44_100, 48_000, 96_000)]
    assert rates == [8_000, 8_000, 12_000, 24_000, 48_000, 48_000, 48_000]
    assert sample_rate_for("flac", 44_100) == 44_100
