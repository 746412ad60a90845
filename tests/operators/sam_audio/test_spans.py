"""PE-A-Frame: the reference's numbers, spans from logits, and both layouts of its checkpoints."""

import copy
import json
import math
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from golden.loader import Golden, load, released_manifest
from released_layout import write_bert_tokenizer
from safetensors.torch import save_file
from torch import Tensor
from transformers import PeAudioConfig, PeAudioFrameLevelModel

from operators.sam_audio.anchors import anchor_frames
from operators.sam_audio.checkpoint import CheckpointError
from operators.sam_audio.codec import DACVAE
from operators.sam_audio.config import ConfigError, DACVAEConfig
from operators.sam_audio.sources import SHIPPED
from operators.sam_audio.spans import (
    PEAFrame,
    PEAFrameConfig,
    active_frames,
    is_unused_key,
    reference_names,
    span_frames,
    spans,
)

SIZES = {"small": (768, 2048, 12, 6), "base": (1024, 2752, 16, 8), "large": (1792, 4800, 28, 14)}


@pytest.fixture(scope="module")
def golden() -> Golden:
    return load("pe_frame")


@pytest.fixture(scope="module")
def predictor(golden: Golden) -> PEAFrame:
    return build(golden.config["pe_a_frame"], golden.weights())


@pytest.fixture(scope="module")
def folder(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden predictor as a checkpoint in the reference's layout, with a tokenizer of its own."""
    path = tmp_path_factory.mktemp("pe-a-frame")
    write(path, golden.config["pe_a_frame"], golden.weights())
    return path


@pytest.fixture(scope="module")
def theirs() -> PeAudioFrameLevelModel:
    """transformers' own class, with the text state that it was made for (5.x would norm it)."""
    torch.manual_seed(5)
    model = PeAudioFrameLevelModel(PeAudioConfig(**transformers_config())).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.text_audio_logit_scale.fill_(1.5)
        model.text_audio_logit_bias.fill_(-0.5)
    return model


def build(config: dict[str, Any], weights: dict[str, Tensor]) -> PEAFrame:
    model = PEAFrame(PEAFrameConfig.from_dict(config)).eval()
    layer = model.config.nth_text_layer
    model.load_state_dict({key: t for key, t in weights.items() if not is_unused_key(key, layer)})
    return model


def write(path: Path, config: dict[str, Any], weights: dict[str, Tensor], vocab_size: int = 40) -> None:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    save_file(weights, path / "model.safetensors")
    write_bert_tokenizer(path, vocab_size)


def transformers_config() -> dict[str, Any]:
    text = {"vocab_size": 40, "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 3}
    text |= {"num_attention_heads": 2, "local_attention": 6, "pad_token_id": 0, "tie_last_hidden_states": False}
    dac = {"encoder_hidden_size": 2, "downsampling_ratios": [2, 4, 4, 10], "hidden_size": 32, "codebook_dim": 8}
    audio = {"dac_config": dac, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    audio |= {"num_attention_heads": 2, "head_dim": 16, "max_position_embeddings": 100}
    return {"model_type": "pe_audio", "text_config": text, "audio_config": audio}


def tokens(golden: Golden) -> tuple[Tensor, Tensor]:
    return golden["in.input_ids"], golden["in.attention_mask"]


def listed(rows: list[list[tuple[float, float]]]) -> list[list[list[float]]]:
    return [[list(span) for span in row] for row in rows]


# The network


def test_embeddings_equal_the_reference(predictor: PEAFrame, golden: Golden) -> None:
    features, mask = golden["in.features"], golden["in.padding_mask"]
    golden.assert_close(predictor.embed_descriptions(tokens(golden)), "features.out.text_embeds")
    golden.assert_close(predictor.embed_frames(features, mask), "features.out.audio_embeds")
    golden.assert_close(predictor.embed_frames(features), "unmasked.out.audio_embeds")
    golden.assert_close(
        predictor.embed_frames(golden["wave.out.codec_features"], golden["wave.in.padding_mask"][:, ::320]),
        "wave.out.audio_embeds",
    )


@torch.no_grad()
def test_inner_states_equal_the_reference(predictor: PEAFrame, golden: Golden) -> None:
    audio = predictor.audio_model
    hidden = audio.audio_transformer(audio.data_proj(golden["in.features"]), golden["in.padding_mask"])
    golden.assert_close(hidden.frames, "features.out.audio_hidden")
    golden.assert_close(hidden.pooled, "features.out.audio_cls")
    torch.testing.assert_close(
        predictor.descriptions(tokens(golden)), golden["features.out.text_layer"][:, 0], **golden.tolerance
    )


@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_logits_and_their_spans_equal_the_reference(threshold: float, predictor: PEAFrame, golden: Golden) -> None:
    logits = predictor.logits(golden["in.features"], golden["in.padding_mask"], tokens(golden))
    golden.assert_close(logits, "features.out.logits")
    found = spans(logits, threshold=threshold, hop_length=320, sample_rate=8000)
    assert listed(found) == golden.values[f"spans_threshold_{threshold}"]


def test_spans_without_mask_and_from_sound_equal_the_reference(predictor: PEAFrame, golden: Golden) -> None:
    unmasked = predictor.logits(golden["in.features"], None, tokens(golden))
    assert listed(spans(unmasked, hop_length=320, sample_rate=8000)) == golden.values["unmasked_spans_threshold_0.3"]
    heard = predictor.logits(
        golden["wave.out.codec_features"], golden["wave.in.padding_mask"][:, ::320], tokens(golden)
    )
    assert listed(spans(heard, hop_length=320, sample_rate=8000)) == golden.values["wave_spans_threshold_0.3"]


def test_spans_inside_a_separation_equal_the_reference() -> None:
    golden = load("separate_spans")
    values = golden.config["sam_audio"]["audio_codec"]
    known = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k not in DACVAEConfig.UNUSED}
    codec = DACVAE(DACVAEConfig(**known)).eval()
    codec.load_state_dict(golden.weights("audio_codec."))
    predictor = build(golden.config["span_predictor"], golden.weights("span_predictor."))
    recordings = [golden["in.wav0"].mean(0), golden["in.wav1"].mean(0)]
    latents = codec.encode(torch.nn.utils.rnn.pad_sequence(recordings, batch_first=True)[:, None]).transpose(1, 2)
    sizes = torch.tensor([-(-len(wave) // codec.hop_length) for wave in recordings])
    mask = torch.arange(latents.shape[1]) < sizes[:, None]
    logits = predictor.logits(
        latents, mask, {"input_ids": golden["in.span_input_ids"], "attention_mask": golden["in.span_attention_mask"]}
    )
    golden.assert_close(logits, "mid.span_logits")
    found = spans(logits, hop_length=codec.hop_length, sample_rate=codec.sample_rate)
    assert listed(found) == golden.values["spans"]


@pytest.mark.parametrize("layer", [0, 1, 4, None])
def test_text_is_read_at_the_layer_that_the_config_names(layer: int | None, golden: Golden) -> None:
    from transformers import ModernBertConfig, ModernBertModel

    config = golden.config["pe_a_frame"] | {"nth_text_layer": layer}
    whole = ModernBertModel(ModernBertConfig(**config["text_model"])).eval()
    whole.load_state_dict(golden.weights("text_model."))
    ids, mask = tokens(golden)
    states: list[Tensor] = []
    whole.embeddings.register_forward_hook(lambda module, inputs, out: states.append(out))
    for block in whole.layers:
        block.register_forward_hook(lambda module, inputs, out: states.append(out))
    with torch.no_grad():
        last = whole(input_ids=ids, attention_mask=mask).last_hidden_state
    expected = last if layer is None else states[layer]
    predictor = build(config, golden.weights())
    torch.testing.assert_close(predictor.descriptions((ids, mask)), expected[:, 0], atol=1e-5, rtol=1e-4)


def test_layer_that_the_text_model_lacks_is_refused(golden: Golden) -> None:
    with pytest.raises(ConfigError, match=r"nth_text_layer 5.*4 layers"):
        PEAFrame(PEAFrameConfig.from_dict(golden.config["pe_a_frame"] | {"nth_text_layer": 5}))


# Descriptions


def test_descriptions_are_encoded_once_whatever_stands_beside_them(folder: Path, golden: Golden) -> None:
    predictor = PEAFrame.from_pretrained(folder)
    rows: list[int] = []
    predictor.text_model.embeddings.register_forward_hook(lambda module, inputs, out: rows.append(len(out)))
    features = golden["in.features"]
    first = predictor.logits(features, None, ["dog barking", "dog barking"])
    second = predictor.logits(features, None, ["rain on a window and footsteps on gravel", "dog barking"])
    assert rows == [1, 1]
    assert torch.equal(first[1], second[1])
    # To the last bit: a job must not depend on what else it is asked for.
    alone = PEAFrame.from_pretrained(folder).logits(features, None, ["rain on a window and footsteps on gravel", "x"])
    assert torch.equal(second[0], alone[0])


def test_other_weights_mean_other_features(folder: Path) -> None:
    predictor = PEAFrame.from_pretrained(folder)
    before = predictor.descriptions(["rain"])
    predictor.load_state_dict({key: 1.1 * tensor for key, tensor in predictor.state_dict().items()})
    assert not torch.allclose(predictor.descriptions(["rain"]), before)
    predictor.bfloat16()
    assert predictor.descriptions(["rain"]).dtype == torch.bfloat16


def test_features_kept_from_inference_mode_serve_elsewhere(folder: Path, golden: Golden) -> None:
    args = golden["in.features"], None, ["rain", "wind"]
    with torch.inference_mode():
        predictor = PEAFrame.from_pretrained(folder)
        before = predictor.logits(*args)
    assert torch.equal(predictor.logits(*args), before)
    assert predictor.embed_descriptions(["rain"]).shape == (1, 12)


def test_tokens_need_no_tokenizer_and_descriptions_say_that_they_do(predictor: PEAFrame, golden: Golden) -> None:
    with pytest.raises(ValueError, match="without a tokenizer"):
        predictor.logits(golden["in.features"], None, ["rain", "wind"])
    with pytest.raises(TypeError, match="list of strings"):
        predictor.logits(golden["in.features"], None, "rain")
    with pytest.raises(ValueError, match="2 recordings but 1 descriptions"):
        predictor.logits(golden["in.features"], None, (golden["in.input_ids"][:1], golden["in.attention_mask"][:1]))
    with pytest.raises(ValueError, match=r"\[B, T, 8\]"):
        predictor.logits(golden["in.features"].transpose(1, 2), None, tokens(golden))


# From logits to spans


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.05])
def test_decoding_equals_the_reference(threshold: float) -> None:
    golden = load("span_decoding")
    found = spans(golden["in.logits"], threshold=threshold, hop_length=320, sample_rate=8000)
    assert listed(found) == golden.values[f"threshold_{threshold}"]


def test_runs_of_frames_have_exclusive_ends() -> None:
    active = torch.tensor([1, 1, 0, 0, 1, 0, 1], dtype=torch.bool)
    assert span_frames(active) == [(0, 2), (4, 5), (6, 7)]
    assert span_frames(torch.zeros(4, dtype=torch.bool)) == []
    assert span_frames(torch.zeros(0, dtype=torch.bool)) == []
    assert span_frames(torch.ones(3, dtype=torch.bool)) == [(0, 3)]


def test_exact_rounding_survives_the_anchors_and_the_reference_s_comes_late() -> None:
    # Every other frame of ten minutes is active: each boundary is seen once.
    logits = torch.where(torch.arange(15_000) % 2 == 1, 1.0, -9.0)[None]
    frames = span_frames(active_frames(logits[0]))
    late: dict[str, float] = {}
    for rounding in ("exact", "reference"):
        found = spans(logits, hop_length=1920, sample_rate=48_000, rounding=rounding)[0]
        placed = [anchor_frames(("+", start, end), 48_000, 1920) for start, end in found]
        moved = [(there.start != here[0]) + (there.stop != here[1]) for there, here in zip(placed, frames, strict=True)]
        late[rounding] = sum(moved) / (2 * len(frames))
    assert late["exact"] == 0
    assert 0.3 < late["reference"] < 0.6
    with pytest.raises(ValueError, match="rounding"):
        spans(logits, hop_length=1920, sample_rate=48_000, rounding="nearest")


def test_probability_must_exceed_the_threshold() -> None:
    at_a_half = torch.zeros(1, 2)
    assert spans(at_a_half, threshold=0.5, hop_length=1, sample_rate=1) == [[]]
    assert spans(at_a_half, threshold=math.nextafter(0.5, 0) - 1e-7, hop_length=1, sample_rate=1) == [[(0.0, 2.0)]]


# Checkpoints


@pytest.mark.parametrize("size", SIZES)
def test_released_checkpoints_fit_key_by_key(size: str) -> None:
    width, inner, layers, heads = SIZES[size]
    released = released_manifest()[f"pe-a-frame-{size}@perception_models"]["keys"]
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    transformer = dict(zip(names, (width, inner, layers, heads), strict=True))
    config = PEAFrameConfig.from_dict({"audio_model": {"audio_transformer": transformer}})
    with torch.device("meta"):
        model = PEAFrame(config)
    ours = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    assert ours == {key: shape for key, shape in released.items() if not is_unused_key(key, 22)}
    unused = {key for key in released if is_unused_key(key, 22)}
    prefixes = ("audio_model.dac_vae_encoder.", "text_model.layers.2", "text_model.final_norm.")
    assert all(key.startswith(prefixes) for key in unused)
    assert not any(key.startswith(("text_model.layers.20.", "text_model.layers.21.")) for key in unused)


def test_folder_in_the_reference_s_layout_loads_and_keeps_only_what_is_used(
    folder: Path, predictor: PEAFrame, golden: Golden
) -> None:
    loaded = PEAFrame.from_pretrained(folder)
    assert not loaded.training
    assert not [key for key in loaded.state_dict() if "dac_vae_encoder" in key or "text_model.layers.3." in key]
    args = golden["in.features"], golden["in.padding_mask"], tokens(golden)
    assert torch.equal(loaded.logits(*args), predictor.logits(*args))


@torch.no_grad()
def test_folder_in_transformers_layout_gives_the_logits_of_transformers_class(
    theirs: PeAudioFrameLevelModel, tmp_path: Path
) -> None:
    theirs.save_pretrained(tmp_path)
    write_bert_tokenizer(tmp_path, 40)
    ours = PEAFrame.from_pretrained(tmp_path)
    wave = 0.3 * torch.randn(2, 1, 320 * 11, generator=torch.Generator().manual_seed(2))
    ids = torch.randint(3, 40, (2, 7), generator=torch.Generator().manual_seed(2))
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    embedder = theirs.audio_encoder.embedder
    latents = embedder.bottleneck(embedder.dac_encoder(wave)).transpose(1, 2)
    expected = theirs(input_ids=ids, input_values=wave, attention_mask=mask.long()).logits_audio_text
    logits = ours.logits(latents, None, (ids, mask.long()))
    torch.testing.assert_close(logits, torch.stack([expected[0, 0], expected[1, 1]]), atol=5e-5, rtol=5e-4)
    assert ours.descriptions(["dog barking"]).shape == (1, 24)


def test_released_sizes_of_transformers_layout_map_key_by_key() -> None:
    width, inner, layers, heads = SIZES["large"]
    audio = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
    config = {"text_config": {}, "audio_config": audio | {"num_attention_heads": heads}}
    with torch.device("meta"):
        theirs = PeAudioFrameLevelModel(PeAudioConfig(**copy.deepcopy(config)))
        ours = PEAFrame(PEAFrameConfig.from_dict(config))
    named = reference_names(theirs.state_dict())
    wanted = {key: tensor.shape for key, tensor in ours.state_dict().items()}
    assert wanted == {key: tensor.shape for key, tensor in named.items() if not is_unused_key(key, 22)}


def test_url_loads_with_its_tokenizer(folder: Path, golden: Golden) -> None:
    fsspec.filesystem("memory").put(str(folder), "/models/pe-a-frame", recursive=True)
    try:
        loaded = PEAFrame.from_pretrained("memory://models/pe-a-frame")
        local = PEAFrame.from_pretrained(folder)
        args = golden["in.features"], None, ["dog barking", "rain"]
        assert torch.equal(loaded.logits(*args), local.logits(*args))
    finally:
        fsspec.filesystem("memory").rm("/models", recursive=True)


def test_short_name_takes_the_revision_that_sam_audio_was_made_with(
    folder: Path, golden: Golden, tmp_path: Path
) -> None:
    repository = tmp_path / "models--facebook--pe-a-frame-small"
    (repository / "snapshots").mkdir(parents=True)
    shutil.copytree(folder, repository / "snapshots" / ("c" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "perception_models").write_text("c" * 40)
    predictor = PEAFrame.from_pretrained("pe-a-frame-small", cache_dir=tmp_path, local_files_only=True)
    assert predictor.logits(golden["in.features"], None, ["dog barking", "rain"]).isfinite().all()
    with pytest.raises(CheckpointError, match="facebook/pe-a-frame-base"):
        PEAFrame.from_pretrained("pe-a-frame-base", cache_dir=tmp_path, local_files_only=True)


def test_half_precision_loads_and_stays_close(folder: Path, predictor: PEAFrame, golden: Golden) -> None:
    half = PEAFrame.from_pretrained(folder, dtype=torch.bfloat16)
    args = golden["in.features"], golden["in.padding_mask"], tokens(golden)
    logits, exact = half.logits(*args), predictor.logits(*args)
    assert half.audio_head.proj.weight.dtype == torch.bfloat16
    assert logits.dtype == half.logit_bias.dtype == torch.float32
    assert (logits - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_model_can_be_copied_and_sent(clone: Callable[[PEAFrame], PEAFrame], folder: Path, golden: Golden) -> None:
    model = PEAFrame.from_pretrained(folder)
    twin = clone(model)
    texts = ["dog barking", "rain"]
    assert torch.equal(
        twin.logits(golden["in.features"], None, texts), model.logits(golden["in.features"], None, texts)
    )
    assert twin.descriptions is not model.descriptions


def test_checkpoint_with_other_keys_is_refused_by_name(golden: Golden, tmp_path: Path) -> None:
    weights = golden.weights()
    weights["audio_model.mystery.weight"] = torch.zeros(1)
    del weights["audio_head.proj.weight"]
    write(tmp_path, golden.config["pe_a_frame"], weights)
    with pytest.raises(CheckpointError, match=r"audio_head\.proj\.weight.*mystery"):
        PEAFrame.from_pretrained(tmp_path)


def test_broken_tokenizer_is_said_when_it_is_needed(golden: Golden, tmp_path: Path) -> None:
    write(tmp_path, golden.config["pe_a_frame"], golden.weights())
    (tmp_path / "tokenizer.json").write_text("{")
    predictor = PEAFrame.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="tokenizer"):
        predictor.logits(golden["in.features"], None, ["rain", "wind"])


def test_a_predictor_that_is_not_shipped_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(SHIPPED, "tiny", tmp_path)
    with pytest.raises(CheckpointError, match="make train-spans"):
        PEAFrame.from_pretrained("tiny")
