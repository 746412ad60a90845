"""The judge: the reference's scores, rows that do not disturb each other, and its checkpoint."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import soundfile
import torch
from golden.loader import Golden, load, released_manifest
from released_layout import write_bert_tokenizer
from torch import Tensor, nn

from operators.judge_scores import SCORES
from operators.sam_audio.checkpoint import CheckpointError
from operators.sam_audio.judge import SAMAudioJudgeConfig, SAMAudioJudgeModel, SAMAudioJudgeProcessor, is_unused_key

RELEASED = SAMAudioJudgeConfig.from_dict(
    {
        "audio_codec": {"codebook_dim": 128, "n_codebooks": 16},
        "transformer": {
            "hidden_size": 1792,
            "intermediate_size": 4800,
            "num_hidden_layers": 28,
            "num_attention_heads": 14,
        },
        "text_model": {
            "hidden_size": 1024,
            "intermediate_size": 2624,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
        },
        "finetune_transformer": {
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 6,
            "num_attention_heads": 3,
        },
    }
)


@pytest.fixture(scope="module")
def golden() -> Golden:
    return load("judge")


@pytest.fixture(scope="module")
def folder(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden judge as a checkpoint in the released layout, with a tokenizer of its own."""
    path = tmp_path_factory.mktemp("judge")
    (path / "config.json").write_text(json.dumps(golden.config["judge"]))
    torch.save(golden.weights(), path / "checkpoint.pt")
    write_bert_tokenizer(path, golden.config["judge"]["text_model"]["vocab_size"])
    return path


@pytest.fixture(scope="module")
def judge(folder: Path) -> SAMAudioJudgeModel:
    return SAMAudioJudgeModel.from_pretrained(folder)


@pytest.fixture(scope="module")
def processor(folder: Path) -> SAMAudioJudgeProcessor:
    return SAMAudioJudgeProcessor.from_pretrained(folder)


@contextmanager
def outputs(model: nn.Module, *names: str) -> Iterator[dict[str, list[Tensor]]]:
    """What the named submodules return, call by call."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}

    def note(name: str) -> torch.utils.hooks.RemovableHandle:
        return model.get_submodule(name).register_forward_hook(
            lambda module, inputs, out: seen[name].append(out if isinstance(out, Tensor) else out.frames)
        )

    handles = [note(name) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def waves(golden: Golden, kind: str) -> list[Tensor]:
    return [golden[f"in.{kind}_wav{i}"][0] for i in range(2)]


def sounds(*shape: int) -> Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def test_processor_pads_as_the_reference(processor: SAMAudioJudgeProcessor, golden: Golden) -> None:
    batch = processor(
        text=["one", "two"],
        input_audio=[golden[f"in.input_wav{i}"] for i in range(2)],
        separated_audio=[golden[f"in.separated_wav{i}"] for i in range(2)],
        sampling_rate=8000,
    )
    assert torch.equal(batch["input_values"], golden["mid.input_values"])
    assert torch.equal(batch["separated_values"], golden["mid.separated_values"])
    assert torch.equal(batch["padding_mask"], golden["mid.padding_mask"])
    assert batch["input_ids"].shape == batch["attention_mask"].shape


def test_scores_and_what_leads_to_them_equal_the_reference(judge: SAMAudioJudgeModel, golden: Golden) -> None:
    with outputs(judge, "text_proj1", "transformer", "cat_audio_proj", "finetune_transformer", "head") as seen:
        out = judge(
            golden["in.input_ids"],
            golden["mid.input_values"],
            golden["mid.separated_values"],
            golden["in.attention_mask"],
            golden["mid.padding_mask"],
        )
    for name, found in seen.items():
        golden.assert_close(torch.cat(found), f"batch.mid.{name}")
    both = torch.cat([golden["mid.input_values"], golden["mid.separated_values"]])
    golden.assert_close(judge.audio_codec.encode(both), "batch.mid.audio_codec")
    for name in SCORES:
        golden.assert_close(getattr(out, name), f"batch.out.{name}")


def test_scores_of_a_row_alone_equal_the_reference(judge: SAMAudioJudgeModel, golden: Golden) -> None:
    # The golden's second row, which in the batch heard the padding behind it.
    n = int(golden["mid.padding_mask"][1].sum())
    out = judge(
        golden["in.input_ids"][1:],
        golden["mid.input_values"][1:, :, :n],
        golden["mid.separated_values"][1:, :, :n],
        golden["in.attention_mask"][1:],
    )
    for name in SCORES:
        golden.assert_close(getattr(out, name), f"last_alone.out.{name}")


def test_rows_do_not_disturb_each_other_in_score(
    judge: SAMAudioJudgeModel, processor: SAMAudioJudgeProcessor, golden: Golden
) -> None:
    mixtures, targets, texts = waves(golden, "input"), waves(golden, "separated"), ["dog barking", "speech"]
    together = judge.score(mixtures, targets, texts)
    for i in range(2):
        batch = processor(text=texts[i], input_audio=mixtures[i], separated_audio=targets[i])
        out = judge(**batch)
        alone = torch.cat([getattr(out, name) for name in SCORES], dim=1)
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-4)


def test_score_does_not_depend_on_how_much_goes_through_at_once(judge: SAMAudioJudgeModel) -> None:
    mixtures, texts = [*sounds(2, 3200), *sounds(3, 1000)], ["rain", "rain", "speech", "guitar", "rain"]
    targets = [0.5 * mixture for mixture in mixtures]
    whole = judge.score(mixtures, targets, texts)
    for call_frames in (1, 12, 25):
        torch.testing.assert_close(
            judge.score(mixtures, targets, texts, call_frames=call_frames), whole, atol=1e-5, rtol=1e-4
        )


def test_mixture_of_several_candidates_is_heard_once(judge: SAMAudioJudgeModel) -> None:
    mixture, candidates = sounds(3200), [*sounds(4, 3200)]
    with outputs(judge, "transformer") as seen:
        shared = judge.score([mixture] * 4, candidates, ["rain"] * 4, call_frames=20)
        assert sum(len(frames) for frames in seen["transformer"]) == 1 + 4
    with outputs(judge, "transformer") as seen:
        # As rankers hand it over: one recording, expanded.
        expanded = judge.score(list(mixture.expand(4, -1)), candidates, ["rain"] * 4)
        assert sum(len(frames) for frames in seen["transformer"]) == 1 + 4
    apart = judge.score([mixture.clone() for _ in range(4)], candidates, ["rain"] * 4)
    torch.testing.assert_close(shared, apart, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(expanded, apart, atol=1e-5, rtol=1e-4)


def test_equal_inputs_of_a_batch_are_heard_once(judge: SAMAudioJudgeModel, processor: SAMAudioJudgeProcessor) -> None:
    mixture, candidates = sounds(1, 3200), sounds(3, 1, 3200)
    batch = processor(text=["rain"] * 3, input_audio=[mixture] * 3, separated_audio=list(candidates))
    with outputs(judge, "transformer") as seen:
        overall = judge(**batch).overall[:, 0]
        assert sum(len(frames) for frames in seen["transformer"]) == 1 + 3
    scores = judge.score([mixture[0]] * 3, [c[0] for c in candidates], ["rain"] * 3)
    torch.testing.assert_close(overall, scores[:, 0], atol=1e-5, rtol=1e-4)


def test_descriptions_matter_and_are_read_once(judge: SAMAudioJudgeModel) -> None:
    mixture, target = sounds(1600), 0.3 * sounds(1600)
    first = judge.score([mixture], [target], ["church bells"])
    with outputs(judge, "text_model.layers.0.mlp") as seen:
        assert torch.equal(judge.score([mixture], [target], ["church bells"]), first)
        assert not seen["text_model.layers.0.mlp"]
        assert not torch.equal(judge.score([mixture], [target], ["piano playing"]), first)
        assert seen["text_model.layers.0.mlp"]


def test_sound_too_short_to_reflect_is_scored(judge: SAMAudioJudgeModel) -> None:
    assert judge.score([sounds(7)], [sounds(7)], ["rain"]).isfinite().all()


def test_no_rows_give_no_scores(judge: SAMAudioJudgeModel) -> None:
    assert judge.score([], [], []).shape == (0, 4)


def test_half_precision_stays_close_and_keeps_codec_and_scale(folder: Path, judge: SAMAudioJudgeModel) -> None:
    half = SAMAudioJudgeModel.from_pretrained(folder, dtype=torch.bfloat16)
    assert half.head.weight.dtype == torch.bfloat16
    assert {p.dtype for p in half.audio_codec.parameters()} == {half.mean.dtype} == {torch.float32}
    mixture, target = sounds(3200), 0.3 * sounds(3200)
    scores = [model.score([mixture], [target], ["rain"]) for model in (half, judge)]
    assert scores[0].dtype == torch.float32
    assert (scores[0] - scores[1]).abs().max() < 0.05 * judge.std.abs().max()


def test_processor_reads_files_and_averages_channels(processor: SAMAudioJudgeProcessor, tmp_path: Path) -> None:
    stereo = sounds(2, 4000)
    soundfile.write(tmp_path / "stereo.wav", stereo.T.numpy(), 8000, subtype="FLOAT")
    batch = processor(input_audio=str(tmp_path / "stereo.wav"), separated_audio=stereo, sampling_rate=8000)
    assert batch["input_values"].shape == (1, 1, 4160)
    torch.testing.assert_close(batch["input_values"], batch["separated_values"])
    torch.testing.assert_close(batch["input_values"][0, 0, :4000], stereo.mean(0))
    assert "input_ids" not in batch


def test_batch_moves_to_a_device(processor: SAMAudioJudgeProcessor) -> None:
    batch = processor(text=["rain"], input_audio=[sounds(400)], separated_audio=[sounds(400)])
    moved = batch.to("meta")
    assert moved is batch
    assert {tensor.device.type for tensor in moved.values()} == {"meta"}


def test_unusable_inputs_are_refused_by_name(judge: SAMAudioJudgeModel, processor: SAMAudioJudgeProcessor) -> None:
    with pytest.raises(ValueError, match=r"44100 Hz.*8000 Hz"):
        processor(text=["rain"], input_audio=[sounds(400)], sampling_rate=44_100)
    with pytest.raises(ValueError, match="2 text, 1 input_audio"):
        processor(text=["rain", "wind"], input_audio=[sounds(400)])
    with pytest.raises(ValueError, match="empty"):
        processor(input_audio=[sounds(0)])
    with pytest.raises(ValueError, match="1 mixtures, 2 targets"):
        judge.score([sounds(400)], [sounds(400)] * 2, ["rain"])
    with pytest.raises(ValueError, match=r"mixture 1 .*320 samples"):
        judge.score([sounds(400)] * 2, [sounds(400), sounds(900)], ["rain"] * 2)


def test_importing_judge_and_span_predictor_leaves_transformers_alone() -> None:
    code = (
        "import sys; import operators.sam_audio.judge, operators.sam_audio.spans; print('transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_released_checkpoint_fits_key_by_key() -> None:
    released = released_manifest()["sam-audio-judge@sam_audio"]["keys"]
    with torch.device("meta"):
        model = SAMAudioJudgeModel(RELEASED)
    ours = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    assert ours == {key: shape for key, shape in released.items() if not is_unused_key(key, 22)}
    unused = {key for key in released if is_unused_key(key, 22)}
    assert all(key.startswith(("text_model.layers.2", "text_model.final_norm.")) for key in unused)


def test_hub_name_takes_the_revision_that_can_be_read(folder: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--facebook--sam-audio-judge"
    (repository / "snapshots").mkdir(parents=True)
    shutil.copytree(folder, repository / "snapshots" / ("d" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "sam_audio").write_text("d" * 40)
    access = {"cache_dir": tmp_path, "local_files_only": True}
    judge = SAMAudioJudgeModel.from_pretrained("facebook/sam-audio-judge", **access)
    processor = SAMAudioJudgeProcessor.from_pretrained("facebook/sam-audio-judge", **access)
    assert judge(**processor(text="rain", input_audio=sounds(400), separated_audio=sounds(400))).overall.isfinite()


def test_other_layout_of_the_repository_is_refused_with_the_revision_to_take(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"dac_vae_encoder": {}, "transformer": {}}))
    for load_it in (SAMAudioJudgeModel.from_pretrained, SAMAudioJudgeProcessor.from_pretrained):
        with pytest.raises(CheckpointError, match="sam_audio"):
            load_it(tmp_path)


def test_missing_tokenizer_is_said_when_it_is_needed(golden: Golden, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(golden.config["judge"]))
    torch.save(golden.weights(), tmp_path / "checkpoint.pt")
    model = SAMAudioJudgeModel.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        model.score([sounds(400)], [sounds(400)], ["rain"])


def test_checkpoint_that_lacks_a_key_is_refused_by_name(golden: Golden, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(golden.config["judge"]))
    weights = golden.weights()
    del weights["text_model.layers.1.attn.Wo.weight"]
    torch.save(weights, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match=r"text_model\.layers\.1\.attn\.Wo\.weight"):
        SAMAudioJudgeModel.from_pretrained(tmp_path)
