"""Checkpoints rewritten for fast loading: same function, whole, and noticed when they are not."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from released_layout import RATE, write_sam_audio, write_t5
from safetensors import safe_open

from jobs.convert_checkpoint import main
from operators.sam_audio import SAMAudio, SAMAudioProcessor
from operators.sam_audio.conversion import convert, plan_shards
from operators.sam_audio.sources import CheckpointError
from operators.separator import Separator


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released")
    write_t5(folder / "t5")
    write_sam_audio(folder / "sam-audio", t5=str(folder / "t5"))
    return folder / "sam-audio"


def stems(name: str | Path) -> torch.Tensor:
    """What a model makes of a fixed noise, prompt and watermark: [2, samples]."""
    generator = torch.Generator().manual_seed(4)
    audio = 0.1 * torch.randn(1, RATE, generator=generator)
    noise = torch.randn(1, 25, 16, generator=generator)
    batch = SAMAudioProcessor.from_pretrained(name)(["dog barking"], [audio], anchors=[[["+", 0.1, 0.5]]])
    result = SAMAudio.from_pretrained(name).separate(batch, noise, message=torch.ones(2, 16))
    return torch.stack([result.target[0], result.residual[0]])


def test_float32_conversion_computes_the_same(released: Path, tmp_path: Path) -> None:
    assert main([str(released), str(tmp_path / "out"), "--dtype", "fp32", "--shard-gb", "0.0005"]) == 0
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 2
    # Another order of summation in attention and a folded weight norm: float rounding.
    torch.testing.assert_close(stems(tmp_path / "out"), stems(released), atol=2e-5, rtol=0)


def test_bfloat16_conversion_computes_nearly_the_same(released: Path, tmp_path: Path) -> None:
    assert main([str(released), str(tmp_path / "out")]) == 0
    exact, rounded = stems(released), stems(tmp_path / "out")
    # Weights rounded to 8 bits: under 1 % of the signal, whose noise floor at that is 40 dB down.
    assert (rounded - exact).square().mean().sqrt() < 0.01 * exact.square().mean().sqrt()
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        kinds = {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118 (not a dict)
    assert {kind for key, kind in kinds.items() if key.startswith("audio_codec.")} == {"F32"}
    assert {kind for key, kind in kinds.items() if not key.startswith("audio_codec.")} == {"BF16"}
    assert not any(key.endswith(("weight_g", "weight_v")) for key in kinds)


def test_converted_model_takes_no_second_rearrangement(released: Path, tmp_path: Path) -> None:
    main([str(released), str(tmp_path / "out"), "--dtype", "fp32"])
    before = SAMAudio.from_pretrained(tmp_path / "out").transformer.blocks[0].attention
    assert before.heads_first
    Separator(str(tmp_path / "out"), device="cpu")  # rearranges what is not
    torch.testing.assert_close(stems(tmp_path / "out"), stems(released), atol=2e-5, rtol=0)


def test_converted_checkpoint_can_be_saved_and_converted_again(released: Path, tmp_path: Path) -> None:
    main([str(released), str(tmp_path / "once"), "--dtype", "fp32"])
    SAMAudio.from_pretrained(tmp_path / "once").save_pretrained(tmp_path / "saved")
    main([str(tmp_path / "saved"), str(tmp_path / "twice"), "--dtype", "fp32"])
    for name in ("saved", "twice"):
        torch.testing.assert_close(stems(tmp_path / name), stems(released), atol=2e-5, rtol=0)


def test_shipped_model_converts(tmp_path: Path) -> None:
    assert main(["tiny", str(tmp_path / "out"), "--dtype", "fp32"]) == 0
    made, shipped = SAMAudio.from_pretrained(tmp_path / "out"), SAMAudio.from_pretrained("tiny")
    shipped.transformer.set_heads_first(True)
    expected = shipped.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in made.state_dict().items())


def test_sums_are_those_of_sha256sum_and_verify_names_what_changed(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    main([str(released), str(out), "--shard-gb", "0.0002"])
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=out, check=True, capture_output=True)
    assert {path.name for path in out.iterdir()} == {
        "SHA256SUMS", *(line.split("  ")[1] for line in (out / "SHA256SUMS").read_text().splitlines())
    }  # fmt: skip
    assert main(["--verify", str(out)]) == 0
    first, second, *_ = sorted(out.glob("model-*.safetensors"))
    damaged = bytearray(first.read_bytes())
    damaged[-1] ^= 1
    first.write_bytes(damaged)
    second.unlink()
    capsys.readouterr()
    assert main(["--verify", str(out)]) == 1
    said = capsys.readouterr().out
    assert f"FAIL  {first.name}: differs from its checksum" in said
    assert f"FAIL  {second.name}: is missing" in said
    assert "ok    config.json" in said


def test_conversion_to_a_store_loads_from_there(s3_server: str, released: Path, tmp_path: Path) -> None:
    url = f"s3://media/{tmp_path.name}/converted"
    assert main([str(released), url, "--dtype", "fp32", "--shard-gb", "0.0005"]) == 0
    assert main(["--verify", url]) == 0
    torch.testing.assert_close(stems(url), stems(released), atol=2e-5, rtol=0)


def test_existing_checkpoint_is_not_written_over(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (released / "config.json").read_bytes()
    assert main(["tiny", str(released)]) == 1
    assert "give an empty folder" in capsys.readouterr().err
    assert (released / "config.json").read_bytes() == before


def test_conversion_that_stopped_half_way_is_told_apart_and_can_be_repeated(released: Path, tmp_path: Path) -> None:
    model = SAMAudio.from_pretrained(released)
    next(convert(model, tmp_path / "out", dtype=torch.float32, shard_bytes=500_000))
    assert main(["--verify", str(tmp_path / "out")]) == 1
    with pytest.raises(CheckpointError):
        SAMAudio.from_pretrained(tmp_path / "out")
    assert main([str(released), str(tmp_path / "out"), "--dtype", "fp32", "--shard-gb", "0.0005"]) == 0
    assert main(["--verify", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(
    "arguments", [[], ["tiny"], ["tiny", "out", "--verify", "out"], ["tiny", "out", "--shard-gb", "0"]]
)
def test_wrong_arguments_end_with_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_model_that_is_not_there_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["no-such-model", str(tmp_path)]) == 1
    assert "no model at 'no-such-model'" in capsys.readouterr().err


def test_shards_keep_order_and_size() -> None:
    sizes = {"a": 4, "b": 4, "c": 9, "d": 1}
    assert plan_shards(sizes, 8) == {
        "model-00001-of-00003.safetensors": ["a", "b"],
        "model-00002-of-00003.safetensors": ["c"],  # larger than a shard, so it has one to itself
        "model-00003-of-00003.safetensors": ["d"],
    }
    assert plan_shards(sizes, 100) == {"model.safetensors": list(sizes)}
    assert json.dumps(plan_shards({}, 1)) == '{"model.safetensors": []}'
