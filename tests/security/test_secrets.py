"""Keys, tokens and signed URLs appear in no message, log, table or marker."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from operators.describe import describe
from operators.errors import AssetError
from operators.sam_audio.checkpoint import CheckpointError
from operators.sam_audio.sources import open_files
from pipeline.config import JobConfig, JobConfigError
from pipeline.context import Context
from pipeline.manifest import read_manifest
from pipeline.plan import Planner
from pipeline.settings import load_config
from pipeline.storage import Store
from pipeline.uris import redact

# Shaped like AWS's, which have slashes; none was ever a key.
KEY, SECRET = "AKIAABCDEFGHIJKLMNOP", "wJalr/UtnFEMI+K7MDENG/bPxRfiCYzzzzzzzzzzz"
LEAKS = (
    f"s3://{KEY}:{SECRET}@bucket/a.wav",
    f"https://user:{SECRET}@host/a.wav",
    "https://token-0123456789@host/a.wav",
    "https://host/a.wav?X-Amz-Signature=topsecret0&X-Amz-Credential=topsecret1&X-Amz-Security-Token=topsecret2",
    "https://account.blob.core.windows.net/c/a.wav?sv=2024&SIG=topsecret3&se=2027",
    f"Unable to sign with {KEY}",
    "Authorization: Bearer topsecret4.topsecret5",
    "cannot reach the hub with hf_abcdefghijklmnopqrstuvwxyz",
)
HIDDEN = (SECRET, KEY, "token-0123456789", *(f"topsecret{i}" for i in range(6)), "hf_abcdefghijklmnopqrstuvwxyz")


def hides(text: str) -> bool:
    return not any(secret in text for secret in HIDDEN)


@pytest.mark.parametrize("text", LEAKS)
def test_secrets_of_any_form_are_blanked_out(text: str) -> None:
    for shown in (redact(text), redact(f"first\n{text}\nlast"), redact(repr({"uri": text}))):
        assert hides(shown) and "***" in shown


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/folder@2x/a:b@c.wav",
        "abfss://container@account.dfs.core.windows.net/a.wav",
        "/media/key lime/token ring.wav",
        "the key is C sharp; the bearer of news",
        "https://host/a.wav?page=2",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "AZURE_STORAGE_KEY"])
def test_values_of_secret_variables_are_blanked_out_in_urls_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "Zq/9+secret value=")
    for form in ("Zq/9+secret value=", "Zq%2F9%2Bsecret%20value%3D", "Zq%2F9%2Bsecret+value%3D"):
        assert redact(f"GET /a?x={form}") == "GET /a?x=***"


def context(tmp_path: Path) -> Context:
    config = JobConfig(manifest=str(tmp_path / "m.parquet"), lake=str(tmp_path / "lake"), descriptions=("dog",))
    return Context(config, config.lake, config.read_prefixes, describe("tiny"), "c" * 16, "run-1")


@pytest.mark.parametrize("uri", LEAKS[:5])
def test_rejected_rows_tell_no_secret(uri: str, tmp_path: Path) -> None:
    here = context(tmp_path)
    rows = [
        {"asset_id": "1", "uri": uri},
        {"asset_id": "2", "uri": uri, "channels": "five"},
        {"asset_id": "3", "uri": "/a.wav", "mask_uri": uri},
        {"asset_id": "4", "uri": "/a.wav", "channels": uri},
        {"asset_id": "5", "uri": "/a.wav", "prompts": [{"mask_uri": uri, "wrong": uri}]},
        {"asset_id": "6", "uri": "/a.wav", "anchors": [[uri, 0, 1]]},
    ]
    from pipeline.context import failure_row

    plan = Planner(here.config, here.store, here.facts, here.config_hash, set()).plan(rows)
    assert len(plan.rejected) == len(rows)
    for rejected in plan.rejected:
        row = failure_row("run-1", rejected, "plan", rejected.error)
        assert hides(row.model_dump_json()), row


def test_faults_tell_no_secret_in_rows_or_logs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    here = context(tmp_path)
    media = tmp_path / "a.wav"
    media.write_bytes(b"RIFF" + bytes(99))
    row = {"asset_id": "a", "uri": str(media), "duration_seconds": 1.0}
    (work,) = Planner(here.config, here.store, here.facts, here.config_hash, set()).plan([row]).todo
    for leak in LEAKS:
        with caplog.at_level(logging.DEBUG):
            try:
                try:
                    raise ConnectionError(leak)
                except ConnectionError as error:
                    raise LookupError(f"wrapped: {leak}") from error
            except LookupError as error:
                fault = here.failure(work.asset, "decode", error)
        refusal = here.failure(work.asset, "decode", AssetError("storage_error", leak, f"open {leak}"))
        assert hides(fault.model_dump_json() + refusal.model_dump_json())
    assert hides(caplog.text) and "LookupError" in caplog.text


@pytest.mark.parametrize("uri", LEAKS[:5])
def test_settings_and_models_tell_no_secret(uri: str) -> None:
    for option in ("--manifest", "--lake", "--allowed-read-prefix"):
        given = {"--manifest": "m.parquet", "--lake": "lake", option: uri}
        with pytest.raises(JobConfigError) as raised:
            load_config([part for pair in given.items() for part in pair])
        assert hides(str(raised.value))
    config = JobConfig(manifest="/m.parquet", lake="/lake", model=uri, judge=uri)
    assert hides(config.to_json())
    with pytest.raises((JobConfigError, AssetError)) as refused:
        list(read_manifest(uri))
    assert hides(str(refused.value))


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest",
        "https://user:topsecret0@host/model",
        "simplecache::s3://bucket/model",
        "zip://config.json::file:///etc/x.zip",
        "github://org:repo@main/model",
        "sftp://host/model",
    ],
)
def test_models_come_from_stores_folders_and_the_hub_only(url: str) -> None:
    """A checkpoint's own config may name further models: it cannot send us anywhere."""
    with pytest.raises(CheckpointError, match="is not read") as raised, open_files(url):
        pass
    assert hides(redact(str(raised.value)))


def test_a_store_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    store = Store("s3://lake/x", ["s3://media"])
    assert SECRET.encode() not in pickle.dumps(store) and SECRET not in repr(store)
