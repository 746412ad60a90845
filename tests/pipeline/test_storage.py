from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from operators.errors import AssetError
from pipeline.storage import (
    MEDIA_BLOCK_BYTES,
    StorageError,
    Store,
    attempt_key,
    attempts_prefix,
    commit_key,
    media_errors,
    original_name,
    part_key,
    parts_prefix,
    safe_name,
    stem_key,
)

ALLOWED_CHARACTERS = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-~%")


def cause_of(action, *args) -> AssetError:
    with pytest.raises(AssetError) as caught:
        action(*args)
    return caught.value


def with_media(lake: str, name: str = "a.wav", data: bytes = b"0123456789") -> tuple[Store, str]:
    """A store that may read `<lake>/media`, with one media file there."""
    store = Store(lake, [f"{lake}/media"])
    store.write_bytes(f"media/{name}", data)
    return store, store.url(f"media/{name}")


def test_what_is_written_is_read_listed_and_deleted(lake: str) -> None:
    store = Store(lake)
    assert store.list("a") == []
    assert not store.exists("a/b.txt")
    store.write_bytes("a/b.txt", b"one")
    store.write_bytes("a/b.txt", b"two!")
    store.write_bytes("a/c/d.txt", b"")
    assert store.read_bytes("a/b.txt") == b"two!"
    assert store.size("a/b.txt") == 4
    assert store.list("a") == ["a/b.txt", "a/c/d.txt"]
    assert store.key_of(store.url("a/b.txt")) == "a/b.txt"
    store.delete("a/b.txt")
    store.delete("a/b.txt")
    assert not store.exists("a/b.txt")
    store.delete_prefix("a")
    store.delete_prefix("a")
    assert store.list("a") == []
    with pytest.raises(FileNotFoundError):
        store.read_bytes("a/b.txt")


def test_other_clients_writes_are_seen_at_once(lake: str) -> None:
    one, other = Store(lake), pickle.loads(pickle.dumps(Store(lake)))
    assert one.list("commits") == []
    other.write_bytes("commits/x", b"1")
    assert one.list("commits") == ["commits/x"]
    other.delete("commits/x")
    assert one.list("commits") == []


def test_read_many_keeps_the_order_and_leaves_out_what_is_gone(lake: str) -> None:
    store = Store(lake)
    keys = [f"m/{i:03d}" for i in range(12)]
    for key in keys[:10]:
        store.write_bytes(key, key.encode())
    assert list(store.read_many(keys[::-1])) == [(key, key.encode()) for key in keys[:10][::-1]]


def test_put_if_absent_has_one_winner_of_eight_threads(lake: str) -> None:
    store = Store(lake)
    for race in range(3):
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda i: store.put_if_absent(f"race/{race}", b"%d" % i), range(8)))  # noqa: B023
        assert sum(won) == 1
        assert store.read_bytes(f"race/{race}") == b"%d" % won.index(True)


def _put_each(lake: str, name: int, keys: list[str], barrier) -> list[bool]:
    store = Store(lake)
    store.exists("warm-up")
    barrier.wait(60)
    return [store.put_if_absent(key, b"%d" % name) for key in keys]


def test_put_if_absent_has_one_winner_of_eight_processes(lake: str) -> None:
    keys = [f"race/{i}" for i in range(12)]
    with multiprocessing.get_context("forkserver").Manager() as manager:
        barrier = manager.Barrier(8)
        with multiprocessing.get_context("forkserver").Pool(8) as pool:
            won = pool.starmap(_put_each, [(lake, i, keys, barrier) for i in range(8)])
    for index, key in enumerate(keys):
        winners = [name for name in range(8) if won[name][index]]
        assert len(winners) == 1
        assert Store(lake).read_bytes(key) == b"%d" % winners[0]


@pytest.mark.parametrize("size", [1000, 33 << 20])
def test_upload_if_absent_keeps_the_first_file(lake: str, tmp_path: Path, size: int) -> None:
    store = Store(lake, [lake])
    for name in ("first", "second"):
        (tmp_path / name).write_bytes(name.encode() + random.Random(name).randbytes(size))
    assert store.upload(tmp_path / "first", "stems/x.flac")
    assert not store.upload(tmp_path / "second", "stems/x.flac")
    store.download("stems/x.flac", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "first").read_bytes()
    if store.scheme == "s3" and size > 32 << 20:
        assert "-" in store.stat_media(store.url("stems/x.flac")).etag  # the mark of an upload in parts
    assert store.upload(tmp_path / "second", "stems/x.flac", if_absent=False)
    assert store.read_bytes("stems/x.flac") == (tmp_path / "second").read_bytes()


def test_a_killed_writer_leaves_nothing_to_see(tmp_path: Path) -> None:
    """The writer dies while a large object is on its way to the disk."""
    code = (
        "import sys; from pipeline.storage import Store;"
        "Store(sys.argv[1]).put_if_absent('commits/x', b'half' * (1 << 26))"
    )
    root = Path(__file__).parents[2]
    writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=root)
    while not list(tmp_path.glob("commits/.tmp-*")):
        assert writer.poll() is None
        time.sleep(0.001)
    writer.kill()
    writer.wait()
    store = Store(str(tmp_path))
    assert list(tmp_path.glob("commits/.tmp-*"))
    assert not store.exists("commits/x")
    assert store.list("commits") == []
    assert store.put_if_absent("commits/x", b"whole")
    assert store.list("commits") == ["commits/x"]


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/./b"])
def test_keys_cannot_leave_the_lake(lake: str, key: str) -> None:
    store = Store(lake)
    for action in (store.read_bytes, store.delete, store.exists, store.url, store.open, store.list):
        with pytest.raises(ValueError, match="not a key"):
            action(key)
    with pytest.raises(ValueError, match="not a key"):
        store.put_if_absent(key, b"")
    with pytest.raises(ValueError, match="not in the lake"):
        store.key_of("s3://elsewhere/x")


def test_media_under_an_allowed_prefix_is_read_in_ranges(lake: str) -> None:
    data = random.Random(0).randbytes(3 << 20)
    store, uri = with_media(lake, "é #1 100%.wav", data)
    assert store.stat_media(uri).size_bytes == len(data)
    with store.open_media(uri) as file:
        file.seek(2 << 20)
        assert file.read(1000) == data[2 << 20 :][:1000]
        file.seek(-10, os.SEEK_END)
        assert file.read() == data[-10:]
        if store.scheme == "s3":
            assert file.blocksize == MEDIA_BLOCK_BYTES


def test_the_etag_of_media_changes_with_its_content(lake: str) -> None:
    store, uri = with_media(lake)
    first = store.stat_media(uri)
    assert store.stat_media(uri) == first
    store.write_bytes("media/a.wav", b"9876543210")
    assert store.stat_media(uri).etag != first.etag
    assert '"' not in first.etag


@pytest.mark.parametrize(
    "uri",
    [
        "{lake}/secret.txt",
        "{lake}/media-private/a.wav",
        "{lake}/media/../secret.txt",
        "{lake}/media/./a.wav",
        "{lake}/media/a\n.wav",
        "{lake}",
        "s3://other/media/a.wav",
        "s3://key:secretsecret@lake/media/a.wav",
        "s3:///media/a.wav",
        "/etc/passwd",
        "file:///etc/passwd",
        "file://media/a.wav",
        "media/a.wav",
        "",
        "http://169.254.169.254/latest/meta-data",
        "simplecache::s3://lake/media/a.wav",
        "zip://a.wav::s3://lake/media/a.zip",
        "memory://a.wav",
    ],
)
def test_uris_outside_the_allowed_prefixes_are_forbidden(lake: str, uri: str) -> None:
    store, _ = with_media(lake)
    store.write_bytes("secret.txt", b"secret")
    store.write_bytes("media-private/a.wav", b"secret")
    for action in (store.open_media, store.stat_media):
        error = cause_of(action, uri.format(lake=lake))
        assert error.cause == "forbidden_uri"
        assert error.remedy
        assert "secretsecret" not in str(error)


def test_a_link_cannot_lead_out_of_an_allowed_folder(tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "media" / "a.wav").symlink_to(tmp_path / "secret")
    store = Store(str(tmp_path / "lake"), [str(tmp_path / "media")])
    assert cause_of(store.open_media, str(tmp_path / "media" / "a.wav")).cause == "forbidden_uri"


def test_nothing_may_be_read_when_no_prefix_is_allowed(lake: str) -> None:
    _, uri = with_media(lake)
    assert "(none)" in cause_of(Store(lake).open_media, uri).message


def test_missing_media_is_not_found(lake: str) -> None:
    store, _ = with_media(lake)
    for action in (store.open_media, store.stat_media):
        error = cause_of(action, store.url("media/gone.wav"))
        assert error.cause == "not_found"
        assert "gone.wav" in error.message


def test_a_folder_or_a_pipe_is_not_a_file(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "lake"), [str(tmp_path)])
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "folder.wav").mkdir()
    for name in ("pipe.wav", "folder.wav"):
        assert cause_of(store.open_media, str(tmp_path / name)).cause == "not_a_file"


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (FileNotFoundError("x"), "not_found"),
        (PermissionError("x"), "access_denied"),
        (OSError("connection reset"), "storage_error"),
        (TimeoutError(), "storage_error"),
    ],
)
def test_reads_that_fail_become_asset_errors(error: Exception, cause: str) -> None:
    def read() -> None:
        with media_errors("s3://media/a.wav"):
            raise error

    assert cause_of(read).cause == cause


def test_wrong_keys_are_access_denied_and_stay_secret(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store, uri = with_media(f"s3://lake/{uuid.uuid4().hex}")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-abcdef")
    code = (
        "import sys; from pipeline.storage import Store\n"
        "try: Store(sys.argv[1], [sys.argv[1]]).open_media(sys.argv[2])\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "try: Store(sys.argv[1]).put_if_absent('k', b'')\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, store.root, uri],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    assert out[0].startswith("AssetError access_denied")
    assert out[1].startswith("StorageError")
    assert "wrong-secret" not in "".join(out)


def test_an_unwritable_lake_is_a_storage_error_that_names_the_key(tmp_path: Path) -> None:
    (tmp_path / "lake").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match="commits/x"):
        Store(str(tmp_path / "lake")).put_if_absent("commits/x", b"")


def test_a_lake_needs_a_scheme_that_is_known() -> None:
    with pytest.raises(AssetError, match="ftp"):
        Store("ftp://host/lake")


IDS = [
    "film.wav",
    "../../etc/passwd",
    "/abs",
    "..",
    ".hidden",
    "a/b\\c",
    "50% off",
    "x~y",
    "naïve 日本語 🎬",
    "CON",
    "a\x00b",
    "\ud800",
]


@pytest.mark.parametrize("text", IDS, ids=ascii)
def test_safe_names_are_one_plain_segment_and_reversible(text: str) -> None:
    name = safe_name(text)
    assert set(name) <= ALLOWED_CHARACTERS
    assert not name.startswith(".")
    assert len(name) <= 128
    assert original_name(name) == text


def test_long_ids_keep_their_start_and_stay_distinct() -> None:
    one, other = safe_name("日本" * 200 + "1"), safe_name("日本" * 200 + "2")
    assert one != other
    assert one[:80] == other[:80]
    assert max(len(one), len(other)) <= 128
    assert original_name(one.partition("~")[0].rpartition("%")[0] or "x")
    with pytest.raises(ValueError, match="shortened"):
        original_name(one)
    with pytest.raises(ValueError, match="empty"):
        safe_name("")


def test_any_two_ids_have_different_names() -> None:
    rng = random.Random(0)
    ids = {"".join(rng.choice("a/%.~é2E7") for _ in range(rng.randint(1, 6))) for _ in range(3000)}
    assert len({safe_name(text) for text in ids}) == len(ids)


def test_keys_are_the_documented_ones() -> None:
    item = "0123456789abcdef" * 2
    assert stem_key("cfg", "a/b", item, "dialogue", "flac") == "stems/cfg/a%2Fb/0123456789ab/dialogue.flac"
    assert part_key("cfg", item, 3, 12, "target") == f"parts/cfg/{item}/000003-of-000012.target.flac"
    assert part_key("cfg", item, 3, 12, "target").startswith(parts_prefix("cfg", item) + "/")
    assert commit_key("cfg", item) == f"commits/cfg/{item}.json"
    first, second = attempt_key(item, 3, "decode"), attempt_key(item, 3, "decode")
    assert first != second
    assert first.startswith(f"{attempts_prefix(item)}/000003-decode-")
