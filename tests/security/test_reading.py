"""A manifest cannot make the pipeline read more than the allowed folders, by whatever trick of a name or a file."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from media_files import DEMO, make_media
from video_files import write_video

from operators.describe import describe
from operators.errors import AssetError
from operators.masks import open_masks
from operators.sandbox import Limits
from pipeline.config import JobConfig
from pipeline.decode import decode_media, masked_video, probe_media
from pipeline.plan import Planner
from pipeline.storage import Store

LIMITS = Limits()


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """A folder that may be read, beside one that may not; both hold a recording."""
    for folder in ("media", "media-private"):
        (tmp_path / folder).mkdir()
        soundfile.write(tmp_path / folder / "a.wav", np.zeros(48_000, np.float32), 48_000)
    (tmp_path / "media" / "link.wav").symlink_to(tmp_path / "media-private" / "a.wav")
    (tmp_path / "media" / "folder").symlink_to(tmp_path / "media-private")
    (tmp_path / "media" / "loop.wav").symlink_to("loop.wav")
    return tmp_path / "media"


FORBIDDEN = (
    "{media}-private/a.wav",
    "{media}/../media-private/a.wav",
    "{media}/./a.wav",
    "{media}/link.wav",
    "{media}/folder/a.wav",
    "file://{media}-private/a.wav",
    "FILE://{media}/link.wav",
    "file://localhost{media}/a.wav",
    "/proc/self/root{media}-private/a.wav",
    "/proc/self/environ",
    "/dev/zero",
    "a.wav",
    "~/a.wav",
    "~root/.ssh/id_rsa",
    "s3://media/a.wav",
    "simplecache::file://{media}/a.wav",
    "filecache::s3://media/a.wav",
    "zip://a.wav::file://{media}/a.zip",
    "reference://::file://{media}/a.json",
    "dir::file://{media}",
    "local://{media}/a.wav",
    "memory://a.wav",
    "http://169.254.169.254/latest/meta-data/iam/",
    "https://example.org/a.wav",
    "ftp://example.org/a.wav",
    "sftp://example.org/a.wav",
    "git://x:main@a.wav",
    "github://o:r@/a.wav",
    "data:audio/wav;base64,AAAA",
    "concat:{media}/a.wav|/etc/passwd",
    "subfile,,start,0,end,0,,:{media}/a.wav",
    "pipe:0",
    "{media}/a.wav\0.flac",
    "{media}/a.wav\n",
)


@pytest.mark.parametrize("uri", FORBIDDEN)
def test_what_leads_out_of_the_allowed_folder_is_forbidden(media: Path, uri: str) -> None:
    store = Store(str(media.parent / "lake"), [str(media)])
    uri = uri.replace("{media}", str(media))
    for read in (
        lambda: store.stat_media(uri),
        lambda: store.open_media(uri),
        lambda: probe_media(store, uri, LIMITS),
        lambda: decode_media(store, uri, LIMITS, start=0, stop=9, sample_rate=48_000, expected_seconds=None),
        lambda: masked_video(store, str(media / "a.wav"), uri, LIMITS),
    ):
        with pytest.raises(AssetError) as raised:
            read()
        assert raised.value.cause == "forbidden_uri"


def test_a_link_in_a_circle_is_refused(media: Path) -> None:
    store = Store(str(media.parent / "lake"), [str(media)])
    with pytest.raises(AssetError) as raised:
        store.open_media(str(media / "loop.wav"))
    assert raised.value.cause in ("forbidden_uri", "not_found", "storage_error")


def test_a_link_that_stays_inside_is_followed(media: Path) -> None:
    (media / "inside.wav").symlink_to(media / "a.wav")
    assert probe_media(Store(str(media.parent / "lake"), [str(media)]), str(media / "inside.wav"), LIMITS).channels == 1


def test_an_allowed_folder_that_is_a_link_stands_for_its_target(media: Path) -> None:
    (media.parent / "alias").symlink_to(media)
    store = Store(str(media.parent / "lake"), [str(media.parent / "alias")])
    assert probe_media(store, str(media.parent / "alias" / "a.wav"), LIMITS).channels == 1
    with pytest.raises(AssetError):
        store.open_media(str(media.parent / "alias" / "link.wav"))


@pytest.mark.parametrize("uri", ["s3://media/tapes-private/a.wav", "s3://media/tapes/../x", "s3://other/tapes/a.wav"])
def test_a_prefix_of_a_bucket_is_a_folder_not_a_beginning_of_names(tmp_path: Path, uri: str) -> None:
    store = Store(str(tmp_path / "lake"), ["s3://media/tapes"])
    assert store.locate_media("s3://media/tapes/a.wav").path == "media/tapes/a.wav"
    with pytest.raises(AssetError) as raised:
        store.locate_media(uri)
    assert raised.value.cause == "forbidden_uri"


def test_rows_and_masks_outside_are_rejected_before_anything_is_read(media: Path) -> None:
    private = str(media.parent / "media-private" / "a.wav")
    os.mkfifo(media.parent / "media-private" / "pipe.wav")  # opening it would block for ever
    config = JobConfig(
        manifest=str(media / "m.parquet"), lake=str(media.parent / "lake"), descriptions=("dog",), segment_seconds=12
    )
    facts = describe("tiny")
    planner = Planner(config, Store(config.lake, config.read_prefixes), facts, "c" * 16, set())
    rows = [
        {"asset_id": "1", "uri": private},
        # Said to be known already: nothing of it would have to be looked up.
        {"asset_id": "2", "uri": private, "etag": "e", "size_bytes": 9, "duration_seconds": 1.0, "channels": 1},
        {"asset_id": "3", "uri": str(media.parent / "media-private" / "pipe.wav")},
        {"asset_id": "4", "uri": str(media / "a.wav"), "mask_uri": private},
        {"asset_id": "5", "uri": str(media / "a.wav"), "prompts": [{"description": "cat", "mask_uri": private}]},
    ]
    plan = planner.plan(rows)
    assert plan.todo == []
    causes = {rejected.asset_id: rejected.error.cause for rejected in plan.rejected}
    assert {causes[i] for i in "123"} == {"forbidden_uri"}
    assert {causes[i] for i in "45"} <= {"forbidden_uri", "no_vision"}  # the model at hand takes no masks at all


# Containers that name other files: FFmpeg must not follow them.

PLAYLISTS = {
    "hls.wav": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{secret}\n#EXT-X-ENDLIST\n",
    "concat.wav": "ffconcat version 1.0\nfile '{secret}'\n",
    "sdp.wav": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n",
    "dash.mp4": '<?xml version="1.0"?><MPD><Period><BaseURL>{secret}</BaseURL></Period></MPD>',
    "smil.wav": '<smil><body><audio src="{secret}"/></body></smil>',
    "imf.mxf": '<?xml version="1.0"?><CompositionPlaylist><Id>{secret}</Id></CompositionPlaylist>',
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_file_that_names_another_is_not_followed(tmp_path: Path, name: str) -> None:
    secret = make_media(tmp_path / "secret.wav", "wav", seconds=1.0)
    folder = tmp_path / "media"
    folder.mkdir()
    (folder / name).write_text(PLAYLISTS[name].replace("{secret}", str(secret)))
    store = Store(str(tmp_path / "lake"), [str(folder)])
    with pytest.raises(AssetError) as raised:
        probe_media(store, str(folder / name), LIMITS)
    assert raised.value.cause in ("mislabelled", "corrupt")
    with pytest.raises(AssetError) as raised, (folder / name).open("rb") as file, open_masks(file, name, 1.0):
        pass
    assert raised.value.cause in ("mislabelled", "corrupt", "bad_mask")


def test_a_movie_whose_sound_lies_in_another_file_is_not_followed(tmp_path: Path) -> None:
    """QuickTime data references: `url ` (flags 0) with a path in place of `self-contained`."""
    secret = make_media(tmp_path / "secret.mov", "mov", seconds=1.0)
    folder = tmp_path / "media"
    folder.mkdir()
    data = bytearray(make_media(folder / "a.mov", "mov", seconds=1.0).read_bytes())
    found = 0
    while (found := data.find(b"dref", found + 1)) > 0:
        entry = found + 12  # size, kind, flags of the first reference
        kind = data[entry + 4 : entry + 8]
        assert kind in (b"url ", b"alis")
        struct.pack_into(">I", data, entry + 8, 0)  # no longer self-contained
        data[entry + 12 : entry + 12] = f"file://{secret}".encode()
    (folder / "a.mov").write_bytes(data)
    store = Store(str(tmp_path / "lake"), [str(folder)])
    with pytest.raises(AssetError):
        info = probe_media(store, str(folder / "a.mov"), LIMITS)
        decode_media(
            store, str(folder / "a.mov"), LIMITS, start=0, stop=48_000, sample_rate=48_000,
            expected_seconds=info.duration_seconds,
        )  # fmt: skip


def test_good_files_are_read_by_the_same_calls(tmp_path: Path) -> None:
    """So what is refused above is not refused for another reason."""
    video = write_video(tmp_path / "v.mkv", [40 * i for i in range(30)], sound=(0, 1200))
    np.savez(tmp_path / "m.npz", masks=np.ones((30, 4, 4), bool), timestamps_seconds=np.arange(30) * 0.04)
    store = Store(str(tmp_path / "lake"), [str(tmp_path), str(DEMO)])
    assert probe_media(store, str(DEMO / "demo.mp4"), LIMITS).has_video
    options = {"start": 0, "end": 20, "hop_length": 1920, "sample_rate": 48_000, "image_size": 32}
    assert masked_video(store, str(video), str(tmp_path / "m.npz"), LIMITS, interpolation="BICUBIC", **options)
