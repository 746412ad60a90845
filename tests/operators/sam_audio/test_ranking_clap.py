"""CLAP as a ranker: its published weights under ClapModel's names, its features, and how long audio is heard."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

from operators.sam_audio.ranking_clap import WINDOW, ClapRanker, log_mel, windows
from operators.sam_audio.ranking_clap_weights import load_clap, read, released_config, rename
from operators.sam_audio.sources import CheckpointError

WORDS = ["<s>", "<pad>", "</s>", "<unk>", "dog", "barking", "rain"]
TINY = ClapConfig(
    audio_config={
        "patch_embeds_hidden_size": 8,
        "hidden_size": 64,
        "depths": [1, 1, 2, 1],
        "num_attention_heads": [1, 2, 4, 8],
    },
    text_config={
        "vocab_size": len(WORDS),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 90,
    },
    projection_dim=12,
)


def published_shapes(config: ClapConfig) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a laion_clap checkpoint (HTSAT without fusion, RoBERTa), as that package makes them."""
    audio, text, out = config.audio_config, config.text_config, config.projection_dim
    shapes: dict[str, tuple[int, ...]] = {"logit_scale_a": (), "logit_scale_t": ()}

    def linear(name: str, inner: int, outer: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outer, inner), (outer,)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (width,), (width,)

    width, table = audio.patch_embeds_hidden_size, (2 * audio.window_size - 1) ** 2
    tower = "audio_branch."
    shapes |= {f"{tower}spectrogram_extractor.stft.conv_{part}.weight": (513, 1, 1024) for part in ("real", "imag")}
    shapes |= {f"{tower}logmel_extractor.melW": (513, 64), f"{tower}bn0.num_batches_tracked": ()}
    shapes |= {f"{tower}bn0.{name}": (64,) for name in ("weight", "bias", "running_mean", "running_var")}
    shapes |= {f"{tower}patch_embed.proj.weight": (width, 1, 4, 4), f"{tower}patch_embed.proj.bias": (width,)}
    norm(f"{tower}patch_embed.norm", width)
    for i, depth in enumerate(audio.depths):
        for j in range(depth):
            block = f"{tower}layers.{i}.blocks.{j}"
            norm(f"{block}.norm1", width)
            norm(f"{block}.norm2", width)
            shapes[f"{block}.attn.relative_position_bias_table"] = (table, audio.num_attention_heads[i])
            shapes[f"{block}.attn.relative_position_index"] = (audio.window_size**2, audio.window_size**2)
            linear(f"{block}.attn.qkv", width, 3 * width)
            linear(f"{block}.attn.proj", width, width)
            linear(f"{block}.mlp.fc1", width, 4 * width)
            linear(f"{block}.mlp.fc2", 4 * width, width)
            if j % 2:
                shapes[f"{block}.attn_mask"] = (4, audio.window_size**2, audio.window_size**2)
        if i < len(audio.depths) - 1:
            shapes[f"{tower}layers.{i}.downsample.reduction.weight"] = (2 * width, 4 * width)
            norm(f"{tower}layers.{i}.downsample.norm", 4 * width)
            width *= 2
    norm(f"{tower}norm", width)
    shapes |= {f"{tower}tscam_conv.weight": (527, width, 2, 3), f"{tower}tscam_conv.bias": (527,)}
    linear(f"{tower}head", 527, 527)

    hidden = text.hidden_size
    shapes["text_branch.embeddings.position_ids"] = (1, text.max_position_embeddings)
    shapes["text_branch.embeddings.word_embeddings.weight"] = (text.vocab_size, hidden)
    shapes["text_branch.embeddings.position_embeddings.weight"] = (text.max_position_embeddings, hidden)
    shapes["text_branch.embeddings.token_type_embeddings.weight"] = (1, hidden)
    norm("text_branch.embeddings.LayerNorm", hidden)
    for i in range(text.num_hidden_layers):
        layer = f"text_branch.encoder.layer.{i}"
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            linear(f"{layer}.{name}", hidden, hidden)
        linear(f"{layer}.intermediate.dense", hidden, text.intermediate_size)
        linear(f"{layer}.output.dense", text.intermediate_size, hidden)
        norm(f"{layer}.attention.output.LayerNorm", hidden)
        norm(f"{layer}.output.LayerNorm", hidden)
    linear("text_branch.pooler.dense", hidden, hidden)
    for name, inner in (("text", hidden), ("audio", width)):
        linear(f"{name}_projection.0", inner, out)
        linear(f"{name}_projection.2", out, out)
        linear(f"{name}_transform.sequential.0", out, out)
        linear(f"{name}_transform.sequential.3", out, out)
    return shapes


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random CLAP as a laion_clap training run leaves it, with a tokenizer beside it."""
    folder = tmp_path_factory.mktemp("clap")
    generator = torch.Generator().manual_seed(3)
    position = next(v for k, v in ClapModel(TINY).state_dict().items() if k.endswith("relative_position_index"))
    state = {}
    for key, shape in published_shapes(TINY).items():
        value = torch.randn(shape, generator=generator) * 0.2
        if key.endswith(("relative_position_index", "position_ids", "num_batches_tracked")):
            value = position.clone() if "relative" in key else torch.zeros(shape, dtype=torch.long)
        if key.endswith("running_var"):
            value = value.abs() + 50
        state[f"module.{key}"] = value
    torch.save({"epoch": 45, "name": "run", "best": np.float64(0.5), "state_dict": state}, folder / "tiny.pt")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tiny.pt"


@pytest.fixture(scope="module")
def ranker(published: Path) -> ClapRanker:
    model, tokenizer = load_clap(published, config=TINY)
    return ClapRanker(model=model, tokenizer=tokenizer)


def test_published_keys_become_exactly_those_of_the_released_size() -> None:
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in published_shapes(released_config()).items()}
        wanted = {key: t.shape for key, t in ClapModel(released_config()).state_dict().items()}
    computed = {"text_model.embeddings.position_ids", "text_model.embeddings.token_type_ids"}
    assert {key: t.shape for key, t in rename(state).items()} == {k: s for k, s in wanted.items() if k not in computed}


def test_attention_weights_are_split_in_the_order_query_key_value(published: Path) -> None:
    state = read(published)
    model, _ = load_clap(published, config=TINY)
    stacked = state["module.audio_branch.layers.1.blocks.0.attn.qkv.weight"]
    attention = model.audio_model.audio_encoder.layers[1].blocks[0].attention.self
    for part, name in zip(stacked.chunk(3), ("query", "key", "value"), strict=True):
        assert torch.equal(getattr(attention, name).weight, part)
    projection = model.text_projection.linear2.weight
    assert torch.equal(projection, state["module.text_projection.2.weight"])


def test_a_missing_tensor_is_named(published: Path, tmp_path: Path) -> None:
    state = read(published)
    del state["module.audio_branch.norm.bias"]
    torch.save({"state_dict": state}, tmp_path / "part.pt")
    (tmp_path / "tokenizer.json").write_bytes((published.parent / "tokenizer.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"audio_model\.audio_encoder\.norm\.bias"):
        load_clap(tmp_path / "part.pt", config=TINY)


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("/nonexistent/never"),)  # type: ignore[return-value]


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": Payload()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match=r"evil\.pt"):
        read(tmp_path / "evil.pt")


def test_a_checkpoint_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.pt"):
        load_clap(tmp_path / "gone.pt")


def test_transformers_layout_loads_too(ranker: ClapRanker, published: Path, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    model, _ = load_clap(published, config=TINY)
    model.save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_file=str(published.parent / "tokenizer.json"), pad_token="<pad>").save_pretrained(
        tmp_path
    )
    audio = torch.randn(2, 48_000, generator=torch.Generator().manual_seed(0)) * 0.1
    given = {"extracted_audio": [audio], "descriptions": ["dog barking"]}
    torch.testing.assert_close(ClapRanker(tmp_path)(**given), ranker(**given))


def test_features_equal_those_of_the_models_own_extractor() -> None:
    audio = torch.randn(WINDOW, generator=torch.Generator().manual_seed(5)) * 0.1
    extractor = ClapFeatureExtractor(truncation="rand_trunc", frequency_min=50, frequency_max=14_000)
    expected = extractor(audio.numpy(), sampling_rate=48_000, return_tensors="pt")["input_features"][0]
    torch.testing.assert_close(log_mel(audio[None])[0].double(), expected.double(), atol=5e-3, rtol=1e-4)


def test_scores_are_cosines_of_the_models_embeddings(ranker: ClapRanker, published: Path) -> None:
    model, tokenizer = load_clap(published, config=TINY)
    audio = torch.randn(2, 3, 96_000, generator=torch.Generator().manual_seed(1)) * 0.1
    scores = ranker(extracted_audio=list(audio), descriptions=["dog barking", "rain"])
    assert scores.shape == (2, 3) and scores.dtype == torch.float32
    ids = tokenizer(["dog barking", "rain"], padding=True, return_tensors="pt")
    with torch.no_grad():
        text = model.get_text_features(ids["input_ids"], ids["attention_mask"]).pooler_output
        heard = model.get_audio_features(log_mel(next(windows(audio[1, 2]))[None])).pooler_output[0]
    torch.testing.assert_close(scores[1, 2], heard @ text[1])


def test_long_audio_is_heard_whole_and_alike_every_time(ranker: ClapRanker) -> None:
    audio = torch.randn(1, WINDOW * 5 // 2, generator=torch.Generator().manual_seed(2)) * 0.1
    given = {"extracted_audio": [audio], "descriptions": ["dog"]}
    scores = ranker(**given)
    assert torch.equal(scores, ranker(**given))
    pieces = list(windows(audio[0]))
    each = ranker(extracted_audio=[torch.stack(pieces)], descriptions=["dog"])
    torch.testing.assert_close(scores, each.mean(1, keepdim=True), atol=1e-5, rtol=1e-4)


def test_windows_reach_from_the_first_to_the_last_sample() -> None:
    ramp = torch.arange(WINDOW * 2 + 100) / (WINDOW * 4)
    pieces = list(windows(ramp))
    assert [len(piece) for piece in pieces] == [WINDOW] * 3
    torch.testing.assert_close(pieces[0][0], ramp[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(pieces[-1][-1], ramp[-1], atol=1e-4, rtol=0)


def test_short_audio_is_repeated_whole_then_padded() -> None:
    short = torch.linspace(-0.5, 0.5, 200_000)
    (piece,) = windows(short)
    assert torch.equal(piece[:200_000], piece[200_000:400_000]) and not piece[400_000:].any()
    (nothing,) = windows(torch.zeros(0))
    assert nothing.shape == (WINDOW,)


def test_other_sample_rates_are_brought_to_the_models(ranker: ClapRanker) -> None:
    t = torch.arange(48_000) / 48_000
    tone = 0.2 * torch.sin(2 * torch.pi * 440 * t)
    half: Tensor = 0.2 * torch.sin(2 * torch.pi * 440 * torch.arange(24_000) / 24_000)
    a = ranker(extracted_audio=[tone[None]], descriptions=["rain"])
    b = ranker(extracted_audio=[half[None]], descriptions=["rain"], sample_rate=24_000)
    torch.testing.assert_close(a, b, atol=0.05, rtol=0)
