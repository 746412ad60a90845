import numpy as np
import pytest

from operators.segments import Joiner, crossfade, cut


@pytest.mark.parametrize(("total", "core", "halo"), [(1000, 300, 50), (300, 300, 50), (7, 1, 3), (1, 100, 10)])
def test_cores_tile_the_recording_and_reads_are_clipped_halos(total: int, core: int, halo: int) -> None:
    segments = cut(total, core, halo)
    frames = [f for s in segments for f in range(s.core_start, s.core_end)]
    assert frames == list(range(total))
    for s in segments:
        assert (s.start, s.end) == (
            max(s.core_start - halo, 0),
            min(s.core_start + core + halo, total),
        )
        assert s.count == len(segments)


@pytest.mark.parametrize(("total", "core", "halo"), [(0, 1, 0), (5, 0, 0), (5, 1, -1)])
def test_impossible_cut_is_refused(total: int, core: int, halo: int) -> None:
    with pytest.raises(ValueError, match="cannot cut"):
        cut(total, core, halo)


@pytest.mark.parametrize(("core", "halo"), [(64, 16), (64, 0), (3, 16), (1, 1), (500, 10)])
def test_joined_segments_of_one_signal_are_that_signal(core: int, halo: int) -> None:
    hop, samples = 8, 8 * 200 - 5
    signal = np.random.default_rng(0).normal(size=(2, 2, samples)).astype(np.float32)
    segments = cut(200, core, halo)
    joiner = Joiner(hop)
    joined = np.concatenate([joiner.add(s, signal[..., s.start * hop : s.end * hop]) for s in segments], axis=-1)
    assert joiner.finished
    np.testing.assert_allclose(joined, signal, atol=1e-6)


def test_neighbours_that_differ_are_faded_linearly_before_the_border() -> None:
    segments = cut(40, 20, 10)
    joiner = Joiner(hop_length=1, fade_frames=4)
    joined = np.concatenate(
        [joiner.add(segments[0], np.zeros((1, 30))), joiner.add(segments[1], np.ones((1, 30)))], axis=-1
    )
    np.testing.assert_allclose(joined[0, 15:22], [0, 0.125, 0.375, 0.625, 0.875, 1, 1])
    assert joined.shape == (1, 40)


def test_crossfade_of_equal_signals_changes_nothing() -> None:
    signal = np.linspace(-1, 1, 9)
    np.testing.assert_allclose(crossfade(signal, signal), signal)


def test_joiner_refuses_segments_out_of_order() -> None:
    segments = cut(40, 20, 10)
    with pytest.raises(ValueError, match="segment 0 expected, got segment 1 of 2"):
        Joiner(1).add(segments[1], np.ones((1, 30)))


def test_joiner_refuses_a_segment_that_ends_early() -> None:
    segments = cut(40, 20, 10)
    with pytest.raises(ValueError, match="do not reach the end of its core"):
        Joiner(1).add(segments[0], np.ones((1, 19)))
