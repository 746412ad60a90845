import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from golden.loader import released_manifest
from released_layout import RATE, SAM_AUDIO, write_sam_audio, write_t5
from safetensors.torch import load_file, save_file
from small_models import small_model
from torch import nn

from operators.sam_audio import SAMAudio, SAMAudioProcessor
from operators.sam_audio.checkpoint import CheckpointError, assign, load_part
from operators.sam_audio.config import SIZES, ConfigError


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


def split(folder: Path) -> dict[str, str]:
    """Replace the weights of a checkpoint by two shards and their index; returns the index's table."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    placed = {key: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, key in enumerate(state)}
    for file in set(placed.values()):
        save_file({key: t for key, t in state.items() if placed[key] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return placed


def test_shards_load(folder: Path, model_folder: Path) -> None:
    split(folder)
    loaded = SAMAudio.from_pretrained(folder).state_dict()
    assert all(torch.equal(v, loaded[k]) for k, v in load_file(model_folder / "model.safetensors").items())


def test_missing_and_swapped_shards_and_bad_indices_are_reported(folder: Path) -> None:
    placed = split(folder)
    first, second = (folder / file for file in sorted(set(placed.values())))
    content = second.read_bytes()
    second.write_bytes(first.read_bytes())
    with pytest.raises(CheckpointError, match=r"00002\.safetensors does not hold what .* says"):
        SAMAudio.from_pretrained(folder)
    second.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="truncated"):
        SAMAudio.from_pretrained(folder)
    second.unlink()
    with pytest.raises(CheckpointError, match=r"index\.json names model-00002.* does not exist"):
        SAMAudio.from_pretrained(folder)
    for text in ("{", "[]", '{"weight_map": {"proj.bias": "../secret"}}', '{"weight_map": {"proj.bias": 3}}'):
        (folder / "model.safetensors.index.json").write_text(text)
        with pytest.raises(CheckpointError, match="no index of shards"):
            SAMAudio.from_pretrained(folder)


def test_without_strict_what_fits_is_loaded_and_the_rest_reported(folder: Path) -> None:
    def change(state: dict) -> None:
        del state["proj.bias"]
        state["surplus"] = torch.zeros(1)
        state["memory_proj.bias"] = torch.zeros(7)

    rewrite(folder, change)
    with pytest.warns(UserWarning, match=r"proj\.bias.*surplus.*memory_proj\.bias is \[7\], expected \[32\]"):
        model = SAMAudio.from_pretrained(folder, strict=False)
    assert torch.equal(model.proj.weight, load_file(folder / "model.safetensors")["proj.weight"])
    assert model.proj.bias.shape == (32,) and not model.training


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint as Meta writes them."""
    folder = tmp_path_factory.mktemp("released")
    write_t5(folder / "t5")
    write_sam_audio(folder / "sam-audio", t5=str(folder / "t5"))
    return folder / "sam-audio"


def test_released_layout_loads_without_the_text_tower(released: Path) -> None:
    model = SAMAudio.from_pretrained(released)
    state = torch.load(released / "checkpoint.pt", weights_only=True)
    loaded = model.state_dict()
    assert set(state) - set(loaded) == {
        k for k in state if k.startswith("vision_encoder.model.") and not k.startswith("vision_encoder.model.visual.")
    }
    assert all(torch.equal(v, state[k]) for k, v in loaded.items())
    assert model.config.transformer.dim == SAM_AUDIO["transformer"]["dim"]


def test_without_vision_the_image_tower_is_left_out_and_nothing_else_changes(released: Path) -> None:
    seeing, blind = SAMAudio.from_pretrained(released), SAMAudio.from_pretrained(released, vision=False)
    left_out = set(seeing.state_dict()) - set(blind.state_dict())
    assert left_out and all(key.startswith("vision_encoder.") for key in left_out)
    batch = SAMAudioProcessor.from_config(seeing.config)(audios=[torch.randn(1, RATE)], descriptions=["dog barking"])
    results = [m.separate(batch, seeds=["item"], message=torch.zeros(2, 16)).target[0] for m in (seeing, blind)]
    assert torch.equal(*results)
    with pytest.raises(ValueError, match="no image tower"):
        blind.encode_frames(torch.zeros(1, 3, 56, 56, dtype=torch.uint8))


def test_dtype_is_of_all_weights_but_the_codec_s_and_the_model_runs_in_it(released: Path) -> None:
    models = [SAMAudio.from_pretrained(released, dtype=dtype) for dtype in (None, torch.bfloat16)]
    kinds = {key.partition(".")[0]: t.dtype for key, t in models[1].state_dict().items()}
    assert kinds.pop("audio_codec") == torch.float32
    assert set(kinds.values()) == {torch.bfloat16}
    generator = torch.Generator().manual_seed(5)
    batch = SAMAudioProcessor.from_pretrained(released)(
        ["speech"],
        [0.1 * torch.randn(1, RATE, generator=generator)],
        anchors=[[["+", 0.2, 0.5]]],
        masked_videos=[torch.randint(0, 255, (5, 3, 40, 60), dtype=torch.uint8, generator=generator)],
    )
    noise = torch.randn(1, 25, 16, generator=generator)
    exact, rounded = (m.solve(batch, noise, {"method": "midpoint"}) for m in models)
    # bfloat16 carries 8 bits: a hundredth of the signal after 32 evaluations.
    assert (rounded - exact).square().mean().sqrt() < 0.03 * exact.square().mean().sqrt()


def test_model_may_be_saved_over_the_files_it_was_loaded_from(folder: Path, model_folder: Path) -> None:
    model = SAMAudio.from_pretrained(folder)
    model.save_pretrained(folder)
    assert torch.equal(model.proj.weight, load_file(model_folder / "model.safetensors")["proj.weight"])
    assert torch.equal(SAMAudio.from_pretrained(folder).proj.weight, model.proj.weight)


def test_layout_of_a_later_version_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"sam_audio_pipeline": {"quantised": True}}))
    with pytest.raises(CheckpointError, match=r"config\.json: sam_audio_pipeline: .* another version"):
        SAMAudio.from_pretrained(folder)


class Scale(nn.Module):
    """A part with a buffer that no checkpoint holds."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)
        self.register_buffer("steps", torch.arange(width), persistent=False)


def part(folder: Path, config: str = '{"width": 3, "note": 1}') -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(config)
    state = {"old.weight": torch.ones(1, 3, dtype=torch.float16), "old.bias": torch.zeros(1), "unused": torch.ones(2)}
    torch.save(state, folder / "checkpoint.pt")
    return folder


def test_part_is_renamed_overridden_and_rid_of_what_it_ignores(tmp_path: Path) -> None:
    def build(width: int) -> Scale:
        with torch.device("cpu"):
            steps = torch.arange(width)
        model = Scale(width)
        model.steps = steps
        return model

    def load(**overrides: int) -> Scale:
        return load_part(
            part(tmp_path),
            parse=lambda values: values["width"],
            build=build,
            rename=lambda state: {key.replace("old", "linear"): t for key, t in state.items()},
            ignored=lambda key: key == "unused",
            overrides=overrides,
        )

    assert torch.equal(load().linear.weight, torch.ones(1, 3))
    with pytest.raises(CheckpointError, match=r"linear\.weight is \[1, 3\], expected \[1, 4\]"):
        load(width=4)


def test_part_left_on_the_meta_device_is_a_mistake_that_is_named(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="in no checkpoint: steps"):
        load_part(
            part(tmp_path),
            parse=lambda values: values["width"],
            build=Scale,
            rename=lambda state: {key.replace("old", "linear"): t for key, t in state.items() if key != "unused"},
        )


def test_part_with_a_config_that_its_parser_refuses_is_reported(tmp_path: Path) -> None:
    def parse(values: dict) -> int:
        if "width" not in values:
            raise ConfigError("width is missing")
        return values["width"]

    with pytest.raises(CheckpointError, match=r"config\.json: width is missing"):
        load_part(part(tmp_path, "{}"), parse=parse, build=Scale)


PEAK = """
import sys, threading, time, torch
from operators.sam_audio import SAMAudio

def anonymous():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("RssAnon"))

def peak_of_loading(folder, dtype):
    before, seen, done = anonymous(), [0], threading.Event()
    def watch():
        while not done.wait(0.002):
            seen.append(anonymous() - before)
    thread = threading.Thread(target=watch)
    thread.start()
    model = SAMAudio.from_pretrained(folder, dtype=dtype)
    done.set()
    thread.join()
    return max(seen), sum(t.nbytes for t in model.state_dict().values())

small, *folders = sys.argv[1:]
for dtype in (torch.float32, torch.bfloat16):
    peak_of_loading(small, dtype)  # what imports and the first of everything take
    for folder in folders:
        print(*peak_of_loading(folder, dtype))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 0.15 GB, in both file formats."""
    folder = tmp_path_factory.mktemp("large")
    wide = {**SAM_AUDIO["transformer"], "dim": 512, "n_heads": 4, "n_layers": 6, "context_dim": 512}
    state = write_sam_audio(folder / "pt", t5="none", transformer=wide)
    (folder / "safetensors").mkdir()
    shutil.copy(folder / "pt" / "config.json", folder / "safetensors")
    save_file(state, folder / "safetensors" / "model.safetensors")
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_takes_at_most_one_copy_of_the_weights(large: Path, released: Path) -> None:
    command = [sys.executable, "-c", PEAK, *map(str, (released, large / "pt", large / "safetensors"))]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    (pt, safetensors, pt_half, safetensors_half) = ([int(n) for n in line.split()] for line in lines)
    for peak, size in (pt, safetensors):
        # Mapped: the file's own pages, which the kernel may drop and processes on one machine share.
        assert size > 1e8 and peak < 0.1 * size
    for peak, size in (pt_half, safetensors_half):
        assert peak < 1.1 * size


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
    """Anything but a tensor: unpickling it would run code of the file's choosing, here `mkdir`."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.mkdir, (self.trace,)


def test_file_with_more_than_tensors_is_not_opened(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"proj.bias": Unwanted(tmp_path / "trace")}, folder / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="more than tensors"):
        SAMAudio.from_pretrained(folder)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("state", [[torch.zeros(1)], {"model": {"proj.bias": torch.zeros(1)}}, {"step": 3}])
def test_released_file_of_another_shape_is_reported(folder: Path, state: object) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="not a flat state dict of tensors"):
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
