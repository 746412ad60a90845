"""Descriptions that the data engine draws from: several wordings a class, so that a paraphrase means the same."""

from __future__ import annotations

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
