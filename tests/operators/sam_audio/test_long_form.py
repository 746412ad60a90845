import itertools
import resource

import numpy as np
import pytest
import torch
from small_models import BANDS, HOP, RATE, small_config, small_model

from operators.sam_audio.band_codec import BandCodec
from operators.sam_audio.config import LongFormConfig, SolverConfig
from operators.sam_audio.long_form import Excerpt, exact_halo_frames
from operators.sam_audio.long_form import separate_long as separate_long_form
from operators.sam_audio.model import SAMAudio
from operators.sam_audio.processor import SAMAudioProcessor
from operators.sam_audio.windows import soft_mask, window_starts
from operators.segments import FADE_FRAMES, Joiner, cut

ANCHORS = (("+", 2.0, 5.5), ("-", 8.0, 9.0))


class CountingCodec(BandCodec):
    encodes = 0

    def encode(self, wav: torch.Tensor) -> torch.Tensor:
        self.encodes += 1
        return super().encode(wav)


def separate_long(model: SAMAudio, excerpts: list[Excerpt], **options: object) -> list[torch.Tensor]:
    """[2, channels, samples] an excerpt: target, residual."""
    results = separate_long_form(model, excerpts, **options)  # type: ignore[arg-type]
    return [torch.stack([stems.target, stems.residual]) for stems in results]


def decibels(difference: torch.Tensor, reference: torch.Tensor) -> float:
    """Level of a difference relative to a reference, in dB."""
    return float(10 * torch.log10(difference.square().mean() / reference.square().mean()))


def in_segments(
    model: SAMAudio, wav: torch.Tensor, core: int, halo: int, solver: SolverConfig | None = None
) -> torch.Tensor:
    """Every segment separated on its own, then joined: [2, channels, samples]."""
    total = -(-wav.shape[-1] // HOP)
    joiner, parts = Joiner(HOP), []
    for segment in cut(total, core, halo):
        read = wav[:, segment.start * HOP : segment.end * HOP]
        excerpt = Excerpt("item", read, "dog barking", ANCHORS, segment.start, total)
        stems = separate_long(model, [excerpt], solver=solver)[0]
        parts.append(joiner.add(segment, stems.numpy()))
    assert joiner.finished
    return torch.from_numpy(np.concatenate(parts, axis=-1))


def test_windows_cover_every_frame_and_end_with_the_recording() -> None:
    for total in (1, 29, 30, 31, 50, 200, 203):
        starts = window_starts(total, LongFormConfig(30, 20))
        frames = {f for s in starts for f in range(s, min(s + 30, total))}
        assert frames == set(range(total))
        assert starts[-1] == max(total - 30, 0)
        assert all(s % 20 == 0 for s in starts[:-1])


def test_soft_mask_is_positive_and_symmetric() -> None:
    for n in (1, 2, 7, 150):
        mask = soft_mask(n)
        assert mask.shape == (n,)
        assert (mask > 0).all()
        assert torch.equal(mask, mask.flip(0))


def test_a_recording_of_one_window_equals_separate(recording: torch.Tensor) -> None:
    model = small_model(small_config(window=1000, stride=700))
    mono = recording.mean(0, keepdim=True)
    processor = SAMAudioProcessor.from_config(model.config)
    batch = processor(audios=[mono], descriptions=["dog barking"], anchors=[list(ANCHORS)])
    whole = model.separate(batch, seeds=["item"])
    long = separate_long(model, [Excerpt("item", mono, "dog barking", ANCHORS)])[0]
    n = mono.shape[-1]
    # The codec sees the end padded by separate(): its last frame may differ by rounding.
    torch.testing.assert_close(long[0, 0], whole.target[0][:n], atol=2e-5, rtol=0)
    torch.testing.assert_close(long[1, 0], whole.residual[0][:n], atol=2e-5, rtol=0)


@pytest.mark.parametrize("core", [20, 31, 57, 100, 200, 1000])
def test_any_cut_gives_the_same_stems(model: SAMAudio, recording: torch.Tensor, core: int) -> None:
    whole = in_segments(model, recording, 10_000, 0)
    cut_up = in_segments(model, recording, core, exact_halo_frames(model, FADE_FRAMES))
    assert cut_up.shape == whole.shape == (2, *recording.shape)
    assert decibels(cut_up - whole, recording) < -100


def test_cores_on_the_stride_need_a_halo_of_one_window_only(model: SAMAudio, recording: torch.Tensor) -> None:
    whole = in_segments(model, recording, 10_000, 0)
    cut_up = in_segments(model, recording, 100, model.config.long_form.window)
    assert decibels(cut_up - whole, recording) < -100


def test_many_evaluations_keep_the_cut_inaudible(model: SAMAudio, recording: torch.Tensor) -> None:
    solver = SolverConfig("midpoint", 1 / 4)
    whole = in_segments(model, recording, 10_000, 0, solver)
    cut_up = in_segments(model, recording, 57, exact_halo_frames(model, FADE_FRAMES, solver), solver)
    assert decibels(cut_up - whole, recording) < -100


def test_several_items_together_equal_each_alone(model: SAMAudio, recording: torch.Tensor) -> None:
    texts = ["dog barking", "a man speaking loudly over distant rain", ""]
    lengths = [recording.shape[-1], 40 * HOP, 7 * HOP + 5]
    excerpts = [
        Excerpt(f"{text}/{n}", recording[:, :n], text, ANCHORS[: i + j])
        for (i, text), (j, n) in itertools.product(enumerate(texts), enumerate(lengths))
    ]
    together = separate_long(model, excerpts, window_batch=5)
    for excerpt, stems in zip(excerpts, together, strict=True):
        alone = separate_long(model, [excerpt], window_batch=1)[0]
        torch.testing.assert_close(stems, alone, atol=1e-5, rtol=0)


def test_prompts_noise_and_anchors_reach_the_result(model: SAMAudio, recording: torch.Tensor) -> None:
    base = Excerpt("item", recording, "dog barking", ANCHORS)
    others = [
        Excerpt("other item", recording, "dog barking", ANCHORS),
        Excerpt("item", recording, "piano", ANCHORS),
        Excerpt("item", recording, "dog barking", ANCHORS[:1]),
    ]
    first, *rest = separate_long(model, [base, *others])
    assert all(decibels(stems - first, recording) > -80 for stems in rest)


def test_stems_of_a_mixture_add_up_to_it(model: SAMAudio, recording: torch.Tensor) -> None:
    stems = separate_long(model, [Excerpt("item", recording, "dog barking")])[0]
    torch.testing.assert_close(stems.sum(0), recording, atol=1e-5, rtol=0)


def test_excerpts_of_one_waveform_are_encoded_once(recording: torch.Tensor) -> None:
    model = small_model()
    model.audio_codec = codec = CountingCodec(small_config().audio_codec)
    mono = recording[:, : 100 * HOP]
    separate_long(model, [Excerpt(text, mono, text) for text in ("dog", "rain", "piano")])
    assert codec.encodes == 1


@pytest.mark.parametrize(
    ("start", "total", "samples", "said"),
    [
        (0, 200, 20 * HOP, "hold no whole window"),
        (0, 200, 50 * HOP + 1, "no whole number of frames"),
        (180, 200, 50 * HOP, "not inside a recording"),
        (-1, 200, 50 * HOP, "not inside a recording"),
        (0, 200, 0, "not empty"),
    ],
)
def test_excerpt_that_contradicts_itself_is_refused(
    model: SAMAudio, start: int, total: int, samples: int, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        separate_long(model, [Excerpt("item", torch.zeros(1, samples), "dog", (), start, total)])


def test_memory_beside_the_audio_stays_flat(model: SAMAudio) -> None:
    """Ten minutes take no more than their audio, states and stems: 5 times the samples, not windows or spectra."""
    short = torch.randn(1, 60 * RATE)
    separate_long(model, [Excerpt("warm", short, "dog")])
    long = torch.randn(1, 20 * 60 * RATE)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    separate_long(model, [Excerpt("long", long, "dog")])
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    states = 20 * 60 * 25 * (32 + 8 * 2 * BANDS) * 4
    assert grown < 3 * long.numel() * 4 + states + 32e6
