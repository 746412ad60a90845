"""What the span predictor learns to hear: concepts, their wordings, and which recordings are an example of each.

A concept is a class (speech, music, effects), its complement, a family of effects (animals) or one effect label.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import prompts

# Effects that one phrase names together.
FAMILIES = {
    ("animal", "animals", "animal sounds", "an animal"): {
        "animal_other", "bat", "bear", "birds", "cat", "cow", "crow", "dog", "duck_goose", "elephant", "frog", "horse",
        "insects", "lion_bigcat", "monkey", "owl", "pig", "rooster_chicken", "sheep_goat", "snake_hiss",
        "whale_dolphin", "wolf",
    },
    ("vehicle", "vehicles", "traffic", "a motor"): {"airplane", "engine_car", "helicopter", "train"},
    ("weather", "nature sounds", "nature"): {"rain", "thunder", "wind", "water"},
    ("ambience", "outdoor ambience", "atmosphere"): {"day_ambience", "farm_ambience", "night_ambience"},
    ("alarm", "ringing", "warning signal"): {"bell", "horn", "phone_ring", "ship_horn", "siren_alarm"},
    ("weapon", "weapons", "battle sounds"): {"explosion", "gunshot", "laser", "sword_metal"},
}  # fmt: skip

# Labels that sound alike, or that recordings of each other may hold: neither is a counter-example of the other.
ALIKE = (
    {"rain", "water", "thunder", "wind"},
    {"day_ambience", "farm_ambience", "night_ambience", "birds", "insects", "frog", "owl", "crow", "rooster_chicken",
     "wind", "water", "rain", "sheep_goat", "duck_goose"},
    {"airplane", "electric_hum", "engine_car", "helicopter", "robot_misc", "train", "wind"},
    {"explosion", "gunshot", "thunder", "footfall_impact"},
    {"door", "footfall_impact", "footsteps", "hammer_tools", "kitchen_household"},
    {"camera", "clock_tick", "hammer_tools", "typing_keyboard", "ui_click"},
    {"bell", "coins", "glass", "kitchen_household", "sword_metal"},
    {"bell", "horn", "laser", "phone_ring", "robot_misc", "ship_horn", "siren_alarm", "train", "ui_click"},
    next(iter(FAMILIES.values())) & {"animal_other", "bear", "lion_bigcat", "pig", "cow", "elephant", "monkey", "wolf"},
    {"animal_other", "bat", "cat", "crow", "dog", "duck_goose", "horse", "sheep_goat", "snake_hiss", "whale_dolphin"},
)  # fmt: skip

# Speech and music beyond what the separator is taught: ways in which people ask where somebody speaks.
SPEAKERS = (
    "announcer", "a reporter talking", "news reader", "a conversation", "people having a discussion", "a lecture",
    "somebody giving a talk", "a person telling a story", "reading aloud", "radio presenter", "audiobook", "commentary",
    "an old man speaking", "a young woman speaking", "a child speaking", "politician holding a speech", "words",
    "phone call", "a speaker", "chatter of one person", "male voice", "female voice", "teacher explaining something",
)  # fmt: skip
TUNES = (
    "a band playing", "a tune", "musical accompaniment", "film music", "orchestra and band", "a music track",
    "melodies and chords", "musicians performing", "a concert", "theme tune", "rhythm and harmony", "playing music",
)  # fmt: skip

TEMPLATES = ("{}", "{}", "the sound of {}", "{} sound", "{} in the background", "a recording of {}", "loud {}")


@dataclass(frozen=True)
class Concept:
    """`wordings`: phrases that mean it. `examples`, `unsure`: sources (kind, label) that are, or may be, one."""

    name: str
    wordings: tuple[str, ...]
    examples: frozenset[tuple[str, str]]
    unsure: frozenset[tuple[str, str]]


def concepts(labels: list[str]) -> list[Concept]:
    """Every concept that sources of speech, music and effects with these labels can be examples of."""
    named = sorted({label for label in labels if label not in prompts.UNNAMED})
    everything = {("speech", ""), ("music", ""), *(("sfx", label) for label in labels)}
    kinds = {kind: frozenset(s for s in everything if s[0] == kind) for kind in ("speech", "music", "sfx")}
    unnamed = frozenset(("sfx", label) for label in labels if label in prompts.UNNAMED)
    none: frozenset[tuple[str, str]] = frozenset()
    found = [
        Concept("speech", (*prompts.SPEECH, *SPEAKERS), kinds["speech"], none),
        Concept("music", (*prompts.MUSIC, *TUNES), kinds["music"], none),
        Concept("effects", tuple(prompts.EFFECTS), kinds["sfx"], none),
        Concept("all but speech", tuple(prompts.NOT_SPEECH), kinds["music"] | kinds["sfx"], none),
        Concept("all but music", tuple(prompts.NOT_MUSIC), kinds["speech"] | kinds["sfx"], none),
        Concept("all but effects", tuple(prompts.NOT_EFFECTS), kinds["speech"] | kinds["music"], none),
    ]
    for phrases, members in FAMILIES.items():
        inside = frozenset(("sfx", label) for label in members if label in named)
        near = {other for group in ALIKE for other in group if group & members}
        if inside:
            unsure = frozenset(("sfx", label) for label in near - members) | unnamed
            found.append(Concept(phrases[0], _templated(phrases), inside, unsure))
    for label in named:
        near = {other for group in ALIKE if label in group for other in group} - {label}
        unsure = frozenset(("sfx", other) for other in near) | unnamed
        wordings = _templated(tuple(prompts.label_phrases(label)))
        found.append(Concept(label, wordings, frozenset({("sfx", label)}), unsure))
    return found


def _templated(phrases: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(template.format(phrase) for phrase in phrases for template in TEMPLATES))
