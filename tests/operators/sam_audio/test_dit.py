"""The network and its input layers against numbers of the reference."""

import pytest
import torch
from golden.loader import Golden, load
from small_models import golden_model

INPUTS = (
    "audio_features",
    "text_features",
    "text_mask",
    "masked_video_features",
    "anchor_ids",
    "anchor_alignment",
    "audio_pad_mask",
)
CASES = list(load("dit_velocity").values["cases"])


def velocity(golden: Golden, case: str, *, heads_first: bool) -> torch.Tensor:
    about = golden.values["cases"][case]
    model = golden_model(golden, strict=False)
    model.transformer.set_heads_first(heads_first)
    rows = slice(0, 1) if about["first_row_only"] else slice(None)
    given = {k: None if k in about["left_out"] else golden[f"in.{k}"][rows] for k in INPUTS}
    with torch.inference_mode():
        return model.velocity(golden["in.noisy_audio"][rows], time=golden[f"{case}.in.time"], **given)


@pytest.mark.parametrize("name", ["dit_velocity", "dit_options"])
@pytest.mark.parametrize("case", CASES)
def test_velocity_equals_the_reference(name: str, case: str) -> None:
    golden = load(name)
    golden.assert_close(velocity(golden, case, heads_first=False), f"{case}.out.velocity")


@pytest.mark.parametrize("name", ["dit_velocity", "dit_options"])
def test_velocity_with_heads_first_weights_equals_the_reference(name: str) -> None:
    golden = load(name)
    golden.assert_close(velocity(golden, CASES[0], heads_first=True), f"{CASES[0]}.out.velocity")


def test_heads_first_and_back_restores_the_weights() -> None:
    model = golden_model(load("dit_options"), strict=False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.transformer.set_heads_first(True)
    model.transformer.set_heads_first(False)
    after = model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_input_longer_than_the_position_table_is_refused() -> None:
    model = golden_model(load("dit_options"), strict=False)  # max_positions 64
    latents = torch.zeros(1, 65, 12)
    with pytest.raises(ValueError, match="separate_long"):
        model.velocity(latents, latents, None, torch.zeros(1))
