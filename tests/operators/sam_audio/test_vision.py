"""The image tower and what prepares its input: the reference's numbers and pixels."""

from dataclasses import replace

import pytest
import torch
from golden.loader import Golden, load, released_manifest

from operators.sam_audio.config import ConfigError, VisionEncoderConfig
from operators.sam_audio.vision import (
    TOWERS,
    TowerConfig,
    VisionEncoder,
    is_clip_text_key,
    mask_videos,
    nearest_frames,
    sample_frames,
)

FRAMES = ("noise_u8", "smooth_u8", "large_u8", "float")


@pytest.fixture(scope="module")
def golden() -> Golden:
    return load("pe_vision")


@pytest.fixture(scope="module")
def encoder(golden: Golden) -> VisionEncoder:
    return build(golden, VisionEncoderConfig(**golden.config["vision_encoder"]))


@pytest.fixture(scope="module")
def video() -> Golden:
    return load("video_frames")


def build(golden: Golden, config: VisionEncoderConfig) -> VisionEncoder:
    encoder = VisionEncoder(config, TowerConfig(**golden.config["pe_vision"])).eval()
    weights = {k: v for k, v in golden.weights().items() if not is_clip_text_key(k)}
    encoder.load_state_dict({k.removeprefix("vision_encoder."): v for k, v in weights.items()})
    return encoder


@pytest.mark.parametrize("name", FRAMES)
def test_pixels_equal_the_reference_exactly(name: str, encoder: VisionEncoder, golden: Golden) -> None:
    assert torch.equal(encoder.preprocess(golden[f"{name}.in.frames"]), golden[f"{name}.out.pixels"])


@pytest.mark.parametrize("name", FRAMES)
def test_features_equal_the_reference(name: str, encoder: VisionEncoder, golden: Golden) -> None:
    golden.assert_close(encoder.encode_frames(golden[f"{name}.in.frames"]), f"{name}.out.features")


def test_tokens_and_raw_features_equal_the_reference(encoder: VisionEncoder, golden: Golden) -> None:
    pixels = golden["smooth_u8.out.pixels"][:2]
    with torch.no_grad():
        golden.assert_close(encoder.model.visual.tokens(pixels), "smooth_u8.mid.tokens")
        golden.assert_close(encoder.model.visual(pixels), "smooth_u8.mid.unnormalised")


def test_another_grid_resizes_the_positions(encoder: VisionEncoder, golden: Golden) -> None:
    with torch.no_grad():
        features = encoder.model.visual(golden["other_grid.in.pixels"])
    golden.assert_close(torch.nn.functional.normalize(features, dim=-1), "other_grid.out.features")


def test_bilinear_without_normalising_equals_the_reference(golden: Golden) -> None:
    config = VisionEncoderConfig(**golden.config["vision_encoder"])
    raw = build(golden, replace(config, interpolation_mode="BILINEAR", normalize_feature=False))
    frames = golden["smooth_u8.in.frames"]
    assert torch.equal(raw.preprocess(frames), golden["bilinear_raw.out.pixels"])
    golden.assert_close(raw.encode_frames(frames), "bilinear_raw.out.features")


def test_shorter_videos_of_a_batch_end_in_zeros(encoder: VisionEncoder, golden: Golden) -> None:
    features = encoder([golden["noise_u8.in.frames"], golden["large_u8.in.frames"]])
    golden.assert_close(features, "list.out.features")
    assert not features[1, 2:].any()


def test_tower_has_the_keys_and_shapes_of_the_released_checkpoints() -> None:
    with torch.device("meta"):
        state = VisionEncoder(VisionEncoderConfig()).state_dict()
    released = released_manifest()["sam-audio-base"]["keys"]
    tower = {k: v for k, v in released.items() if k.startswith("vision_encoder.") and not is_clip_text_key(k)}
    assert {f"vision_encoder.{k}": list(v.shape) for k, v in state.items()} == tower


def test_clip_text_keys_are_told_from_all_others() -> None:
    released = released_manifest()["sam-audio-base"]["keys"]
    text = [key for key in released if is_clip_text_key(key)]
    assert all(key.startswith("vision_encoder.model.") and ".visual." not in key for key in text)
    assert not is_clip_text_key("vision_encoder.model.visual.positional_embedding")
    assert not is_clip_text_key("vision_encoder.model.unheard_of")
    assert not is_clip_text_key("transformer.layers.0.attention.wq.weight")


def test_loading_into_a_model_without_memory_gives_the_same_features(golden: Golden) -> None:
    with torch.device("meta"):
        encoder = VisionEncoder(VisionEncoderConfig(**golden.config["vision_encoder"])).eval()
    weights = {k: v for k, v in golden.weights("vision_encoder.").items() if k.startswith("model.visual.")}
    encoder.load_state_dict(weights, assign=True)
    golden.assert_close(encoder.encode_frames(golden["noise_u8.in.frames"]), "noise_u8.out.features")


def test_low_precision_stays_close(golden: Golden) -> None:
    low = build(golden, VisionEncoderConfig(**golden.config["vision_encoder"])).bfloat16()
    features = low.encode_frames(golden["smooth_u8.in.frames"])
    assert features.dtype == torch.bfloat16
    torch.testing.assert_close(features.float(), golden["smooth_u8.out.features"], rtol=0, atol=0.03)


@pytest.mark.parametrize(
    "change",
    [{"name": "unknown"}, {"dim": 7}, {"interpolation_mode": "LANCZOS"}],
    ids=lambda change: next(iter(change)),
)
def test_configuration_that_fits_no_tower_is_an_error(change: dict) -> None:
    config = replace(VisionEncoderConfig(dim=24, name="PE-tiny", image_size=56), **change)
    with pytest.raises(ConfigError, match="vision_encoder"):
        VisionEncoder(config)


@pytest.mark.parametrize("change", [{"pool_type": "avg"}, {"use_cls_token": False}, {"heads": 3}])
def test_tower_of_another_kind_is_an_error(change: dict) -> None:
    with pytest.raises(ConfigError, match="vision_encoder"):
        replace(TOWERS["PE-tiny"], **change)


def test_frames_of_another_shape_are_an_error(encoder: VisionEncoder) -> None:
    with pytest.raises(ValueError, match=r"\[frames, 3, H, W\]"):
        encoder.encode_frames(torch.zeros(3, 40, 70))


def test_sampled_frames_equal_the_reference(video: Golden) -> None:
    for case in video.values["tensor_input"]:
        frames = torch.arange(case["frames"]).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
        assert sample_frames(frames, case["size"])[:, 0, 0, 0].tolist() == case["index"]


def by_all_distances(seconds: torch.Tensor, size: int) -> list[int]:
    """The reference's own arithmetic: float32 times against the whole table of float64 time stamps."""
    times = torch.arange(size) * 1920 / 48_000
    return (times[None] - seconds[:, None]).abs().argmin(0).tolist()


@pytest.mark.parametrize("case", range(4))
def test_nearest_frames_equal_the_reference(case: int, video: Golden) -> None:
    recorded = video.values["file_input"][case]
    seconds = torch.tensor(recorded["pts_seconds"], dtype=torch.float64)
    index = nearest_frames(seconds, recorded["size"], hop_length=1920, sample_rate=48_000).tolist()
    assert index == by_all_distances(seconds, recorded["size"])
    # The case knows frames by their pixels after a lossy encoder, so it calls a frame that came out like the one before
    # by that one's number: 37 at 30 frames a second (test_frames.py makes such a file), the last at 24000/1001.
    twin = {"30": 37, "24000/1001": 31}[recorded["rate"]]
    assert [i - 1 if i == twin else i for i in index] == recorded["index"]


@pytest.mark.parametrize("rate", [12.5, 8, 7.5, 23.976, 59.94, 300])
def test_ties_fall_as_in_the_reference(rate: float) -> None:
    """At 12.5 frames a second every other latent frame lies midway, and the reference's float32 decides."""
    seconds = torch.arange(1000, dtype=torch.float64) / rate
    index = nearest_frames(seconds, 3000, hop_length=1920, sample_rate=48_000)
    assert index.tolist() == by_all_distances(seconds, 3000)


def test_nearest_frames_take_the_first_on_a_tie_and_repeat_the_last() -> None:
    seconds = torch.tensor([0.0, 0.5, 1.5, 1.5, 2.0], dtype=torch.float64)
    index = nearest_frames(seconds, 6, hop_length=1, sample_rate=2)
    assert index.tolist() == [0, 1, 1, 2, 4, 4]


@pytest.mark.parametrize("case", [0, 1])
def test_masked_pixels_become_black_as_in_the_reference(case: int, video: Golden) -> None:
    (out,) = mask_videos([video["mask0.in.video"]], [video[f"mask{case}.in.mask"]])
    assert torch.equal(out, video[f"mask{case}.out"])


def test_masked_pixels_can_be_kept_instead(video: Golden) -> None:
    frames, mask = video["mask0.in.video"], video["mask0.in.mask"]
    (black,), (kept,) = mask_videos([frames], [mask]), mask_videos([frames], [mask], masked="kept")
    assert torch.equal(black + kept, frames)
    assert not kept[~mask.expand_as(kept)].any()
