"""Examples: planned from a number, mixed at the levels of the paper, prompted with what is heard."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from operators.sam_audio.config import ConfigError
from operators.sam_audio.training import prompts
from operators.sam_audio.training.mixing import (
    Collection,
    MixingOptions,
    Mixture,
    Piece,
    Plan,
    Source,
    Voice,
    plan,
    render,
    span_prompt,
)

RATE, HOP = 8000, 320
SPEECH = Source("talk.wav", "speech", "", 60.0)
MUSIC = Source("tune.wav", "music", "", 60.0)
DOG = Source("dog.wav", "sfx", "dog", 0.7, ("Dog barking", "a dog"))
RAIN = Source("rain.wav", "sfx", "rain", 20.0)
SONG = Mixture((replace(MUSIC, label="drums", uri="drums.wav"), replace(MUSIC, label="bass", uri="bass.wav")))
SOUNDS = Collection((SPEECH, MUSIC, DOG, RAIN), ())


def tone(piece: Piece) -> np.ndarray:
    """Every recording is a tone of its own pitch, of constant level."""
    hz = 200 + 100 * (len(piece.source.uri) % 7)
    t = (piece.start + np.arange(piece.length)) / RATE
    return (0.1 * np.sin(2 * np.pi * hz * t)).astype(np.float32)


def plans(collection: Collection, count: int = 300, **options: float) -> list[Plan]:
    chosen = MixingOptions(clip_seconds=2.0, **options)
    return [plan(collection, chosen, 0, number, sample_rate=RATE, hop=HOP) for number in range(count)]


def level(wave: np.ndarray) -> float:
    active = np.abs(wave) > 1e-3 * max(float(np.abs(wave).max()), 1e-9)
    return float(20 * np.log10(np.sqrt(np.mean(wave[active] ** 2))))


def test_an_example_is_a_function_of_its_number():
    first, again = plans(SOUNDS, 20), plans(SOUNDS, 20)
    assert first == again and len(set(map(repr, first))) == 20
    other = plan(SOUNDS, MixingOptions(clip_seconds=2.0), 0, 3, sample_rate=RATE, hop=HOP, again=1)
    assert other != first[3] and other.number == 3


def test_mixtures_are_as_long_as_asked_and_as_loud_as_planned():
    for found in plans(SOUNDS, 20):
        target, residual, _ = render(found, tone, RATE)
        assert target.shape == residual.shape == (2 * RATE,) and target.dtype == np.float32
        mean = 10 * np.log10(np.mean(np.square(target + residual)))
        assert mean == pytest.approx(found.loudness_db, abs=0.1)


def test_levels_differ_less_within_music_than_elsewhere():
    music = Collection(SONG.stems, ())
    offsets: dict[str, list[float]] = {"music": [], "sound": []}
    for name, collection in (("music", music), ("sound", SOUNDS)):
        for found in plans(collection, absent_share=0.0, complement_share=0.0, three_share=0.0):
            target, residual, _ = render(found, tone, RATE)
            offsets[name].append(level(target) - level(residual))
    assert 4 < max(map(abs, offsets["music"])) < 5.1
    assert 12 < max(map(abs, offsets["sound"])) < 15.1


def test_real_mixtures_keep_their_levels_in_half_of_the_examples():
    def read(piece: Piece) -> np.ndarray:
        return tone(piece) * (10 if piece.source.label == "drums" else 1)

    natural = 0
    found = plans(Collection((), (SONG,)), 200, complement_share=0.0)
    for each in found:
        target, residual, _ = render(each, read, RATE)
        offset = 10 * np.log10(np.mean(target**2) / np.mean(residual**2))
        natural += abs(abs(offset) - 20) < 0.1
        assert abs(abs(offset) - 20) < 5.1
        assert {p.start for voice in (*each.target, *each.residual) for p in voice.pieces} == {
            each.target[0].pieces[0].start
        }
    assert 80 < natural < 180


def test_real_and_synthetic_mixtures_share_the_examples():
    both = Collection((SPEECH, MUSIC, DOG, RAIN), (SONG,))
    real = sum(not voice.normalised for found in plans(both, 400, real_share=0.25) for voice in found.residual[:1])
    assert 70 < real < 130


def test_short_sounds_come_again_after_pauses():
    found = next(f for f in plans(SOUNDS) if f.target and f.target[0].pieces[0].source == DOG)
    pieces = found.target[0].pieces
    assert len(pieces) > 1
    assert all(b.at >= a.at + a.length for a, b in pairwise(pieces))


def test_a_sound_is_never_mixed_with_one_of_its_own_name():
    for found in plans(Collection((DOG, replace(DOG, uri="dog2.wav"), RAIN), ())):
        names = [voice.pieces[0].source.name for voice in (*found.target, *found.residual) if voice.pieces]
        assert len(set(names)) == len(names)


def test_prompts_are_the_owners_words_their_paraphrases_and_the_rest():
    found = Counter(
        f.description
        for f in plans(SOUNDS, 600, complement_share=0.0)
        if f.target and f.target[0].pieces[0].source == DOG and f.description
    )
    assert found["dog barking"] > found["the sound of dog barking"] > 0
    assert set(found) <= set(prompts.wordings("sfx", "dog", DOG.descriptions))
    complements = [f for f in plans(SOUNDS, 600, complement_share=1.0) if f.target and "everything" in f.description]
    assert complements and all("everything" in f.description for f in complements)


def test_text_is_left_out_only_where_spans_say_what_is_meant():
    found = plans(SOUNDS, 500, text_dropout=0.5)
    assert any(f.description == "" for f in found)
    assert all(f.spans or f.video for f in found if f.description == "")
    assert 0.4 < sum(f.spans for f in found) / 500 < 0.55


def test_an_absent_sound_is_asked_for_with_words_and_is_silent():
    found = [f for f in plans(SOUNDS, absent_share=0.5, complement_share=0.0) if not f.target]
    assert 100 < len(found) < 200
    target, residual, anchors = render(found[0], tone, RATE)
    assert not target.any() and residual.any() and anchors == [] and found[0].description


def test_video_is_shown_where_a_recording_has_masks_and_is_dropped_at_random():
    masked = replace(RAIN, mask_uri="rain.npz")
    found = [f for f in plans(Collection((masked, MUSIC), ()), 400) if f.target and f.target[0].pieces]
    asked = [f for f in found if f.target[0].pieces[0].source == masked and len(f.target[0].pieces) == 1]
    shown = [f for f in asked if f.video]
    assert 0.4 < len(shown) / len(asked) < 0.9
    assert all(f.video.length == f.samples and f.video.start % HOP == 0 for f in shown)


def test_spans_are_where_the_target_sounds_and_pauses_can_be_negative():
    wave = np.zeros(4 * RATE, np.float32)
    wave[RATE : 2 * RATE] = np.random.default_rng(0).normal(0, 0.1, RATE)
    wave[2 * RATE :] = 1e-5
    (span,) = span_prompt(wave, RATE, negative=False)
    assert span[0] == "+" and span[1] == pytest.approx(1.0, abs=0.03) and span[2] == pytest.approx(2.0, abs=0.03)
    signs = [token for token, *_ in span_prompt(wave, RATE, negative=True)]
    assert signs == ["+", "-", "-"]
    assert span_prompt(np.zeros(RATE, np.float32), RATE, negative=True) == []


def test_a_level_is_that_of_what_sounds():
    pieces = (Piece(DOG, 0, 400, 0),)
    quiet = Plan(0, RATE, (Voice(pieces, 0.0, True),), (Voice((Piece(RAIN, 0, RATE, 0),), 0.0, True),), -20.0, "dog")
    target, residual, _ = render(quiet, tone, RATE)
    assert level(target) == pytest.approx(level(residual), abs=0.3)


def test_one_label_is_too_little_to_learn_from():
    with pytest.raises(ConfigError, match="recordings of two different labels"):
        Collection((DOG,), ())
    with pytest.raises(ConfigError, match="clip_seconds"):
        MixingOptions(clip_seconds=0)


@pytest.mark.parametrize(
    ("words", "kind"),
    [("man speaking", "speech"), ("a woman singing", "music"), ("dog barking", "sfx"), ("electric-guitar", "music")],
)
def test_the_kind_of_a_sound_follows_from_its_words(words, kind):
    assert prompts.kind_of(words) == kind
