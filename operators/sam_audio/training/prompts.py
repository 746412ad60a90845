"""Descriptions that the data engine draws from: several wordings a class, so that a paraphrase means the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

SPEECH = [
    "speech", "man speaking", "woman speaking", "a person talking", "human voice", "dialogue", "people talking",
    "someone speaking", "voice", "spoken words", "narration", "a man talking", "a woman talking", "talking",
]  # fmt: skip
MUSIC = [
    "music", "background music", "music playing", "a song", "instrumental music", "musical instruments", "a melody",
    "soundtrack", "score", "a musical piece",
]  # fmt: skip
EFFECTS = [
    "sound effects", "noise", "a sound effect", "background noise", "sounds", "foley", "environmental sounds",
    "ambient sounds",
]  # fmt: skip
# What is left when the named class is taken away.
NOT_SPEECH = [
    "everything except speech", "everything but the voice", "music and effects", "background without speech",
    "no speech",
]  # fmt: skip
NOT_MUSIC = ["everything except music", "everything but the music", "remove the music", "without music"]
NOT_EFFECTS = ["everything except sound effects", "remove the noise", "without noise", "clean audio"]

# Catalogue labels whose name is no phrase; the others are used with underscores as spaces.
LABEL_PHRASES = {
    "footfall_impact": ["footfall", "impact", "thud"],
    "hammer_tools": ["hammering", "tools"],
    "ui_click": ["click", "interface sound"],
    "typing_keyboard": ["typing", "keyboard"],
    "robot_misc": ["robot", "machine sounds"],
    "sword_metal": ["sword", "metal clanging"],
    "kitchen_household": ["household sounds", "kitchen sounds"],
    "animal_other": ["animal", "animal sounds"],
    "engine_car": ["engine", "car engine", "car"],
    "sheep_goat": ["sheep bleating", "goat"],
    "rooster_chicken": ["rooster crowing", "chicken"],
    "dog": ["dog barking", "dog"],
    "cat": ["cat meowing", "cat"],
    "birds": ["birds singing", "bird"],
    "gunshot": ["gunshot", "gun firing"],
    "water": ["water flowing", "water"],
    "explosion": ["explosion"],
    "footsteps": ["footsteps", "someone walking"],
    "siren_alarm": ["siren", "alarm"],
}
UNNAMED = {"other", "game_unit", ""}


# Words by which a description is known to be of speech or of music; what has none is an effect.
SPEECH_WORDS = {
    "speech", "voice", "speaking", "talking", "narration", "dialogue", "dialog", "man", "woman", "speaker",
}  # fmt: skip
MUSIC_WORDS = {
    "music", "song", "vocals", "singing", "drums", "bass", "guitar", "piano", "violin", "strings", "synth", "keys",
    "organ", "trumpet", "saxophone", "flute", "cello", "accompaniment", "melody", "percussion",
}  # fmt: skip


def kind_of(description: str) -> Literal["speech", "music", "sfx"]:
    """The kind of sound that a description is of, by its words."""
    words = set(description.lower().replace("-", " ").split())
    if words & MUSIC_WORDS:
        return "music"
    return "speech" if words & SPEECH_WORDS else "sfx"


def label_phrases(label: str) -> list[str]:
    """Wordings for an effect's label; general ones where the label says nothing."""
    if label in UNNAMED:
        return EFFECTS
    return LABEL_PHRASES.get(label, [label.replace("_", " ")])


def vocabulary(labels: list[str]) -> list[str]:
    """Every phrase that the engine can draw, without repeats, in a fixed order."""
    phrases = SPEECH + MUSIC + EFFECTS + NOT_SPEECH + NOT_MUSIC + NOT_EFFECTS
    phrases += [p for label in sorted(set(labels)) for p in label_phrases(label)]
    return list(dict.fromkeys(phrases))


def paraphrases(description: str) -> list[str]:
    """Other wordings of a description that mean the same, itself first; lower case, as the models were trained."""
    plain = " ".join(description.lower().split())
    if plain.startswith(("everything ", "all but ")):
        return [plain]
    return [plain, f"the sound of {plain}", f"sound of {plain}", f"only {plain}"]


def wordings(kind: str, label: str, descriptions: Sequence[str]) -> list[str]:
    """All ways to ask for a sound: its own descriptions and paraphrases of them, else those of its kind and label."""
    if descriptions:
        own = [list_[0] for list_ in map(paraphrases, descriptions)]
        # The owner's words stand once for every paraphrase, so that half of the draws are as they were written.
        return own * 3 + [text for description in descriptions for text in paraphrases(description)[1:]]
    if kind in ("speech", "music"):
        return SPEECH if kind == "speech" else MUSIC
    return label_phrases(label)


def complements(kind: str, description: str) -> list[str]:
    """Ways to ask for all but a sound."""
    general = {"speech": NOT_SPEECH, "music": NOT_MUSIC}.get(kind, [])
    return [f"everything except {description}", f"everything but {description}", *general]
