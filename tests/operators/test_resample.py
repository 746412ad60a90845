from __future__ import annotations

import itertools

import numpy as np
import pytest
import soundfile
import torch
import torchaudio.functional
from media_files import DEMO

from operators import resample


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """`[2, n]` float32, five seconds."""
    return soundfile.read(DEMO / "speech.flac", frames=240_000, dtype="float32")[0].T.copy()


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 32_000, 44_100, 48_000, 96_000, 192_000])
def test_ranges_of_a_resampled_recording_join_to_the_whole(speech: np.ndarray, rate: int) -> None:
    whole = torchaudio.functional.resample(torch.from_numpy(speech), rate, 48_000).numpy()
    cuts = [0, 1, 4_801, 20_000, 20_003, 31_234, None]
    parts = []
    for start, stop in itertools.pairwise(cuts):
        first, last = resample.source_range(start or 0, stop, rate, 48_000)
        parts.append(resample.resample_range(speech[:, first:last], first, start or 0, stop, rate, 48_000))
    joined = np.concatenate(parts, axis=1)
    assert joined.shape == whole.shape
    np.testing.assert_allclose(joined, whole, atol=2e-6)


@pytest.mark.parametrize("rate", [11_025, 47_250, 96_000])
def test_sparse_kernel_equals_torchaudio(speech: np.ndarray, rate: int) -> None:
    orig, new = resample.ratio(rate, 48_000)
    # In double precision: torchaudio's single-precision kernel is off by 3e-6 for these, by 1e-4 for larger ratios.
    expected = torchaudio.functional.resample(torch.from_numpy(speech[:, :60_000]).double(), rate, 48_000).numpy()
    np.testing.assert_allclose(resample._resample_sparse(speech[:, :60_000], orig, new), expected, atol=2e-6)


@pytest.mark.parametrize("rate", [44_056, 47_951])
def test_ranges_at_rates_with_small_common_divisors_join_to_the_whole(speech: np.ndarray, rate: int) -> None:
    whole = resample.resample_range(speech, 0, 0, None, rate, 48_000)
    parts = []
    for start, stop in ((0, 100_001), (100_001, 200_000), (200_000, None)):
        first, last = resample.source_range(start, stop, rate, 48_000)
        parts.append(resample.resample_range(speech[:, first:last], first, start, stop, rate, 48_000))
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-6)


def test_rates_without_common_divisor_resample_in_bounded_memory(speech: np.ndarray) -> None:
    # torchaudio's kernel for 47951 to 48000 Hz would take 9 GB.
    out = resample.resample_range(speech, 0, 0, None, 47_951, 48_000)
    assert out.shape == (2, -(-240_000 * 48_000 // 47_951))
    back = torchaudio.functional.resample(torch.from_numpy(out[:, :96_000]), 48_000, 47_952).numpy()
    error = back[:, 1_000:40_000] - speech[:, 1_000:40_000]  # 20 ppm apart: the same for a second
    assert np.abs(error).max() < 0.3


def test_a_range_beyond_the_end_is_empty(speech: np.ndarray) -> None:
    first, last = resample.source_range(400_000, 410_000, 44_100, 48_000)
    assert resample.resample_range(speech[:, first:last], first, 400_000, 410_000, 44_100, 48_000).shape == (2, 0)


@pytest.mark.parametrize("rates", [(48_000, 44_100), (48_000, 8_000), (16_000, 96_000), (48_000, 47_951)])
@pytest.mark.parametrize("piece", [311, 20_000, 240_000])
def test_a_stream_of_pieces_resamples_to_the_whole(speech: np.ndarray, rates: tuple[int, int], piece: int) -> None:
    whole = resample.resample_range(speech, 0, 0, None, *rates)
    stream = resample.StreamResampler(*rates)
    cut = range(0, speech.shape[1], piece)
    out = np.concatenate([stream.add(speech[:, i : i + piece]) for i in cut] + [stream.finish()], axis=1)
    assert out.shape[1] == speech.shape[1] * rates[1] // rates[0]
    np.testing.assert_allclose(out, whole[:, : out.shape[1]], atol=2e-6)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_a_recording_that_comes_back_to_its_rate_has_its_length(speech: np.ndarray, rate: int) -> None:
    for length in (1, 2, 1_919, 30_001, 30_002):
        up = resample.resample_range(speech[:, :length], 0, 0, None, rate, 48_000)
        stream = resample.StreamResampler(48_000, rate)
        back = [stream.add(up), stream.finish()] if rate != 48_000 else [stream.add(up)]
        assert sum(part.shape[1] for part in back) == length


def test_a_stream_of_one_rate_passes_through_and_an_empty_one_is_empty(speech: np.ndarray) -> None:
    stream = resample.StreamResampler(48_000, 48_000)
    assert stream.add(speech) is speech
    assert stream.finish().size == 0
    assert resample.StreamResampler(48_000, 44_100).finish().size == 0


@pytest.mark.parametrize("rate", [8_000, 44_100, 96_000])
@pytest.mark.parametrize(("start", "stop"), [(0, None), (0, 300_000), (100, 99_000), (147_000, 10_000_000)])
def test_pieces_join_to_what_is_resampled_at_once(speech: np.ndarray, rate: int, start: int, stop: int | None) -> None:
    first, last = resample.source_range(start, stop, rate, 48_000)
    part = np.ascontiguousarray(speech[:, first:last])
    expected = resample.resample_range(part, first, start, stop, rate, 48_000)
    joined = resample.resample_in_pieces(part, first, start, stop, rate, 48_000, values=70_000)
    assert joined.shape == expected.shape
    np.testing.assert_allclose(joined, expected, atol=3e-6)
