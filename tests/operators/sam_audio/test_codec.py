"""The DAC-VAE codec and its watermark: the reference's numbers, and pieces that add up to the whole."""

import zlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from golden.loader import Golden, load, released_manifest
from torch import Tensor

from operators.sam_audio.codec import DACVAE
from operators.sam_audio.codec_layers import WNConv1d, WNConvTranspose1d
from operators.sam_audio.config import ConfigError, DACVAEConfig, SAMAudioConfig

PREFIX = "audio_codec."
# Odd rates need other paddings, and a hop that is no multiple of 320 needs several frames a watermark step.
ODD = DACVAEConfig(
    encoder_dim=4, encoder_rates=(2, 3, 5, 8), latent_dim=12, decoder_dim=96, decoder_rates=(8, 5, 3, 2), codebook_dim=5
)
CASES = ("case0", "case1")


@pytest.fixture(scope="module")
def golden() -> Golden:
    return load("codec_tiny")


@pytest.fixture(scope="module")
def codec(golden: Golden) -> DACVAE:
    return tiny(golden)


def tiny(golden: Golden) -> DACVAE:
    about = golden.config["audio_codec"]
    channels = about["codebook_dim"]
    config = SAMAudioConfig.from_dict(
        {"audio_codec": about, "in_channels": 6 * channels, "transformer": {"out_channels": 2 * channels}}
    )
    assert isinstance(config.audio_codec, DACVAEConfig)
    codec = DACVAE(config.audio_codec).eval()
    codec.load_state_dict(golden.weights(PREFIX))
    return codec


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5), dtype=dtype)


@pytest.mark.parametrize("case", CASES)
def test_encode_equals_the_reference(case: str, codec: DACVAE, golden: Golden) -> None:
    golden.assert_close(codec.encode(golden[f"{case}.in.wav"]), f"{case}.out.latents")


@pytest.mark.parametrize("case", CASES)
def test_decode_equals_the_reference(case: str, codec: DACVAE, golden: Golden) -> None:
    latents = golden[f"{case}.out.latents"]
    golden.assert_close(codec.decode_clean(latents), f"{case}.out.audio_without_watermark")
    for i in range(2):
        audio = codec.decode(latents, message=golden[f"{case}.in.message{i}"])
        golden.assert_close(audio, f"{case}.out.audio_message{i}")


def test_trunk_equals_the_reference(codec: DACVAE, golden: Golden) -> None:
    golden.assert_close(codec.trunk(golden["case1.out.latents"]), "case1.out.trunk")


def test_decode_without_message_draws_the_bits_that_the_reference_draws(codec: DACVAE, golden: Golden) -> None:
    torch.manual_seed(1234)
    audio = codec.decode(golden["case0.out.latents"])
    golden.assert_close(audio, "case0.out.audio_decode_with_seed_1234")
    seeded = codec.decode(golden["case0.out.latents"], generator=torch.Generator().manual_seed(1234))
    assert torch.equal(seeded, audio)


def test_index_helpers_equal_the_reference(codec: DACVAE, golden: Golden) -> None:
    index = golden["in.wav_idx"]
    golden.assert_close(codec.wav_idx_to_feature_idx(index), "out.feature_idx")
    golden.assert_close(codec.wav_idx_to_feature_idx(index, 44_100), "out.feature_idx_from_44100")
    golden.assert_close(codec.feature_idx_to_wav_idx(torch.arange(6)), "out.wav_idx_of_features_0_to_5")


def test_index_helpers_are_exact_where_float32_is_not(codec: DACVAE) -> None:
    samples = 2**24 + 1
    frames = -(-samples // codec.hop_length)
    assert codec.wav_idx_to_feature_idx(samples) == frames
    assert codec.wav_idx_to_feature_idx(torch.tensor([samples])).tolist() == [frames]
    assert codec.feature_idx_to_wav_idx(25 * 3600 * 30, 44_100) == 44_100 * 3600 * 30


def test_released_size_equals_the_reference() -> None:
    golden = load("codec_full_procedural")
    codec = DACVAE().eval()
    fill(codec, golden.config["fill_seed"])
    state = codec.state_dict()
    for key, (total, magnitude) in golden.values["checksums"].items():
        value = state[key].double()
        assert (value.sum().item(), value.abs().sum().item()) == pytest.approx((total, magnitude))
    del state
    codec.fold_weight_norm()
    latents = codec.encode(golden["in.wav"])
    golden.assert_close(latents, "out.latents")
    golden.assert_close(codec.decode_clean(latents), "out.audio_without_watermark")
    golden.assert_close(codec.decode(latents, message=golden["in.message"]), "out.audio")


def test_state_dict_has_the_keys_and_shapes_of_the_released_checkpoints() -> None:
    with torch.device("meta"):
        state = DACVAE().state_dict()
    released = released_manifest()["sam-audio-large"]["keys"]
    assert {PREFIX + key: list(value.shape) for key, value in state.items()} == {
        key: shape for key, shape in released.items() if key.startswith(PREFIX)
    }


def test_loading_into_a_codec_without_memory_gives_the_same_audio(golden: Golden, codec: DACVAE) -> None:
    with torch.device("meta"):
        loaded = DACVAE(codec.config).eval()
    loaded.load_state_dict(golden.weights(PREFIX), assign=True)
    audio = loaded.decode(golden["case0.out.latents"], message=golden["case0.in.message0"])
    golden.assert_close(audio, "case0.out.audio_message0")


@pytest.mark.parametrize("call_frames", [1, 17, 30, 64])
def test_pieces_equal_the_whole(call_frames: int, golden: Golden) -> None:
    # In float64, so that a sample of missing context or state would show far above rounding.
    codec = tiny(golden).double()
    wav = noise(2, 1, 1920 * 45 + 77, dtype=torch.float64)
    message = torch.randint(0, 2, (2, 16), generator=torch.Generator().manual_seed(1))
    latents = codec.encode(wav, call_frames=1000)
    assert latents.shape[-1] == 46
    torch.testing.assert_close(codec.encode(wav, call_frames=call_frames), latents, rtol=0, atol=1e-11)
    for decode in (codec.decode_clean, lambda *a, **k: codec.decode(*a, message=message, **k)):
        whole = decode(latents, call_frames=1000)
        torch.testing.assert_close(decode(latents, call_frames=call_frames), whole, rtol=0, atol=1e-11)


@pytest.mark.parametrize("call_frames", [1, 20, 50])
def test_pieces_equal_the_whole_with_odd_rates(call_frames: int) -> None:
    torch.manual_seed(0)
    codec = DACVAE(ODD).eval().double()
    wav = noise(1, 1, 240 * 101, dtype=torch.float64)
    latents = codec.encode(wav, call_frames=1000)
    torch.testing.assert_close(codec.encode(wav, call_frames=call_frames), latents, rtol=0, atol=1e-11)
    message = torch.ones(1, 16)
    whole = codec.decode(latents, message=message, call_frames=1000)
    assert whole.shape[-1] == 240 * latents.shape[-1]
    pieces = codec.decode(latents, message=message, call_frames=call_frames)
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-11)


def test_memory_does_not_grow_with_length_or_rows(codec: DACVAE) -> None:
    message = torch.zeros(6, 16)
    short = largest_activation(codec, lambda: codec.decode(noise(1, 6, 40), message=message[:1], call_frames=40))
    long = largest_activation(codec, lambda: codec.decode(noise(1, 6, 400), message=message[:1], call_frames=40))
    many = largest_activation(codec, lambda: codec.decode(noise(6, 6, 40), message=message, call_frames=40))
    assert long <= short
    assert many <= short
    short = largest_activation(codec, lambda: codec.encode(noise(1, 1, 1920 * 40), call_frames=40))
    long = largest_activation(codec, lambda: codec.encode(noise(3, 1, 1920 * 400), call_frames=40))
    assert long <= short


def test_rows_decode_alike_alone_and_together(codec: DACVAE) -> None:
    latents, message = noise(3, 6, 5), torch.randint(0, 2, (3, 16), generator=torch.Generator().manual_seed(2))
    together = codec.decode(latents, message=message)
    for i in range(3):
        alone = codec.decode(latents[i : i + 1], message=message[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-5)


def test_decode_stems_keeps_items_and_stems_apart_and_cuts(codec: DACVAE) -> None:
    latents = noise(2, 2, 6, 4)
    message = torch.randint(0, 2, (4, 16), generator=torch.Generator().manual_seed(3))
    stems = codec.decode_stems(latents, torch.zeros(2, 1, 7000), message=message, n_samples=7000)
    assert stems.shape == (2, 2, 1, 7000)
    alone = codec.decode(latents[1, 0][None], message=message[2:3])
    torch.testing.assert_close(stems[1, 0], alone[0, :, :7000], rtol=0, atol=1e-5)


def test_folding_weight_norm_changes_nothing_but_the_parameters(golden: Golden, codec: DACVAE) -> None:
    folded = tiny(golden).fold_weight_norm()
    assert not any(key.endswith(("weight_g", "weight_v")) for key in folded.state_dict())
    golden.assert_close(folded.encode(golden["case0.in.wav"]), "case0.out.latents")
    latents, message = golden["case0.out.latents"], golden["case0.in.message0"]
    golden.assert_close(folded.decode(latents, message=message), "case0.out.audio_message0")


def test_sound_shorter_than_its_padding_is_filled_with_zeros(codec: DACVAE) -> None:
    wav = noise(1, 1, 500)
    filled = torch.nn.functional.pad(wav, (0, 1420))
    torch.testing.assert_close(codec.encode(wav), codec.encode(filled))


def test_low_precision_stays_close() -> None:
    # Not the golden codec: a bfloat16 convolution of 8 input channels is plainly wrong in oneDNN's AMX code (torch
    # 2.12.1, ONEDNN_MAX_CPU_ISA=AVX512_CORE_AMX: error as large as the signal). The released codec has no such layer.
    torch.manual_seed(0)
    config = DACVAEConfig(
        encoder_dim=16, encoder_rates=(2, 3, 5, 8), latent_dim=32, decoder_dim=256, decoder_rates=(8, 5, 3, 2)
    )
    codec, wav = DACVAE(config).eval(), 0.3 * noise(2, 1, 2400)
    latents = codec.encode(wav)
    message = torch.randint(0, 2, (2, 16))
    audio = codec.decode(latents, message=message)
    low = codec.bfloat16()
    assert low.encode(wav).dtype == torch.bfloat16
    for found, expected in (
        (low.encode(wav).float(), latents),
        (low.decode(latents, message=message).float(), audio),
    ):
        # bfloat16 has 8 bits: each layer rounds to 0.4 %, and some twenty of them add up.
        assert (found - expected).norm() < 0.05 * expected.norm()


def test_no_frames_give_no_audio(codec: DACVAE) -> None:
    assert codec.decode(noise(2, 6, 0)).shape == (2, 1, 0)


@pytest.mark.parametrize("shape", [(1, 2, 4000), (4000,), (1, 1, 0)])
def test_encode_rejects_what_is_not_mono(shape: tuple[int, ...], codec: DACVAE) -> None:
    with pytest.raises(ValueError, match=r"\[B, 1, N\]"):
        codec.encode(torch.zeros(shape))


def test_decode_rejects_a_message_for_other_rows(codec: DACVAE) -> None:
    with pytest.raises(ValueError, match="message must be"):
        codec.decode(noise(3, 6, 4), message=torch.zeros(2, 16))


def test_decoder_rates_must_fit_the_watermark() -> None:
    with pytest.raises(ConfigError, match="decoder_rates"):
        DACVAE(DACVAEConfig(decoder_rates=(12, 10, 16)))


def largest_activation(codec: DACVAE, call) -> int:
    largest = 0

    def note(_module: object, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal largest
        largest = max(largest, inputs[0].numel(), output.numel())

    convs = [m for m in codec.modules() if isinstance(m, (torch.nn.Conv1d, torch.nn.ConvTranspose1d))]
    handles = [m.register_forward_hook(note) for m in convs]
    call()
    for handle in handles:
        handle.remove()
    return largest


def fill(codec: DACVAE, seed: int) -> None:
    """Weights by the rule in the golden's config: pseudo-random from key and index, scaled by the kind of tensor."""
    for name, module in codec.named_modules():
        parameters = dict(module.named_parameters(prefix=PREFIX + name, recurse=False))
        for key, value in parameters.items():
            if key.endswith("weight_g"):
                continue
            shape = value.shape
            u = uniform(key, value.numel(), seed).reshape(shape)
            transposed = isinstance(module, torch.nn.ConvTranspose1d)
            if key.endswith(".alpha"):
                u = 1 + 0.5 * u
            elif ".bias" in key:
                u = 0.2 * u
            elif transposed:
                u = u * np.sqrt(3 / (shape[0] * 2))
            elif not isinstance(module, torch.nn.Embedding):
                u = u * np.sqrt(3 / np.prod(shape[1:]))
            value.data = torch.from_numpy(u.astype(np.float32))
        if isinstance(module, (WNConv1d, WNConvTranspose1d)):
            key, v = f"{PREFIX}{name}.weight_g", module.weight_v.detach()
            factor = 1.0 if "_proj." in key else 0.3 if v.shape[-1] == 1 else 0.8
            norm = np.concatenate([part.double().flatten(1).norm(dim=1).numpy() for part in v.split(64)])
            g = factor * (1 + 0.2 * uniform(key, len(norm), seed)) * norm
            module.weight_g.data = torch.from_numpy(g.astype(np.float32)).view_as(module.weight_g)


def uniform(key: str, count: int, seed: int) -> np.ndarray:
    """`count` values in -1..1 from splitmix64 over (key, seed)."""
    base = np.uint64((zlib.crc32(key.encode()) << 32) ^ seed)
    return np.concatenate(list(_uniform(base, count)))


def _uniform(base: np.uint64, count: int, block: int = 1 << 20) -> Iterator[np.ndarray]:
    # In blocks that stay in the processor's cache: a third of the time of whole tensors.
    for start in range(0, count, block):
        index = np.arange(start + 1, min(start + block, count) + 1, dtype=np.uint64)
        z = index * np.uint64(0x9E3779B97F4A7C15) + base
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
        yield (z >> np.uint64(40)) / 2**23 - 1
