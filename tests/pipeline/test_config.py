from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import JobConfig, JobConfigError
from pipeline.prompts import Anchor, Prompt
from pipeline.settings import load_config

BASE = ["--manifest", "s3://archive/manifests/films.parquet", "--lake", "s3://lake/dialogue"]
PLACES: dict[str, Any] = {"manifest": "/archive/films.parquet", "lake": "/lake"}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("SAM_PIPELINE_"):
            monkeypatch.delenv(name)


def error_of(argv: list[str], defaults: dict[str, object] | None = None) -> str:
    with pytest.raises(JobConfigError) as caught:
        load_config(argv, defaults)
    return str(caught.value)


def test_command_line_wins_over_environment_over_file_over_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("limit: 2\nmax-attempts: 2\ndecoders: 2\n")
    monkeypatch.setenv("SAM_PIPELINE_LIMIT", "3")
    monkeypatch.setenv("SAM_PIPELINE_MAX_ATTEMPTS", "4")
    argv = [*BASE, "--config", str(file), "--limit", "5"]
    config = load_config(argv, {"limit": 1, "decoders": 1, "writers": 1})
    assert (config.limit, config.max_attempts, config.decoders, config.writers) == (5, 4, 2, 1)
    assert config.separators is None
    monkeypatch.setenv("SAM_PIPELINE_CONFIG", str(file))
    assert load_config(BASE).decoders == 2


def test_lists_come_from_every_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = [*BASE, "--description", "a man, angry", "--description", "dog"]
    assert load_config(argv).descriptions == ("a man, angry", "dog")
    assert load_config(argv, {"descriptions": ("speech",)}).descriptions == ("a man, angry", "dog")
    monkeypatch.setenv("SAM_PIPELINE_DESCRIPTIONS", "rain, thunder")
    assert load_config(BASE).descriptions == ("rain, thunder",)
    monkeypatch.setenv("SAM_PIPELINE_DESCRIPTIONS", '["rain", "thunder"]')
    assert load_config(BASE).descriptions == ("rain", "thunder")
    monkeypatch.delenv("SAM_PIPELINE_DESCRIPTIONS")
    file = tmp_path / "job.yaml"
    file.write_text('descriptions: [speech]\nanchors: [["+", 1, 2.5]]\n')
    config = load_config([*BASE, "--config", str(file)])
    assert (config.descriptions, config.anchors) == (("speech",), (Anchor("+", 1.0, 2.5),))
    assert load_config([*BASE, "--anchors", '[["-", 0, 1]]']).anchors == (Anchor("-", 0.0, 1.0),)


def test_help_explains_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load_config(["--help"], {"descriptions": ("speech",), "target_label": "dialogue"}, prog="dialogue_extract")
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for name, info in JobConfig.model_fields.items():
        assert f"--{name.replace('_', '-')}" in shown
        assert " ".join(str(info.description).split()) in shown
    assert "(default: dialogue)" in shown
    assert "(default: speech)" in shown


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--lake", "/lake"], ["manifest is missing", "--manifest"]),
        ([*BASE, "--segmnt-seconds", "3"], ["--segmnt-seconds", "did you mean segment_seconds"]),
        ([*BASE, "--limit", "0"], ["limit", "greater than or equal to 1"]),
        ([*BASE, "--limit"], ["--limit", "expected one argument"]),
        ([*BASE, "--stem-format", "mp3"], ["stem_format", "'flac', 'wav' or 'opus'"]),
        ([*BASE, "--bit-depth", "20"], ["bit_depth", "16, 24 or 32"]),
        ([*BASE, "--bit-depth", "32"], ["bit_depth", "flac", "16 or 24"]),
        ([*BASE, "--bit-depth", "16", "--stem-format", "opus"], ["bit_depth", "opus", "leave it out"]),
        ([*BASE, "--output-sample-rate", "cd"], ["output_sample_rate", "source"]),
        ([*BASE, "--output-sample-rate", "400"], ["output_sample_rate", "8000 to 192000"]),
        ([*BASE, "--on-overs", "limit"], ["on_overs", "'scale' or 'clip'"]),
        ([*BASE, "--channels", "5"], ["channels", "'wiener'"]),
        ([*BASE, "--device", "gpu"], ["device", "use auto, cpu, cuda"]),
        ([*BASE, "--segment-seconds", "nan"], ["segment_seconds"]),
        ([*BASE, "--target-label", "../x"], ["target_label", "lower-case"]),
        ([*BASE, "--target-label", "x", "--residual-label", "x"], ["target_label", "different names"]),
        ([*BASE, "--solver-steps", "8"], ["solver_method", "give both or none"]),
        ([*BASE, "--segment-seconds", "120", "--halo-seconds", "120"], ["halo_seconds", "make segments longer"]),
        ([*BASE, "--device", "cpu", "--gpus-per-separator", "1"], ["gpus_per_separator", "device=cuda"]),
        ([*BASE, "--device", "cuda:1", "--gpus-per-separator", "0"], ["gpus_per_separator", "device=cpu"]),
        ([*BASE, "--description", " "], ["descriptions", "remove it"]),
        ([*BASE, "--anchors", '[["?", 1, 2]]'], ["anchors", "'+' (heard)"]),
        ([*BASE, "--anchors", "[["], ["anchors"]),
        ([*BASE, "--prompt", "dog=a", "--prompt", "dog=b"], ["prompts", "different names"]),
        ([*BASE, "--prompt", '{"mask": "m.mp4"}'], ["prompts", "mask"]),
        ([*BASE, "--skip-inactive"], ["skip_inactive", "predict_spans"]),
        ([*BASE, "--candidates", "8", "--judge", "none"], ["candidates", "judge"]),
        ([*BASE, "--rerank-below", "3"], ["rerank_below", "candidates"]),
        (["--manifest", "/m.parquet", "--lake", "ftp://host/lake"], ["lake", "ftp", "use one of"]),
        ([*BASE, "--allowed-read-prefix", "s3://"], ["allowed_read_prefixes", "no bucket"]),
        ([*BASE, "--config", "missing.yaml"], ["missing.yaml", "No such file"]),
    ],
    ids=lambda value: " ".join(value[4:] or value) if isinstance(value, list) and len(value) > 2 else "",
)
def test_settings_that_cannot_be_used_are_refused_with_the_remedy(argv: list[str], says: list[str]) -> None:
    message = error_of(argv)
    for part in says:
        assert part in message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("segment_secs: 3", "did you mean segment_seconds"),
        ("limit: [", "not YAML"),
        ("just words", "name: value"),
        ("limit: many", "limit"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(text)
    assert says in error_of([*BASE, "--config", str(file)])


def test_a_misspelt_variable_or_preset_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "did you mean descriptions" in error_of(BASE, {"description": "speech"})
    monkeypatch.setenv("SAM_PIPELINE_LIMITS", "3")
    assert "did you mean limit" in error_of(BASE)


def test_prompts_from_everywhere_add_up() -> None:
    argv = [*BASE, "--prompt", "dog=dog barking", "--description", "rain", "--anchors", '[["+", 1, 2]]']
    assert load_config(argv).all_prompts == (
        Prompt(name="dog", description="dog barking"),
        Prompt(description="rain", anchors=[["+", 1, 2]]),
    )
    assert load_config([*BASE, "--anchors", '[["+", 1, 2]]']).all_prompts == (Prompt(anchors=[["+", 1, 2]]),)
    assert load_config(BASE).all_prompts == ()


def test_sound_settings_are_read_from_text(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config([*BASE, "--output-sample-rate", "44100", "--bit-depth", "16", "--channels", "each"])
    assert (config.output_sample_rate, config.bit_depth, config.channels) == (44_100, 16, "each")
    monkeypatch.setenv("SAM_PIPELINE_BIT_DEPTH", "32")
    monkeypatch.setenv("SAM_PIPELINE_OUTPUT_SAMPLE_RATE", "source")
    config = load_config([*BASE, "--stem-format", "wav"])
    assert (config.output_sample_rate, config.bit_depth, config.on_overs) == ("source", 32, "scale")


def test_several_problems_are_told_at_once() -> None:
    assert len(error_of([*BASE, "--limit", "0", "--device", "gpu", "--writers", "x"]).splitlines()) == 3


def test_credentials_in_a_url_are_refused_and_not_repeated() -> None:
    message = error_of(["--manifest", "s3://key:topsecret@archive/m.parquet", "--lake", "/lake"])
    assert "AWS_SECRET_ACCESS_KEY" in message
    assert "topsecret" not in message


def test_the_hash_covers_what_changes_a_result_and_nothing_else() -> None:
    plain = JobConfig(**PLACES).config_hash("v1")
    assert len(plain) == 16
    same = JobConfig(
        manifest="/other.parquet", lake="s3://other/lake", separators=4, decoders=3, device="cpu", limit=1,
        segments_per_batch=1, windows_per_batch=2, commit_every_rows=1, progress=False,
        descriptions=("speech",), prompts=("dog=dog barking",), target_label="dialogue", residual_label="rest",
    )  # fmt: skip
    assert same.config_hash("v1") == plain
    assert same.config_hash("v2") != plain
    changes: list[dict[str, Any]] = [
        {"model": "large"},
        {"precision": "bfloat16"},
        {"predict_spans": True},
        {"predict_spans": True, "span_predictor": "pe-a-frame-small"},
        {"predict_spans": True, "skip_inactive": True},
        {"judge": "facebook/sam-audio-judge"},
        {"judge": "none"},
        {"candidates": 4, "ranker": "model"},
        {"candidates": 4, "ranker": "sound_activity"},
        {"candidates": 4, "ranker": "model", "rerank_below": 3.0},
        {"masked": "kept"},
        {"channels": "mono"},
        {"residual": "mixture_minus_target"},
        {"output_sample_rate": "source"},
        {"bit_depth": 16},
        {"on_overs": "clip"},
        {"solver_method": "euler", "solver_steps": 4},
        {"segment_seconds": 60},
        {"halo_seconds": 5},
        {"stem_format": "wav"},
    ]
    hashes = {JobConfig(**{**PLACES, **change}).config_hash("v1") for change in changes}
    assert len(hashes | {plain}) == len(changes) + 1


def test_the_shipped_model_is_judged_by_the_shipped_judge_and_others_by_what_is_named() -> None:
    assert JobConfig(**PLACES).judge_name == "tiny"
    assert JobConfig(**PLACES, model="facebook/sam-audio-large").judge_name is None
    assert JobConfig(**PLACES, model="facebook/sam-audio-large", judge="tiny").judge_name == "tiny"
    assert JobConfig(**PLACES, judge="none").judge_name is None
    # What "auto" stands for is what counts: naming it makes no new items.
    assert JobConfig(**PLACES, judge="tiny").config_hash("v1") == JobConfig(**PLACES).config_hash("v1")


def test_media_may_be_read_beside_the_manifest_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_config(BASE).read_prefixes == ("s3://archive/manifests",)
    assert JobConfig(manifest="s3://archive/films", lake="/lake").read_prefixes == ("s3://archive/films",)
    argv = [*BASE, "--allowed-read-prefix", "s3://media", "--allowed-read-prefix", "/mnt/media"]
    assert load_config(argv).read_prefixes == ("s3://media", "/mnt/media")
    monkeypatch.chdir(tmp_path)
    config = JobConfig(manifest="m/films.parquet", lake="lake")
    assert (config.read_prefixes, config.lake) == ((f"{tmp_path}/m",), f"{tmp_path}/lake")


def test_a_config_pickles_and_prints_as_json() -> None:
    config = load_config([*BASE, "--dry-run", "--no-progress", "--anchors", '[["+", 1, 2]]'])
    assert pickle.loads(pickle.dumps(config)) == config
    assert json.loads(config.to_json())["anchors"] == [["+", 1.0, 2.0]]
    assert config.dry_run and not config.progress


def test_a_config_made_directly_ignores_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAM_PIPELINE_LIMIT", "3")
    monkeypatch.setenv("LIMIT", "4")
    assert JobConfig(**PLACES).limit is None
