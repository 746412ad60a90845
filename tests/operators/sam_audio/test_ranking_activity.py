"""Sound activity: the golden numbers, and the 16-bit arithmetic they rest on."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from golden.loader import load
from scipy.io import wavfile
from torchcodec.encoders import AudioEncoder

from operators.sam_audio.config import ConfigError
from operators.sam_audio.ranking_activity import _at_analysis_rate, _Levels, _to_pcm16, active_spans, overlap

GOLDEN = load("sound_activity")
MODES = {"rel_to_max-40": ("rel_to_max", -40), "rel_to_max-20": ("rel_to_max", -20), "abs-30": ("abs", -30)}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("index", range(3))
def test_spans_and_overlaps_equal_the_golden_ones(index: int, mode: str) -> None:
    signal = GOLDEN.values["signals"][index]
    threshold_mode, sil_threshold = MODES[mode]
    spans = active_spans(
        GOLDEN[f"in.wav{index}"], signal["sample_rate"], threshold_mode=threshold_mode, sil_threshold=sil_threshold
    )
    assert spans == [tuple(span) for span in signal[mode]["spans"]]
    found = overlap(spans, [(start, end) for _, start, end in signal["reference_spans"]])
    assert found == pytest.approx([signal[mode][name] for name in found._fields], abs=1e-12)


@pytest.mark.parametrize("index", range(2))
def test_loudest_window_has_the_golden_level(index: int) -> None:
    samples = _at_analysis_rate(_to_pcm16(GOLDEN[f"in.wav{index}"]), 16_000)
    milliseconds = GOLDEN.values["signals"][index]["pydub"]["milliseconds"]
    levels = _Levels(samples, milliseconds)
    peak = max(levels.at(start) for start in range(0, milliseconds - 249, 100))
    assert peak / 32_768 == GOLDEN.values["signals"][index]["peak_rms_24k"]


@pytest.mark.parametrize("case", GOLDEN.values["iou"], ids=str)
def test_overlap_equals_the_golden_one(case: dict) -> None:
    found = overlap([tuple(span) for span in case["hyp"]], [tuple(span) for span in case["ref"]])
    assert found == pytest.approx((case["iou"], case["recall"], case["precision"]))


def test_sixteen_bits_are_those_of_a_wav_file() -> None:
    wav = torch.randn(2, 4800, generator=torch.Generator().manual_seed(1)) * 0.6
    wav[0, :4] = torch.tensor([1.0, -1.0, 0.5 / 32_768, 1.5 / 32_768])
    data = bytes(AudioEncoder(wav, sample_rate=16_000).to_tensor(format="wav").numpy())
    assert np.array_equal(_to_pcm16(wav).T, wavfile.read(io.BytesIO(data))[1])


@pytest.mark.filterwarnings("ignore:'audioop' is deprecated")
@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_rate_conversion_and_levels_equal_audioop(rate: int, channels: int) -> None:
    audioop = pytest.importorskip("audioop")  # leaves the standard library with Python 3.13
    samples = np.random.default_rng(rate).integers(-32_768, 32_768, (channels, rate // 3 + 7)).astype(np.int16)
    data, _ = audioop.ratecv(samples.T.astype("<i2").tobytes(), 2, channels, rate, 24_000, None)
    expected = np.frombuffer(data, "<i2").reshape(-1, channels).T
    converted = _at_analysis_rate(samples, rate)
    assert np.array_equal(converted, expected)
    length = round(1000 * converted.shape[1] / 24_000)
    frame = 2 * channels
    levels = _Levels(converted, length)
    for start in (0, 10, 80):
        assert levels.at(start) == audioop.rms(data[start * 24 * frame : (start + 250) * 24 * frame], 2)


def test_long_signals_are_converted_in_pieces_that_join() -> None:
    samples = np.random.default_rng(0).integers(-9_000, 9_000, (1, 3_000_000)).astype(np.int16)
    whole = _at_analysis_rate(samples, 44_100)  # two pieces
    k = (1 << 20) + np.arange(-3, 3)
    source = np.ceil(k * 147 / 80).astype(int)
    weight = source * 80 - k * 147
    x = samples[0].astype(float) * 65_536
    expected = ((x[source - 1] * weight + x[source] * (80 - weight)) / 80).astype(np.int64) >> 16
    assert np.array_equal(whole[0, k], expected)


def test_silence_has_no_span_and_a_short_signal_is_all_sound() -> None:
    assert active_spans(torch.zeros(48_000), 48_000) == []
    assert active_spans(torch.zeros(4_800), 48_000) == [(0.0, 0.1)]
    assert active_spans(torch.zeros(0), 48_000) == [(0.0, 0.0)]


def test_a_tone_between_silences_is_found_to_ten_milliseconds() -> None:
    wav = torch.zeros(96_000)
    wav[24_000:60_000] = 0.3 * torch.sin(torch.arange(36_000) * 2 * math.pi * 440 / 48_000)
    ((start, end),) = active_spans(wav, 48_000)
    assert start == pytest.approx(0.5, abs=0.011)
    assert end == pytest.approx(1.25, abs=0.011)


def test_a_gap_shorter_than_a_quarter_second_does_not_split_a_span() -> None:
    wav = 0.3 * torch.ones(96_000)
    wav[40_000:50_000] = 0.0
    assert active_spans(wav, 48_000) == [(0.0, 2.0)]


def test_another_threshold_mode_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="'loudest'"):
        active_spans(torch.zeros(10), 48_000, threshold_mode="loudest")
