"""The shipped span predictor: it finds speech on real recordings, and the shipped separator uses it."""

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from torch import Tensor

from operators.sam_audio import Excerpt, SAMAudio, SAMAudioProcessor, separate_long
from operators.sam_audio.anchors import anchor_frames
from operators.sam_audio.sources import SHIPPED
from operators.sam_audio.spans import PEAFrame, active_frames

MEDIA = Path(__file__).parents[3] / "jobs" / "demo_media"
RATE, SECONDS = 48_000, 24
TALK = slice(15 * RATE, 21 * RATE)


def read(name: str) -> np.ndarray:
    wave, rate = sf.read(MEDIA / f"{name}.flac", dtype="float32", frames=SECONDS * RATE)
    assert rate == RATE
    return wave[:, 0]


@pytest.fixture(scope="module")
def mixture() -> Tensor:
    """24 s of music; somebody speaks from 15 to 21 s."""
    speech, music = read("speech"), read("music")
    music *= 0.05 / np.sqrt(np.mean(music**2))
    mix = music.copy()
    talk = speech[: 6 * RATE]
    mix[TALK] += talk * 0.08 / np.sqrt(np.mean(talk**2))
    return torch.from_numpy(mix)[None]


@pytest.fixture(scope="module")
def model() -> SAMAudio:
    return SAMAudio.from_pretrained("tiny")


@pytest.fixture(scope="module")
def latents(model: SAMAudio, mixture: Tensor) -> Tensor:
    return model.audio_codec.encode(mixture[None]).transpose(1, 2)


def share(active: Tensor, where: slice) -> float:
    return float(active[0, where].float().mean())


def test_speech_is_found_where_somebody_speaks(model: SAMAudio, latents: Tensor) -> None:
    active = active_frames(model.span_predictor.logits(latents, None, ["speech"]))
    assert share(active, slice(15 * 25, 21 * 25)) > 0.7
    assert share(active, slice(0, 14 * 25)) < 0.1


def test_music_is_found_throughout(model: SAMAudio, latents: Tensor) -> None:
    active = active_frames(model.span_predictor.logits(latents, None, ["music"]))
    assert share(active, slice(None)) > 0.8


def test_a_sound_that_is_not_there_is_hardly_found(model: SAMAudio, latents: Tensor) -> None:
    active = active_frames(model.span_predictor.logits(latents, None, ["helicopter"]))
    assert share(active, slice(None)) < 0.2


@pytest.mark.parametrize(
    "wording", ["a person being interviewed", "the presenter", "weather forecast being read", "two friends chatting"]
)
def test_wordings_that_training_did_not_have_are_understood(model: SAMAudio, latents: Tensor, wording: str) -> None:
    active = active_frames(model.span_predictor.logits(latents, None, [wording]))
    assert share(active, slice(15 * 25, 21 * 25)) > 0.6
    assert share(active, slice(0, 14 * 25)) < 0.1


def test_silence_holds_nothing(model: SAMAudio) -> None:
    silence = model.audio_codec.encode(torch.zeros(1, 1, 4 * RATE)).transpose(1, 2)
    for text in ("speech", "music", "dog barking"):
        assert share(active_frames(model.span_predictor.logits(silence, None, [text])), slice(None)) < 0.1


def test_padding_changes_no_decision(model: SAMAudio, latents: Tensor) -> None:
    short = latents[:, :200]
    padded = torch.nn.functional.pad(short, (0, 0, 0, 50))
    mask = torch.arange(250)[None] < 200
    alone = model.span_predictor.logits(short, None, ["speech"])
    torch.testing.assert_close(model.span_predictor.logits(padded, mask, ["speech"])[:, :200], alone, atol=1e-4, rtol=0)


def test_it_is_a_pe_a_frame_of_a_few_megabytes() -> None:
    model = PEAFrame.from_pretrained("tiny")
    assert sum(p.numel() for p in model.parameters()) < 3e6
    assert sum(f.stat().st_size for f in (SHIPPED["tiny"] / "spans").iterdir()) < 5e6


def test_separate_predicts_spans(model: SAMAudio, mixture: Tensor) -> None:
    processor = SAMAudioProcessor.from_pretrained("tiny")
    batch = processor(audios=[mixture], descriptions=["speech"])
    result = model.separate(batch, predict_spans=True, seeds=["a"])
    assert result.anchors is not None and result.anchors[0]
    heard = torch.zeros(SECONDS * 25, dtype=torch.bool)
    for anchor in result.anchors[0]:
        assert anchor[0] == "+"
        heard[anchor_frames(anchor, RATE, 1920)] = True
    assert share(heard[None], slice(15 * 25, 21 * 25)) > 0.7
    assert torch.isfinite(result.target[0]).all()


def test_windows_without_the_sound_are_left_out(model: SAMAudio, mixture: Tensor) -> None:
    excerpt = Excerpt("a", mixture, "speech")
    (stems,) = separate_long(model, [excerpt], predict_spans=True, skip_inactive=True)
    assert 0 < stems.skipped < stems.windows
    # Where nothing was computed, the target is silent and the residual the recording.
    quiet = slice(0, 6 * RATE)
    assert stems.target[0, quiet].abs().max() == 0
    torch.testing.assert_close(stems.residual[0, quiet], mixture[0, quiet])
    (whole,) = separate_long(model, [excerpt], predict_spans=True)
    inside = slice(17 * RATE, 20 * RATE)
    torch.testing.assert_close(stems.target[0, inside], whole.target[0, inside], atol=1e-3, rtol=0)
