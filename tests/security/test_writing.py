"""What a manifest calls things never becomes a place: all that a run writes lies below the lake, under plain names."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from operators.describe import describe
from operators.errors import AssetError
from operators.segments import Segment
from pipeline.config import JobConfig, JobConfigError
from pipeline.context import Context
from pipeline.facts import Facts
from pipeline.items import Work
from pipeline.plan import Planner
from pipeline.prompts import parse_prompts
from pipeline.schema import ManifestRow, StemRow
from pipeline.settings import load_config
from pipeline.storage import Store
from pipeline.write import WriteStage

IDS = (
    "../../escape", "/etc/cron.d/escape", "..", ".", "...", "a/../../escape", "a\\..\\b", "C:\\escape", "~root",
    "é/音楽",
    "a b", "%2e%2e%2fescape", "-rf *", "$(touch escape)", "`touch escape`", "a;b|c", "s3://other/escape", "x" * 1024,
    "x~y",
    "con", ".hidden", "a.", "#?&=", "'\"", "\u202egnp.wav", "*",
)  # fmt: skip
PLAIN = re.compile(r"[A-Za-z0-9._~%-]+")


@pytest.fixture(scope="module")
def facts():
    return describe("tiny")


@pytest.mark.parametrize("identity", IDS)
def test_any_asset_id_is_written_below_the_lake_under_a_plain_name(identity: str, tmp_path: Path, facts) -> None:
    media, lake = tmp_path / "media", tmp_path / "deep" / "er" / "lake"
    media.mkdir()
    soundfile.write(media / "a.wav", np.zeros(4800, np.float32), 48_000)
    config = JobConfig(manifest=str(media / "m.parquet"), lake=str(lake), descriptions=("dog",))
    context = Context(config, str(lake), config.read_prefixes, facts, "c" * 16, "run-1")
    before = {path for path in tmp_path.rglob("*") if lake not in path.parents}
    row = {"asset_id": identity, "uri": str(media / "a.wav"), "metadata_json": '{"../x": "/etc"}'}
    (work,) = Planner(config, context.store, facts, "c" * 16, set()).plan([row]).todo
    sound = np.zeros((1, 4800), np.float32)
    stored = Facts(0.1, None, None, 1, 1, 0).to_json()
    result = WriteStage(context)(
        {"work": work.to_json(), "failure": "", "facts": stored, "target": sound, "residual": sound}
    )
    assert result["kind"] == "stem", result
    stem = StemRow.model_validate_json(result["row"])
    assert stem.asset_id == identity  # the table keeps what it is called
    after = {path for path in tmp_path.rglob("*") if lake not in path.parents and path not in (lake, *lake.parents)}
    assert after == before
    for path in lake.rglob("*"):
        assert PLAIN.fullmatch(path.name) and path.name not in (".", "..") and not path.is_symlink()
    for url in (stem.target_uri, stem.residual_uri):
        assert Path(url).is_file() and lake in Path(url).resolve().parents


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "", "A", "x" * 65, "a.b", "a b", "é", "-", "a\n"])
def test_names_of_stems_are_labels_and_no_paths(name: str) -> None:
    with pytest.raises(ValueError):
        parse_prompts([{"name": name, "description": "dog"}] if name else [{"name": "../", "description": "dog"}])
    with pytest.raises(JobConfigError):
        load_config(["--manifest", "m", "--lake", "l", "--target-label", name or "../"])
    with pytest.raises(AssetError, match="prompts"):
        ManifestRow.from_record(
            {"asset_id": "a", "uri": "/a", "prompts": [{"name": name or "../", "description": "dog"}]}
        )


@pytest.mark.parametrize("lake", ["http://x/lake", "memory://lake", "simplecache::s3://b/lake", "s3://key:secret@b/l"])
def test_a_lake_of_another_scheme_is_refused(lake: str) -> None:
    with pytest.raises(JobConfigError) as raised:
        load_config(["--manifest", "m.parquet", "--lake", lake])
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("key", ["../x", "/x", "a/../x", "a//x", ".", "a/./x", ""])
def test_keys_that_leave_the_lake_are_a_fault(key: str, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "lake"))
    for action in (
        lambda: store.write_bytes(key, b"x"),
        lambda: store.put_if_absent(key, b"x"),
        lambda: store.delete(key),
        lambda: store.delete_prefix(key),
        lambda: store.read_bytes(key),
    ):
        with pytest.raises(ValueError):
            action()


def test_work_from_a_stage_keeps_its_ids_as_text() -> None:
    """Rows travel as JSON: nothing in them is code, whatever they hold."""
    text = Work((), Segment(0, 1, 0, 1, 0, 1), 1).to_json()
    assert Work.from_json(text).to_json() == text
