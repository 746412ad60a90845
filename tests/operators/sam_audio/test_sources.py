"""Where checkpoints come from: folders, URLs, and a server that speaks the hub's protocol."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch
from hub_server import Hub, serve

from operators.sam_audio import SAMAudio, SAMAudioProcessor
from operators.sam_audio.checkpoint import fingerprint
from operators.sam_audio.sources import CheckpointError, open_files

NAME = "someone/sam-audio-tiny"


@pytest.fixture
def hub(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serves one model at `main`, beside a file that nothing needs."""
    folder = tmp_path / "repo"
    shutil.copytree(model_folder, folder)
    (folder / "README.md").write_text("a card")
    with serve(Hub({NAME: {"main": folder}})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        yield hub


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def same(model: SAMAudio, folder: Path) -> bool:
    expected = SAMAudio.from_pretrained(folder).state_dict()
    return all(torch.equal(v, expected[k]) for k, v in model.state_dict().items())


def test_hub_model_loads_and_only_what_it_needs_is_fetched(hub: Hub, cache: Path, model_folder: Path) -> None:
    assert same(SAMAudio.from_pretrained(NAME, cache_dir=cache), model_folder)
    assert hub.fetched() == ["config.json", "model.safetensors"]
    hub.requests.clear()
    SAMAudio.from_pretrained(NAME, cache_dir=cache)
    assert hub.fetched() == []


def test_processor_fetches_no_weights(hub: Hub, cache: Path) -> None:
    assert SAMAudioProcessor.from_pretrained(NAME, cache_dir=cache).audio_sampling_rate == 6000
    assert hub.fetched() == ["config.json"]


def test_revision_is_the_one_asked_for(hub: Hub, cache: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    model = SAMAudio.from_pretrained(NAME, cache_dir=cache)
    torch.nn.init.zeros_(model.proj.bias)
    model.save_pretrained(other)
    hub.repos[NAME]["zeros"] = other
    assert not SAMAudio.from_pretrained(NAME, revision="zeros", cache_dir=cache).proj.bias.any()
    assert SAMAudio.from_pretrained(NAME, cache_dir=cache).proj.bias.any()
    with pytest.raises(CheckpointError, match="no revision 'typo'"):
        SAMAudio.from_pretrained(NAME, revision="typo", cache_dir=cache)


def test_gated_model_says_what_to_do_and_loads_with_the_token(hub: Hub, cache: Path, model_folder: Path) -> None:
    hub.gated[NAME] = "hf_secret"
    for token in (False, "hf_of_somebody_else"):
        with pytest.raises(CheckpointError, match=r"is gated: accept its licence .* `hf auth login` or pass token="):
            SAMAudio.from_pretrained(NAME, token=token, cache_dir=cache)
    assert same(SAMAudio.from_pretrained(NAME, token="hf_secret", cache_dir=cache), model_folder)


def test_missing_repository_is_reported(hub: Hub, cache: Path) -> None:
    with pytest.raises(CheckpointError, match="no model 'someone/else' that you may read"):
        SAMAudio.from_pretrained("someone/else", cache_dir=cache)


def test_missing_files_are_reported(hub: Hub, cache: Path) -> None:
    folder = hub.repos[NAME]["main"]
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds none of model\.safetensors, checkpoint\.pt"):
        SAMAudio.from_pretrained(NAME, cache_dir=cache)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds no config\.json: .* on the hub holds no config\.json"):
        SAMAudio.from_pretrained(NAME, cache_dir=cache / "another")


def test_interrupted_download_is_reported_and_leaves_no_half_model(hub: Hub, cache: Path, model_folder: Path) -> None:
    hub.cut.add("model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors of .* cannot be fetched"):
        SAMAudio.from_pretrained(NAME, cache_dir=cache)
    hub.cut.clear()
    assert same(SAMAudio.from_pretrained(NAME, cache_dir=cache), model_folder)


def test_broken_server_is_reported(hub: Hub, cache: Path) -> None:
    hub.broken = True
    with pytest.raises(CheckpointError, match=r"config\.json of 'someone/sam-audio-tiny'"):
        SAMAudio.from_pretrained(NAME, cache_dir=cache)


def test_without_the_hub_what_is_cached_loads_and_nothing_else(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch, model_folder: Path
) -> None:
    folder = hub.repos[NAME]["main"]
    torch.save(SAMAudio.from_pretrained(folder).state_dict(), folder / "checkpoint.pt")
    (folder / "model.safetensors").unlink()
    SAMAudio.from_pretrained(NAME, cache_dir=cache)
    hub.requests.clear()
    assert same(SAMAudio.from_pretrained(NAME, cache_dir=cache, local_files_only=True), model_folder)
    assert not hub.requests
    with pytest.raises(CheckpointError, match=r"not in the local cache and the hub was not asked"):
        SAMAudio.from_pretrained(NAME, cache_dir=cache / "empty", local_files_only=True)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert same(SAMAudio.from_pretrained(NAME, cache_dir=cache), model_folder)


@pytest.fixture
def url(model_folder: Path) -> str:
    """The model in a store of this process."""
    url = f"memory://models/{uuid.uuid4().hex}"
    filesystem, root = fsspec.core.url_to_fs(url)
    for path in model_folder.iterdir():
        filesystem.pipe_file(f"{root}/{path.name}", path.read_bytes())
    return url


def test_url_is_read_anew_without_a_cache_and_once_with_one(url: str, cache: Path, model_folder: Path) -> None:
    assert same(SAMAudio.from_pretrained(url, cache_dir=cache), model_folder)
    kept = next(cache.rglob("model.safetensors"))
    first = kept.stat().st_mtime_ns
    assert same(SAMAudio.from_pretrained(f"{url}/", cache_dir=cache), model_folder)
    assert kept.stat().st_mtime_ns == first
    assert same(SAMAudio.from_pretrained(url), model_folder)
    assert same(SAMAudio.from_pretrained(url, cache_dir=cache, local_files_only=True), model_folder)


def test_changed_url_is_fetched_again(url: str, cache: Path) -> None:
    SAMAudio.from_pretrained(url, cache_dir=cache)
    filesystem, root = fsspec.core.url_to_fs(url)
    filesystem.pipe_file(f"{root}/model.safetensors", b"cut short")
    with pytest.raises(CheckpointError, match=r"\(9 bytes\) is truncated"):
        SAMAudio.from_pretrained(url, cache_dir=cache)


def test_fingerprint_is_the_same_wherever_a_model_lies(url: str, model_folder: Path, tmp_path: Path) -> None:
    assert fingerprint(url) == fingerprint(model_folder)
    model = SAMAudio.from_pretrained(model_folder)
    torch.nn.init.zeros_(model.proj.bias)
    model.save_pretrained(tmp_path)
    assert fingerprint(tmp_path) != fingerprint(model_folder)


def test_fingerprint_of_a_hub_model_fetches_no_weights_and_stays_when_they_are_there(hub: Hub, cache: Path) -> None:
    before = fingerprint(NAME, cache_dir=cache)
    assert hub.fetched() == ["config.json"]
    SAMAudio.from_pretrained(NAME, cache_dir=cache)
    assert fingerprint(NAME, cache_dir=cache) == before
    assert fingerprint(NAME, cache_dir=cache, local_files_only=True) == before
    folder = hub.repos[NAME]["main"]
    model = SAMAudio.from_pretrained(folder)
    torch.nn.init.zeros_(model.proj.bias)
    model.save_pretrained(folder)
    assert fingerprint(NAME, cache_dir=cache / "another") != before


def test_files_of_a_model_lie_in_one_folder_and_missing_ones_are_told_apart(url: str, hub: Hub, cache: Path) -> None:
    for name in (url, NAME, str(hub.repos[NAME]["main"])):
        with open_files(name, cache_dir=cache) as get:
            assert get("config.json").parent == get("model.safetensors").parent
            with pytest.raises(FileNotFoundError):
                get("tokenizer.json")


def test_revision_of_a_folder_is_refused(model_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="not on the hub, so it has no revision 'v2'"):
        SAMAudio.from_pretrained(model_folder, revision="v2")
