"""The T5 text encoder: the reference's numbers, and where its weights may come from."""

from pathlib import Path

import fsspec
import pytest
import torch
from golden.loader import Golden, load
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from operators.sam_audio.config import TextEncoderConfig
from operators.sam_audio.text import T5TextEncoder, TextEncoderError, fetch_folder

CONFIG = TextEncoderConfig(dim=20, name="not-loaded")


@pytest.fixture(scope="module")
def golden() -> Golden:
    return load("t5_text")


@pytest.fixture(scope="module")
def model(golden: Golden) -> T5EncoderModel:
    model = T5EncoderModel(T5Config(**golden.config["t5"]))
    model.load_state_dict(golden.weights("text_encoder.model."))
    return model


@pytest.fixture(scope="module")
def tokenizer(golden: Golden) -> PreTrainedTokenizerFast:
    """The golden's stand-in: a token a word, counted from 2, then the end of text (1); padded with 0."""
    vocabulary = {word: i + 2 for i, word in enumerate(golden.values["vocabulary"])}
    words = Tokenizer(WordLevel({"<pad>": 0, "</s>": 1, **vocabulary}, unk_token="<pad>"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")


@pytest.fixture(scope="module")
def folder(model: T5EncoderModel, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("t5")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize("case", [0, 1, 2])
def test_features_equal_the_reference(
    case: int, golden: Golden, model: T5EncoderModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    features, mask = T5TextEncoder(CONFIG, model=model, tokenizer=tokenizer)(golden.values["texts"][case])
    assert torch.equal(mask, golden[f"case{case}.out.mask"])
    golden.assert_close(features, f"case{case}.out.features")


def test_empty_description_is_one_token(model: T5EncoderModel, tokenizer: PreTrainedTokenizerFast) -> None:
    features, mask = T5TextEncoder(CONFIG, model=model, tokenizer=tokenizer)([""])
    assert features.shape == (1, 1, 20)
    assert mask.tolist() == [[True]]


def test_long_description_is_truncated(model: T5EncoderModel, tokenizer: PreTrainedTokenizerFast) -> None:
    config = TextEncoderConfig(dim=20, max_length=4)
    features, _ = T5TextEncoder(config, model=model, tokenizer=tokenizer)(["dog rain dog rain dog rain"])
    assert features.shape == (1, 4, 20)


def test_pad_mode_max_length_pads_every_batch_alike(model: T5EncoderModel, tokenizer: PreTrainedTokenizerFast) -> None:
    config = TextEncoderConfig(dim=20, max_length=7, pad_mode="max_length")
    features, mask = T5TextEncoder(config, model=model, tokenizer=tokenizer)(["dog"])
    assert features.shape == (1, 7, 20)
    assert mask.sum() == 2


def test_nothing_is_loaded_before_the_first_description() -> None:
    encoder = T5TextEncoder(TextEncoderConfig(name="/no/such/folder")).to("cpu")
    with pytest.raises(TextEncoderError, match="/no/such/folder"):
        encoder(["dog"])


def test_local_folder_is_loaded(golden: Golden, folder: Path) -> None:
    features, _ = T5TextEncoder(TextEncoderConfig(dim=20, name=str(folder)))(golden.values["texts"][0])
    golden.assert_close(features, "case0.out.features")


def test_url_is_copied_once_without_what_is_not_needed(golden: Golden, folder: Path, tmp_path: Path) -> None:
    remote = fsspec.filesystem("memory")
    remote.put(str(folder) + "/", "/t5-remote/", recursive=True)
    remote.pipe("/t5-remote/tf_model.h5", b"weights for another framework")
    copy = fetch_folder("memory://t5-remote", tmp_path)
    assert {p.name for p in copy.iterdir()} == {p.name for p in folder.iterdir()}
    features, _ = T5TextEncoder(TextEncoderConfig(dim=20, name=str(copy)))(golden.values["texts"][0])
    golden.assert_close(features, "case0.out.features")
    assert fetch_folder("memory://t5-remote", tmp_path) == copy
    assert [p.name for p in tmp_path.iterdir()] == [copy.name]


def test_url_with_new_files_is_copied_anew(folder: Path, tmp_path: Path) -> None:
    remote = fsspec.filesystem("memory")
    remote.put(str(folder) + "/", "/t5-changing/", recursive=True)
    first = fetch_folder("memory://t5-changing", tmp_path)
    remote.pipe("/t5-changing/vocab.txt", b"more")
    assert fetch_folder("memory://t5-changing", tmp_path) != first


@pytest.mark.parametrize("url", ["memory://nothing-here", "no-such-protocol://bucket/t5"])
def test_url_that_cannot_be_read_is_named(url: str, tmp_path: Path) -> None:
    with pytest.raises(TextEncoderError, match=url.partition(":")[0]):
        fetch_folder(url, tmp_path)


def test_model_of_another_width_is_rejected(folder: Path) -> None:
    with pytest.raises(TextEncoderError, match="20 channels"):
        T5TextEncoder(TextEncoderConfig(dim=768, name=str(folder)))(["dog"])
