"""Whole separations against the reference, with stand-in text features where a tokenizer would be needed."""

import pytest
import torch
from golden.loader import Golden, load
from small_models import TokenT5, golden_model, golden_span_predictor, small_config, small_model

from operators.sam_audio.config import SAMAudioConfig
from operators.sam_audio.model import SAMAudio
from operators.sam_audio.parts import Parts
from operators.sam_audio.processor import Batch, SAMAudioProcessor

GRIDS = {
    "midpoint16": None,  # the default
    "euler_0.3": {"method": "euler", "options": {"step_size": 0.3}},
    "midpoint_0.3": {"method": "midpoint", "options": {"step_size": 0.3}},
}


@pytest.fixture(scope="module")
def text() -> Golden:
    return load("separate_text")


@pytest.fixture(scope="module")
def reference(text: Golden) -> SAMAudio:
    return golden_model(text, text_encoder=TokenT5(text))


@pytest.fixture(scope="module")
def processor(reference: SAMAudio) -> SAMAudioProcessor:
    return SAMAudioProcessor.from_config(reference.config)


@pytest.fixture(scope="module")
def batch(text: Golden, processor: SAMAudioProcessor) -> Batch:
    return processor(audios=[text["in.wav0"], text["in.wav1"]], descriptions=text.values["texts"])


def assert_stems(golden: Golden, result, key: str) -> None:
    for i in range(2):
        golden.assert_close(result.target[i], f"{key}.target{i}")
        golden.assert_close(result.residual[i], f"{key}.residual{i}")


def test_text_encoded_one_by_one_equals_the_padded_batch(text: Golden, reference: SAMAudio) -> None:
    features, mask = reference.encode_text(text.values["texts"])
    assert torch.equal(mask, text["mid.text_mask"])
    torch.testing.assert_close(features[mask], text["mid.text_features"][mask], **text.tolerance)


def test_separate_equals_the_reference(text: Golden, reference: SAMAudio, batch: Batch) -> None:
    result = reference.separate(batch, noise=text["in.noise"], message=text["midpoint16.out.message"])
    assert_stems(text, result, "midpoint16.out")
    assert torch.equal(result.noise, text["midpoint16.out.noise"])


def test_seeding_torch_draws_the_watermark_of_the_reference(text: Golden, reference: SAMAudio, batch: Batch) -> None:
    torch.manual_seed(text.values["seed_before_separate"])
    assert_stems(text, reference.separate(batch, noise=text["in.noise"]), "midpoint16.out")


@pytest.mark.parametrize("grid", GRIDS)
def test_every_step_grid_equals_the_reference(text: Golden, reference: SAMAudio, batch: Batch, grid: str) -> None:
    latents = reference.solve(batch, text["in.noise"], GRIDS[grid])
    text.assert_close(latents, f"{grid}.out.features")


@pytest.mark.parametrize("case", ["rerank_visual", "rerank_text", "single"])
def test_separate_with_video_anchors_and_candidates_equals_the_reference(
    text: Golden, reference: SAMAudio, processor: SAMAudioProcessor, case: str
) -> None:
    golden = load("separate_av")
    with_video = case != "rerank_text"
    videos = processor.mask_videos([golden["in.video0"], golden["in.video1"]], [golden["in.mask0"], golden["in.mask1"]])
    made = processor(
        audios=[golden["in.wav0"], golden["in.wav1"]],
        descriptions=golden.values["texts"],
        anchors=golden.values["anchors"],
        masked_videos=videos if with_video else None,
    )
    assert torch.equal(made.anchor_ids, golden["mid.anchor_ids"])
    assert torch.equal(made.anchor_alignment, golden["mid.anchor_alignment"])
    heard = {}

    def ranker(**given):
        heard.update(given)
        return torch.tensor(golden.values["visual_scores" if with_video else "text_scores"])

    single = case == "single"
    result = reference.separate(
        made,
        noise=golden[f"{case}.out.noise"],
        ode_opt=golden.values["ode"],
        message=golden[f"{case}.out.message"],
        reranking_candidates=1 if single else golden.values["candidates"],
        ranker=None if single else ranker,
    )
    assert_stems(golden, result, f"{case}.out")
    for i in range(0 if single else 2):
        kind = "extracted_audio" if with_video else "input_audio"
        golden.assert_close(heard[kind][i], f"{case}.mid.{kind}{i}")


def test_predicted_spans_reach_the_network_as_the_reference_meant(processor: SAMAudioProcessor) -> None:
    golden = load("separate_spans")
    parts = Parts(SAMAudioConfig.from_dict(golden.config["sam_audio"]), span_predictor=golden_span_predictor(golden))
    model = golden_model(golden, text_encoder=TokenT5(golden), parts=parts, strict=False)
    made = SAMAudioProcessor.from_config(model.config)(
        audios=[golden["in.wav0"], golden["in.wav1"]], descriptions=golden.values["texts"]
    )
    assert torch.equal(made.anchor_alignment, golden["mid.null_anchor_alignment"])
    result = model.separate(
        made,
        noise=golden["in.noise"],
        ode_opt=golden.values["ode"],
        message=golden["fixed.out.message"],
        predict_spans=True,
    )
    assert result.anchors == [[tuple(anchor) for anchor in item] for item in golden.values["anchors"]]
    assert_stems(golden, result, "fixed.out")
    without = model.separate(
        made, noise=golden["in.noise"], ode_opt=golden.values["ode"], message=golden["stale.out.message"]
    )
    assert_stems(golden, without, "stale.out")


def test_of_the_losers_only_the_target_is_decoded(reference: SAMAudio, batch: Batch) -> None:
    decoded = []

    def count(codec, arguments, result) -> None:
        decoded.append(len(arguments[0]))

    hook = reference.audio_codec.quantizer.out_proj.register_forward_hook(count)
    try:
        result = reference.separate(
            batch,
            reranking_candidates=4,
            ode_opt={"method": "euler", "options": {"step_size": 1.0}},
            ranker=lambda **_: torch.tensor([[0.0, 3.0, 2.0, 1.0], [9.0, 3.0, 2.0, 1.0]]),
        )
    finally:
        hook.remove()
    assert sum(decoded) == 2 * 4 + 2  # two recordings: four targets each, one residual each
    assert result.scores.argmax(1).tolist() == [1, 0]


def test_candidates_without_a_ranker_are_refused(reference: SAMAudio, batch: Batch) -> None:
    with pytest.raises(ValueError, match="needs a ranker"):
        reference.separate(batch, reranking_candidates=2)


def test_predicting_spans_without_a_predictor_is_refused(reference: SAMAudio, batch: Batch) -> None:
    with pytest.raises(ValueError, match="span predictor"):
        reference.separate(batch, predict_spans=True)


@pytest.mark.parametrize("ode_opt", [{"method": "euler", "atol": 1}, {"options": {"steps": 3}}, {"method": "rk4"}])
def test_unknown_solver_options_are_refused(reference: SAMAudio, batch: Batch, ode_opt: dict) -> None:
    with pytest.raises(ValueError, match=r"ode_opt|method"):
        reference.separate(batch, ode_opt=ode_opt)


def test_noise_of_another_shape_is_refused(reference: SAMAudio, batch: Batch) -> None:
    with pytest.raises(ValueError, match=r"noise is \[2, 2, 3\], expected \[2, 23, 12\]"):
        reference.separate(batch, noise=torch.zeros(2, 2, 3))
    with pytest.raises(ValueError, match="noise has 4 rows, expected 2"):
        reference.separate(batch, noise=torch.zeros(4, 23, 12))


def test_separate_leaves_the_batch_and_the_state_dict_alone(text: Golden, reference: SAMAudio, batch: Batch) -> None:
    reference.separate(batch, noise=text["in.noise"])
    assert batch.audios.shape == (2, 1, 7323)
    assert not any(key.startswith("text_encoder") for key in reference.state_dict())


def test_one_euler_step_of_an_x_prediction_is_the_prediction() -> None:
    model = small_model(small_config())
    z, mixture, time = torch.randn(1, 9, 24), torch.randn(1, 9, 24), torch.zeros(1)
    conditions = model.condition(mixture)
    with torch.inference_mode():
        x = z + model.evaluate(z, time, conditions)
        later = z + (1 - 0.4) * model.evaluate(z, time + 0.4, conditions)
        network = model.transformer(
            torch.nn.functional.linear(torch.cat([z, torch.zeros_like(z), mixture], -1), model.proj.weight)
            + model.proj.bias,
            time,
            memory=torch.cat([torch.ones(1, 1, 16), torch.zeros(1, 1, 16)], -1),
        )
    torch.testing.assert_close(x, network + mixture, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(x, later)


def test_seeds_give_the_same_noise_in_any_batch(recording: torch.Tensor, model: SAMAudio) -> None:
    processor = SAMAudioProcessor.from_config(model.config)
    both = model.separate(processor(audios=[recording] * 2, descriptions=["dog", "rain"]), seeds=["a", "b"])
    alone = model.separate(processor(audios=[recording], descriptions=["rain"]), seeds=["b"])
    torch.testing.assert_close(both.target[1], alone.target[0], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="1 seeds for 2"):
        model.separate(processor(audios=[recording] * 2, descriptions=["dog", "rain"]), seeds=["a"])
