"""The PE-AV transformer: the reference's numbers, and what its mask means."""

import pytest
import torch
from golden.loader import Golden, load

from operators.sam_audio.config import ConfigError
from operators.sam_audio.pe_av import PEAVConfig, PEAVTransformer


@pytest.fixture(scope="module")
def golden() -> Golden:
    return load("judge")


@pytest.fixture(scope="module")
def transformer(golden: Golden) -> PEAVTransformer:
    transformer = PEAVTransformer(PEAVConfig.from_dict(golden.config["judge"]["transformer"])).eval()
    transformer.load_state_dict(golden.weights("transformer."))
    return transformer


@torch.no_grad()
def test_output_equals_the_reference_without_a_mask(transformer: PEAVTransformer, golden: Golden) -> None:
    out = transformer(golden["probe.in.x"])
    golden.assert_close(out.frames, "probe.out.unmasked")
    golden.assert_close(out.pooled, "probe.out.cls_unmasked")


@torch.no_grad()
def test_output_equals_the_reference_with_a_mask(transformer: PEAVTransformer, golden: Golden) -> None:
    golden.assert_close(transformer(golden["probe.in.x"], golden["probe.in.mask"]).frames, "probe.out.masked")


@torch.no_grad()
def test_padding_with_a_mask_changes_nothing(transformer: PEAVTransformer, golden: Golden) -> None:
    x = golden["probe.in.x"]
    padded = torch.cat([x, torch.zeros_like(x)], dim=1)
    mask = torch.arange(padded.shape[1]).expand(len(x), -1) < x.shape[1]
    alone, batched = transformer(x), transformer(padded, mask)
    torch.testing.assert_close(batched.frames[:, : x.shape[1]], alone.frames, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(batched.pooled, alone.pooled, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_row_of_padding_only_is_finite(transformer: PEAVTransformer, golden: Golden) -> None:
    x = golden["probe.in.x"]
    assert transformer(x, torch.zeros(x.shape[:2], dtype=torch.bool)).frames.isfinite().all()


@torch.no_grad()
def test_half_precision_stays_close(transformer: PEAVTransformer, golden: Golden) -> None:
    half = PEAVTransformer(transformer.config).eval()
    half.load_state_dict(transformer.state_dict())
    half.bfloat16()
    for mask in (None, golden["probe.in.mask"]):
        whole = transformer(golden["probe.in.x"], mask).pooled
        error = half(golden["probe.in.x"].bfloat16(), mask).pooled.float() - whole
        assert error.norm() < 0.03 * whole.norm()


def test_keys_of_other_libraries_are_ignored_and_the_reference_s_theta_rule_holds() -> None:
    config = PEAVConfig.from_dict({"hidden_size": 64, "num_attention_heads": 4, "rope_theta": 5.0, "head_dim": 99})
    assert (config.head_width, config.theta) == (16, 20_000.0)
    assert PEAVConfig(max_position_embeddings=100).theta == 10_000.0


def test_attention_bias_adds_the_four_biases() -> None:
    small = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
    plain = PEAVTransformer(PEAVConfig.from_dict(small)).state_dict().keys()
    biased = PEAVTransformer(PEAVConfig.from_dict(small | {"attention_bias": True})).state_dict().keys()
    assert biased - plain == {f"layers.0.self_attn.{name}_proj.bias" for name in "qkvo"}


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"num_attention_heads": 4, "num_key_value_heads": 2}, "num_key_value_heads"),
        ({"hidden_size": 10, "num_attention_heads": 4}, "hidden_size"),
        ({"hidden_size": 12, "num_attention_heads": 4}, "even"),
    ],
)
def test_unusable_sizes_are_refused_by_name(values: dict[str, int], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        PEAVConfig.from_dict(values)
