"""The meter against the signals of EBU Tech 3341, whose readings are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import soundfile
import torch
import torchaudio.functional
from media_files import DEMO

from operators.loudness import Loudness, LoudnessMeter, TruePeak

RATE = 48_000


def measure(samples: np.ndarray, rate: int = RATE, piece: int = 100_001) -> Loudness:
    meter = LoudnessMeter(rate, samples.shape[0])
    for begin in range(0, samples.shape[1], piece):
        meter.add(samples[:, begin : begin + piece].astype(np.float32))
    return meter.close()


def tone(*parts: tuple[float, float], hz: float = 1_000, rate: int = RATE, channels: int = 2) -> np.ndarray:
    """A sine of so many (dBFS, seconds), one after the other, in every channel."""
    level = np.concatenate([np.full(round(seconds * rate), 10 ** (db / 20)) for db, seconds in parts])
    wave = level * np.sin(2 * np.pi * hz * np.arange(len(level)) / rate)
    return np.repeat(wave[None], channels, axis=0)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([(-23, 20)], -23),  # case 1
        ([(-33, 20)], -33),  # case 2
        ([(-36, 10), (-23, 60), (-36, 10)], -23),  # case 3: the relative gate
        ([(-72, 10), (-36, 10), (-23, 60), (-36, 10), (-72, 10)], -23),  # case 4: the absolute gate
        ([(-26, 20), (-20, 20.1), (-26, 20)], -23),  # case 5
    ],
)
def test_integrated_loudness_of_the_ebu_signals(parts: list[tuple[float, float]], expected: float) -> None:
    assert measure(tone(*parts)).integrated_lufs == pytest.approx(expected, abs=0.1)


def test_surround_channels_weigh_more_and_the_lfe_nothing() -> None:
    # Case 6: five channels at their levels; ours have an LFE between centre and surrounds, here a loud one.
    left, centre, surround = (tone((db, 20), channels=1) for db in (-28, -24, -30))
    lfe = tone((-6, 20), hz=50, channels=1)
    with_lfe = np.concatenate([left, left, centre, lfe, surround, surround])
    assert measure(with_lfe).integrated_lufs == pytest.approx(-23, abs=0.1)
    without = np.delete(with_lfe, 3, axis=0)
    assert measure(without).integrated_lufs == pytest.approx(-23, abs=0.1)


@pytest.mark.parametrize("channels", range(1, 9))
def test_any_number_of_channels_is_measured(channels: int) -> None:
    loudness = measure(tone((-23, 2), channels=channels))
    assert -26.2 < (loudness.integrated_lufs or 0) < -16
    assert loudness.true_peak_dbtp == pytest.approx(-23, abs=0.1)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 47_951, 96_000, 192_000])
def test_the_sample_rate_does_not_matter(rate: int) -> None:
    loudness = measure(tone((-23, 5), rate=rate), rate)
    assert loudness.integrated_lufs == pytest.approx(-23, abs=0.1)
    assert loudness.true_peak_dbtp == pytest.approx(-23, abs=0.1)


@pytest.mark.parametrize(
    ("divisor", "degrees", "amplitude", "expected"),
    [
        (4, 0, 0.5, -6),  # case 15
        (4, 45, 0.5, -6),  # case 16
        (6, 60, 0.5, -6),  # case 17
        (8, 67.5, 0.5, -6),  # case 18
        (4, 45, 1.41, 3),  # case 19
    ],
)
def test_true_peak_of_the_ebu_signals(divisor: int, degrees: float, amplitude: float, expected: float) -> None:
    n = 2 * RATE
    fade = np.minimum(1, np.minimum(np.arange(n), np.arange(n)[::-1]) / 2_400)  # the file has no click at its ends
    wave = amplitude * fade * np.sin(2 * np.pi * np.arange(n) / divisor + math.radians(degrees))
    peak = measure(np.stack([wave, wave])).true_peak_dbtp
    assert peak is not None
    assert expected - 0.4 <= peak <= expected + 0.2


def test_silence_has_no_loudness() -> None:
    assert measure(np.zeros((2, 3 * RATE))) == Loudness(None, None)
    assert measure(np.zeros((1, 0))) == Loudness(None, None)
    assert measure(tone((-100, 3))).integrated_lufs is None
    short = measure(tone((-10, 0.2)))  # less than one block of the meter
    assert short.integrated_lufs is None
    assert short.true_peak_dbtp == pytest.approx(-10, abs=0.1)


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    return soundfile.read(DEMO / "speech.flac", frames=6 * RATE, dtype="float32")[0].T.copy()


@pytest.mark.parametrize("piece", [7, 997, 48_000, 1 << 20])
def test_true_peak_is_that_of_the_interpolated_recording(piece: int, speech: np.ndarray) -> None:
    samples = speech[:, : 40_000 if piece < 100 else None]
    expected = torchaudio.functional.resample(torch.from_numpy(samples), RATE, 4 * RATE).abs().max()
    peak = TruePeak(RATE, 2)
    for begin in range(0, samples.shape[1], piece):
        peak.add(samples[:, begin : begin + piece])
    assert peak.close() == pytest.approx(float(expected), rel=1e-4)


def test_pieces_do_not_change_the_loudness(speech: np.ndarray) -> None:
    one, other = measure(speech, piece=1 << 20), measure(speech, piece=12_347)
    assert one.integrated_lufs == other.integrated_lufs


def test_turning_down_by_six_db_lowers_both_by_six(speech: np.ndarray) -> None:
    loud, quiet = measure(speech), measure(speech / 2)
    assert loud.integrated_lufs is not None and quiet.integrated_lufs is not None
    assert loud.integrated_lufs - quiet.integrated_lufs == pytest.approx(6.02, abs=0.02)
    assert (loud.true_peak_dbtp or 0) - (quiet.true_peak_dbtp or 0) == pytest.approx(6.02, abs=0.01)
