from __future__ import annotations

import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest
from media_files import DEMO, make_media

from jobs import build_manifest
from pipeline.schema import MANIFEST_SCHEMA, ManifestRow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as archives are: media in folders, sidecars, hidden files, broken files."""
    folder = tmp_path_factory.mktemp("archive")
    (folder / "film").mkdir()
    (folder / "radio" / "1998").mkdir(parents=True)
    (folder / ".trash").mkdir()
    for name in ("demo.mp4", "demo.mkv"):
        shutil.copy(DEMO / name, folder / "film" / name)
    make_media(folder / "radio" / "1998" / "Straße & so.mp3", "mp3", seconds=3.0)
    for sidecar in ("film/demo.srt", "film/demo.XML", "radio/cover.jpg", "list.json", ".trash/old.wav", "radio/.x.wav"):
        (folder / sidecar).write_text("1\n")
    (folder / "empty.wav").touch()
    (folder / "renamed.wav").write_text("a letter\n" * 100)
    whole = make_media(folder / "cut.wav", "wav", seconds=3.0).read_bytes()
    (folder / "cut.mov").write_bytes((DEMO / "demo.mp4").read_bytes()[:100_000])
    (folder / "cut.wav").write_bytes(whole[: len(whole) // 2])
    return folder


def build(media: str, out: str) -> dict[str, ManifestRow]:
    assert build_manifest.main(["--media", media, "--out", out, "--workers", "4"]) == 0
    with fsspec.open(out, "rb") as file:
        table = pq.read_table(file)
    assert table.schema.names == MANIFEST_SCHEMA.names
    return {record["asset_id"]: ManifestRow.from_record(record) for record in table.to_pylist()}


def check(rows: dict[str, ManifestRow]) -> None:
    assert sorted(rows) == [
        "cut.mov", "cut.wav", "empty.wav", "film/demo.mkv", "film/demo.mp4", "radio/1998/Straße & so.mp3", "renamed.wav"
    ]  # fmt: skip
    film = rows["film/demo.mp4"]
    assert (film.duration_seconds, film.sample_rate, film.channels) == (10.0, 48_000, 2)
    assert (film.codec, film.has_video, film.probe_error) == ("aac", True, None)
    assert film.size_bytes == (DEMO / "demo.mp4").stat().st_size
    radio = rows["radio/1998/Straße & so.mp3"]
    assert radio.duration_seconds == pytest.approx(3.0, abs=0.01)
    assert (radio.codec, radio.container, radio.has_video, radio.sample_rate) == ("mp3", "mp3", False, 44_100)
    assert all(row.etag for row in rows.values())


def test_manifest_of_a_local_folder(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = build(str(archive), str(tmp_path / "new" / "manifest.parquet"))
    check(rows)
    assert rows["film/demo.mp4"].uri == str(archive / "film" / "demo.mp4")
    shown = capsys.readouterr().out
    assert "files       7" in shown
    assert "skipped     6" in shown
    assert "unreadable  3 (kept, with probe_error): " in shown


def test_broken_files_stay_with_their_error(archive: Path, tmp_path: Path) -> None:
    rows = build(str(archive), str(tmp_path / "manifest.parquet"))
    errors = {asset_id: (row.probe_error or "").partition(":")[0] for asset_id, row in rows.items()}
    assert errors["empty.wav"] == "empty_file"
    assert errors["renamed.wav"] == "mislabelled"
    assert errors["cut.mov"] == "truncated"
    for asset_id in ("empty.wav", "renamed.wav"):
        assert rows[asset_id].duration_seconds is None
        assert rows[asset_id].size_bytes is not None
    # Cut files keep the length that their header declares, so decoding them finds that they are cut.
    assert rows["cut.wav"].duration_seconds == pytest.approx(3.0)


def test_manifest_of_an_s3_prefix(archive: Path, s3_server: str) -> None:
    prefix = f"media/{uuid.uuid4().hex}"
    s3 = fsspec.filesystem("s3")
    for path in archive.rglob("*"):
        if path.is_file():
            s3.pipe_file(f"{prefix}/{path.relative_to(archive).as_posix()}", path.read_bytes())
    rows = build(f"s3://{prefix}", f"s3://lake/{uuid.uuid4().hex}/manifest.parquet")
    check(rows)
    film = rows["film/demo.mp4"]
    assert film.uri == f"s3://{prefix}/film/demo.mp4"
    assert film.etag == s3.info(f"{prefix}/film/demo.mp4")["ETag"].strip('"')


def test_etag_changes_with_the_content(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(DEMO / "demo.mp4", tmp_path / "in" / "a.mp4")
    first = build(str(tmp_path / "in"), str(tmp_path / "1.parquet"))["a.mp4"]
    shutil.copy(DEMO / "demo.mkv", tmp_path / "in" / "a.mp4")
    second = build(str(tmp_path / "in"), str(tmp_path / "2.parquet"))["a.mp4"]
    assert first.etag != second.etag
    assert (first.codec, second.codec) == ("aac", "flac")


def test_relative_paths_and_the_command_line_work(archive: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "jobs" / "build_manifest.py"),
        "--media",
        "film",
        "--out",
        str(tmp_path / "m"),
    ]
    done = subprocess.run(command, cwd=archive, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert pq.read_table(tmp_path / "m").column("asset_id").to_pylist() == ["demo.mkv", "demo.mp4"]


@pytest.mark.parametrize("name", ["missing", "nothing"])
def test_no_folder_or_no_media_is_status_2(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "readme.txt").write_text("no media")
    status = build_manifest.main(["--media", str(tmp_path / name), "--out", str(tmp_path / "m.parquet")])
    assert status == 2
    assert name in capsys.readouterr().err
    assert not (tmp_path / "m.parquet").exists()


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    media = tmp_path / "media"
    media.mkdir()
    shutil.copy(DEMO / "demo.mp4", tmp_path / "private.mp4")
    shutil.copy(DEMO / "demo.mp4", media / "public.mp4")
    (media / "link.mp4").symlink_to(tmp_path / "private.mp4")
    rows = build(str(media), str(tmp_path / "m.parquet"))
    assert (rows["link.mp4"].probe_error or "").startswith("forbidden_uri")
    assert rows["public.mp4"].probe_error is None
