import json
import shutil
from pathlib import Path

import pytest
import torch
from golden.loader import released_manifest
from safetensors.torch import load_file, save_file
from small_models import small_model

from operators.sam_audio import SAMAudio
from operators.sam_audio.checkpoint import CheckpointError, assign
from operators.sam_audio.config import SIZES


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may damage."""
    copy = tmp_path / "copy"
    shutil.copytree(model_folder, copy)
    return copy


def rewrite(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)


@pytest.mark.parametrize("size", SIZES)
def test_released_checkpoints_fit_key_by_key(size: str) -> None:
    keys = released_manifest()[f"sam-audio-{size}"]["keys"]
    with torch.device("meta"):
        model = SAMAudio(SIZES[size])
    unused = {
        k for k in keys if k.startswith("vision_encoder.model.") and not k.startswith("vision_encoder.model.visual.")
    }
    assert len(unused) == 294  # the CLIP text tower
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == {
        k: shape for k, shape in keys.items() if k not in unused
    }
    assign(model, {k: torch.empty(shape, device="meta") for k, shape in keys.items()}, source="released")


def test_saved_model_loads_with_the_same_weights_in_eval_mode(model_folder: Path) -> None:
    loaded, made = SAMAudio.from_pretrained(model_folder), small_model()
    assert not loaded.training
    assert loaded.config == made.config
    theirs = loaded.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in made.state_dict().items())
    assert not any(t.is_meta for t in [*loaded.parameters(), *loaded.buffers()])


def test_saving_rearranged_weights_keeps_the_layout(model_folder: Path, tmp_path: Path) -> None:
    model = SAMAudio.from_pretrained(model_folder)
    model.transformer.set_heads_first(True)
    model.save_pretrained(tmp_path / "again")
    before, after = (load_file(f / "model.safetensors") for f in (model_folder, tmp_path / "again"))
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_released_file_format_loads(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state | {"text_encoder.model.shared.weight": torch.zeros(3)}, folder / "checkpoint.pt")
    loaded = SAMAudio.from_pretrained(str(folder)).state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in state.items())


def test_half_precision_weights_load_as_float32(folder: Path) -> None:
    rewrite(folder, lambda state: state.update({k: v.half() for k, v in state.items()}))
    assert {p.dtype for p in SAMAudio.from_pretrained(folder).parameters()} == {torch.float32}


def test_url_loads(folder: Path) -> None:
    loaded = SAMAudio.from_pretrained(f"file://{folder}").state_dict()
    assert torch.equal(loaded["proj.bias"], load_file(folder / "model.safetensors")["proj.bias"])
    with pytest.raises(CheckpointError, match="does not exist"):
        SAMAudio.from_pretrained(f"file://{folder}/nowhere")


def test_overrides_replace_config_entries(folder: Path) -> None:
    model = SAMAudio.from_pretrained(folder, mixture_skip=False, solver={"method": "midpoint", "step_size": 0.25})
    assert not model.config.mixture_skip
    assert model.config.solver.method == "midpoint"
    with pytest.raises(CheckpointError, match="colour"):
        SAMAudio.from_pretrained(folder, colour="red")


def test_truncated_weights_are_reported(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="truncated"):
        SAMAudio.from_pretrained(folder)


def test_truncated_released_file_is_reported(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "checkpoint.pt")
    (folder / "model.safetensors").unlink()
    path = folder / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="truncated"):
        SAMAudio.from_pretrained(folder)


class Unwanted:
    """Anything but a tensor: unpickling it would run code of the file's choosing."""


def test_file_with_more_than_tensors_is_not_opened(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"proj.bias": Unwanted()}, folder / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="more than tensors"):
        SAMAudio.from_pretrained(folder)


def test_missing_unexpected_and_misshapen_keys_are_named_together(folder: Path) -> None:
    def change(state: dict) -> None:
        del state["proj.bias"]
        state["surplus"] = torch.zeros(1)
        state["memory_proj.bias"] = torch.zeros(7)

    rewrite(folder, change)
    with pytest.raises(CheckpointError) as caught:
        SAMAudio.from_pretrained(folder)
    for part in ("1 missing keys: proj.bias", "1 unexpected keys: surplus", "memory_proj.bias is [7], expected [32]"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[]", "must hold a JSON object"),
        ('{"colour": 1}', "colour"),
        ('{"transformer": {"dim": 7}}', "transformer"),
    ],
)
def test_broken_config_is_reported(folder: Path, text: str, said: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=said):
        SAMAudio.from_pretrained(folder)


def test_config_of_another_size_is_reported(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["transformer"]["n_layers"] += 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="missing keys"):
        SAMAudio.from_pretrained(folder)


def test_folder_without_files_is_reported(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"none of model\.safetensors, checkpoint\.pt"):
        SAMAudio.from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        SAMAudio.from_pretrained(folder)


@pytest.mark.parametrize("name", ["small", "/no/such/folder", "./nowhere/else"])
def test_unknown_name_is_reported(name: str) -> None:
    with pytest.raises(CheckpointError, match="no model at"):
        SAMAudio.from_pretrained(name)
