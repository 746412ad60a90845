"""Every option of the separator on tiny random models in the released layout."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from released_layout import HOP, RATE, Released, write_released
from safetensors.torch import load_file, save_file

from operators.errors import AssetError
from operators.sam_audio.config import SolverConfig
from operators.sam_audio.long_form import Excerpt, separate_long
from operators.sam_audio.model import SAMAudio
from operators.scoring import Extract, judge_scores
from operators.segments import Joiner, cut
from operators.separator import SegmentRequest, SegmentStems, Separator, SeparatorOptions

ONE_STEP = SolverConfig("euler", 1.0)
TOTAL = 240  # frames: 9.6 s, six windows


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Released:
    return write_released(tmp_path_factory.mktemp("released"), long_form={"window": 50, "stride": 40})


@pytest.fixture(scope="module")
def half_silent(released: Released) -> str:
    """The span predictor, less easily convinced: it hears the sound in some windows and not in others."""
    folder = released.pe_a_frame.with_name("pe-a-frame-strict")
    folder.mkdir()
    for path in released.pe_a_frame.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    state = load_file(folder / "model.safetensors")
    state["logit_scale"] *= 4
    state["logit_bias"] -= 1.5
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


@pytest.fixture(scope="module")
def stereo() -> np.ndarray:
    """Bursts of noise and tones, more of it on the right; the middle is nearly silent."""
    rng = np.random.default_rng(5)
    n = TOTAL * HOP
    t = np.arange(n) / RATE
    wave = 0.1 * rng.standard_normal((2, n)) + 0.3 * np.sin(2 * np.pi * 440 * t) * (np.sin(2 * np.pi * 0.3 * t) > 0)
    wave[:, n // 3 : 2 * n // 3] *= 0.001
    wave[1] *= 1.7
    return wave.astype(np.float32)


def options(**values: object) -> SeparatorOptions:
    return SeparatorOptions(**({"solver": ONE_STEP} | values))  # type: ignore[arg-type]


def request_of(wave: np.ndarray, **changes: object) -> SegmentRequest:
    frames = -(-wave.shape[-1] // HOP)
    values = {"item_id": "item", "start_frame": 0, "total_frames": frames, "description": "dog barking"} | changes
    return SegmentRequest(waveform=wave, **values)  # type: ignore[arg-type]


def run(released: Released, wave: np.ndarray, requests: dict | None = None, **values: object) -> SegmentStems:
    separator = Separator(str(released.sam_audio), "cpu", options(**values))
    (result,) = separator([request_of(wave, **(requests or {}))])
    assert isinstance(result, SegmentStems), result
    return result


def test_auto_keeps_both_channels_and_adds_up_to_the_mixture(released: Released, stereo: np.ndarray) -> None:
    stems = run(released, stereo)
    assert stems.target.shape == stereo.shape
    # Each sample is one float32 subtraction away from the mixture.
    np.testing.assert_allclose(stems.target + stems.residual, stereo, atol=1e-6)
    assert run(released, stereo[:1]).target.shape == (1, stereo.shape[1])


def test_each_channel_alone_equals_that_channel_as_a_mono_recording(released: Released, stereo: np.ndarray) -> None:
    stems = run(released, stereo, channels="each")
    for channel in range(2):
        alone = run(released, stereo[channel : channel + 1], channels="mono")
        np.testing.assert_allclose(stems.target[channel], alone.target[0], atol=1e-5)


def test_mixture_minus_target_leaves_nothing_out(released: Released, stereo: np.ndarray) -> None:
    generated = run(released, stereo, channels="mono")
    assert np.abs(generated.target + generated.residual - stereo.mean(0)).max() > 1e-3
    exact = run(released, stereo, channels="mono", residual="mixture_minus_target")
    np.testing.assert_array_equal(exact.target, generated.target)
    np.testing.assert_allclose(exact.target + exact.residual, stereo.mean(0, keepdims=True), atol=1e-6)


def test_predicted_spans_are_reported_inside_the_core_and_reach_the_model(
    released: Released, half_silent: str, stereo: np.ndarray
) -> None:
    found = {"predict_spans": True, "span_predictor": half_silent}
    with_spans = run(released, stereo, **found)
    assert with_spans.spans
    assert all(0 <= start < end <= 9.6 for start, end in with_spans.spans)
    first, last = round(with_spans.spans[0][0] * 25), round(with_spans.spans[-1][1] * 25)
    inside = run(released, stereo, {"core": (first, last - 1)}, **found)
    assert inside.spans[:-1] == with_spans.spans[: len(inside.spans) - 1]
    assert inside.spans[-1][1] <= (last - 1) / 25 < with_spans.spans[-1][1]
    plain = run(released, stereo)
    assert plain.spans is None
    assert np.abs(with_spans.target - plain.target).max() > 1e-4


def test_given_anchors_are_not_replaced_by_predicted_ones(
    released: Released, half_silent: str, stereo: np.ndarray
) -> None:
    anchors = {"anchors": (("+", 1.0, 2.0),)}
    given = run(released, stereo, anchors, predict_spans=True, span_predictor=half_silent)
    assert given.spans is None
    np.testing.assert_array_equal(given.target, run(released, stereo, anchors).target)


def test_windows_without_the_sound_are_left_to_the_residual(
    released: Released, half_silent: str, stereo: np.ndarray
) -> None:
    found = {"predict_spans": True, "span_predictor": half_silent}
    stems = run(released, stereo, skip_inactive=True, **found)
    assert 0 < stems.windows_skipped < stems.windows == 6
    everywhere = run(released, stereo, **found)
    silent = np.abs(stems.target).max(0) == 0
    assert silent.any() and not silent.all()
    np.testing.assert_allclose(stems.residual[:, silent], stereo[:, silent], atol=1e-7)
    # Away from the windows that were left out, nothing changes: every window is integrated on its own.
    assert everywhere.windows_skipped == 0
    np.testing.assert_allclose(stems.target + stems.residual, stereo, atol=1e-6)


def test_a_sound_heard_nowhere_costs_no_evaluation_and_gives_silence(released: Released, stereo: np.ndarray) -> None:
    model = SAMAudio.from_pretrained(released.sam_audio)
    calls = []
    model.transformer.register_forward_hook(lambda *_: calls.append(1))
    wave = torch.from_numpy(stereo)
    nowhere = torch.zeros(TOTAL, dtype=torch.bool)
    (stems,) = separate_long(model, [Excerpt("item", wave, "dog barking", active=nowhere)], solver=ONE_STEP)
    assert not calls and stems.skipped == stems.windows == 6
    assert stems.target.abs().max() == 0
    torch.testing.assert_close(stems.residual, wave.mean(0, keepdim=True))


def test_spans_and_skipped_windows_do_not_depend_on_the_cut(
    released: Released, half_silent: str, stereo: np.ndarray
) -> None:
    settings = {"predict_spans": True, "skip_inactive": True, "span_predictor": half_silent, "channels": "mono"}
    separator = Separator(str(released.sam_audio), "cpu", options(**settings))

    def separate(core: int, halo: int) -> tuple[np.ndarray, list[tuple[float, float]]]:
        joiner, parts, spans = Joiner(HOP), [], []
        for s in cut(TOTAL, core, halo):
            wave = stereo[:, s.start * HOP : s.end * HOP]
            cores = {"start_frame": s.start, "total_frames": TOTAL, "core": (s.core_start, s.core_end)}
            (stems,) = separator([request_of(wave, **cores)])
            assert isinstance(stems, SegmentStems)
            parts.append(joiner.add(s, stems.target))
            spans += stems.spans or ()
        return np.concatenate(parts, axis=-1), spans

    whole, spans = separate(TOTAL, 0)
    pieces, cut_spans = separate(80, separator.halo_frames)
    active = {f for a, b in spans for f in range(round(a * 25), round(b * 25))}
    assert active == {f for a, b in cut_spans for f in range(round(a * 25), round(b * 25))}
    # The watermark's memory starts anew in every segment; it lies about 40 dB below the stems of this random codec.
    assert 10 * np.log10(np.square(pieces - whole).mean() / np.square(whole).mean()) < -25


def test_every_result_gets_the_judges_scores(released: Released, stereo: np.ndarray) -> None:
    core = {"core": (10, 210)}
    separator = Separator(str(released.sam_audio), "cpu", options(judge=str(released.judge), channels="mono"))
    (stems,) = separator([request_of(stereo, **core)])
    assert isinstance(stems, SegmentStems) and stems.scores is not None
    at = slice(10 * HOP, 210 * HOP)
    mixture, target = torch.from_numpy(stereo.mean(0)[at]), torch.from_numpy(stems.target[0][at])
    again = judge_scores(separator._judge, Extract(mixture, target, "dog barking", RATE))
    assert stems.scores == pytest.approx(again, abs=1e-5)


def test_the_candidate_that_the_judge_likes_best_is_kept(released: Released, stereo: np.ndarray) -> None:
    judged = {"judge": str(released.judge), "channels": "mono"}
    best = run(released, stereo, candidates=4, **judged)
    model = SAMAudio.from_pretrained(released.sam_audio)
    # Candidate k of an item is what its noise key with "#k" makes.
    overall = []
    for key in ("item", "item#1", "item#2", "item#3"):
        alone = run(released, stereo, {"item_id": key}, **judged)
        overall.append(alone.scores.overall)
    assert best.candidates == 4
    # The watermark goes by the item's key, not the candidate's: it moves scores a little.
    assert best.scores.overall == pytest.approx(max(overall), abs=0.05)
    assert model.text_ranker is not None


def test_more_candidates_are_made_only_below_the_threshold(released: Released, stereo: np.ndarray) -> None:
    judged = {"judge": str(released.judge), "channels": "mono", "candidates": 3}
    first = run(released, stereo, judge=str(released.judge), channels="mono")
    content = run(released, stereo, rerank_below=first.scores.overall - 1, **judged)
    assert content.candidates == 1
    np.testing.assert_array_equal(content.target, first.target)
    assert run(released, stereo, rerank_below=1e9, **judged).candidates == 3


@pytest.mark.parametrize("ranker", ["model", "sound_activity"])
def test_other_rankers_choose_too(released: Released, stereo: np.ndarray, ranker: str) -> None:
    anchors = {"anchors": (("+", 1.0, 2.0),)}
    stems = run(released, stereo, anchors, candidates=2, ranker=ranker, channels="mono")
    assert stems.candidates == 2 and stems.scores is None


def test_masked_video_reaches_the_stems_and_is_encoded_once(released: Released, stereo: np.ndarray) -> None:
    frames = torch.randint(0, 256, (TOTAL, 3, 56, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    reads = []

    class Video:
        def __iter__(self):
            reads.append(1)
            return iter(frames.split(70))

    video = Video()
    separator = Separator(str(released.sam_audio), "cpu", options())
    mono = stereo[:1]
    seen, same, blind = separator(
        [
            request_of(mono, video=video),
            request_of(mono, video=video, item_id="other"),
            request_of(mono),
        ]
    )
    assert len(reads) == 1
    assert np.abs(seen.target - blind.target).max() > 1e-4
    assert np.abs(seen.target - same.target).max() > 1e-4
    whole = separator([request_of(mono, video=frames)])[0]
    np.testing.assert_allclose(whole.target, seen.target, atol=1e-6)


def test_a_model_without_eyes_refuses_video(model_folder: Path) -> None:
    (result,) = Separator(str(model_folder), "cpu")([replace(request_of(np.ones((1, 9600), np.float32)), video=[])])
    assert isinstance(result, AssetError) and result.cause == "no_vision" and result.field == "mask_uri"
