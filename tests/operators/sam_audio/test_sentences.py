"""Sentence vectors: one a description, the same whatever stands beside it."""

import pytest
import torch

from operators.sam_audio.config import ConfigError
from operators.sam_audio.sentences import MiniLMSentences

VALUES = {"kind": "minilm", "name": "all-MiniLM-L6-v2", "max_length": 64, "dim": 384}


@pytest.fixture(scope="module")
def sentences() -> MiniLMSentences:
    return MiniLMSentences(VALUES)


def test_vectors_have_unit_length_and_do_not_depend_on_the_batch(sentences: MiniLMSentences) -> None:
    both = sentences(["dog barking", "a much longer description of what is heard in the background"])
    torch.testing.assert_close(both.norm(dim=1), torch.ones(2))
    assert torch.equal(MiniLMSentences(VALUES)(["dog barking"])[0], both[0])


def test_what_means_the_same_lies_closer(sentences: MiniLMSentences) -> None:
    talk, also_talk, rain = sentences(["a man speaking", "somebody talks", "heavy rain"])
    assert talk @ also_talk > talk @ rain + 0.1


def test_one_string_is_refused(sentences: MiniLMSentences) -> None:
    with pytest.raises(TypeError, match="list of strings"):
        sentences("dog barking")


def test_an_unknown_key_is_named() -> None:
    with pytest.raises(ConfigError, match="lenght"):
        MiniLMSentences({**VALUES, "lenght": 3})
