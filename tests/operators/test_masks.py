"""Masks come from any of the files people keep them in, at the right time, with no more read than needed."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.lib import format as npy
from video_files import write_video

from operators.errors import AssetError
from operators.masks import open_masks

FRAMES, HEIGHT, WIDTH = 25, 9, 14
TIMES = np.arange(FRAMES) * 0.04


@pytest.fixture(scope="module")
def masks() -> np.ndarray:
    return np.random.default_rng(4).random((FRAMES, HEIGHT, WIDTH)) < 0.3


def save(path: Path, masks: np.ndarray, times: np.ndarray | None = None) -> Path:
    """As npy, or as npz (compressed, or not for "plain.npz"), by the name."""
    if path.suffix == ".npy":
        np.save(path, masks)
    else:
        stored = {"masks": masks} | ({} if times is None else {"timestamps_seconds": times})
        (np.savez if path.name == "plain.npz" else np.savez_compressed)(path, **stored)
    return path


def at(path: Path, seconds: list[float], *, video_seconds: float = 1.0) -> np.ndarray:
    with path.open("rb") as file, open_masks(file, path.name, video_seconds) as masks:
        return np.stack([masks.at(second).numpy() for second in seconds])


def refused(path: Path, seconds: float = 0.0, *, video_seconds: float = 1.0) -> AssetError:
    with pytest.raises(AssetError) as caught:
        at(path, [seconds], video_seconds=video_seconds)
    assert caught.value.field == "mask_uri"
    assert path.name in caught.value.message
    return caught.value


@pytest.mark.parametrize("kind", ["masks.npy", "masks.npz", "plain.npz"])
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64])
@pytest.mark.parametrize("channel", [False, True])
def test_arrays_of_any_kind_give_their_masks(
    kind: str, dtype: type, channel: bool, masks: np.ndarray, tmp_path: Path
) -> None:
    given = masks.astype(dtype) * (1 if dtype is bool else 255)
    path = save(tmp_path / kind, given[:, None] if channel else given, TIMES)
    wanted = [0, 3, 4, 4, 20, 24]
    assert np.array_equal(at(path, [TIMES[i] + 0.01 for i in wanted]), masks[wanted])


def test_array_without_times_is_spread_over_the_video(masks: np.ndarray, tmp_path: Path) -> None:
    for path in (save(tmp_path / "masks.npy", masks), save(tmp_path / "masks.npz", masks)):
        every_picture = [i * 0.4 for i in range(FRAMES)]
        assert np.array_equal(at(path, every_picture, video_seconds=10), masks)
        assert np.array_equal(at(path, [0, 9.99], video_seconds=10), masks[[0, -1]])
        assert "does not say how long" in refused(path, video_seconds=0).message


def test_one_mask_stays_for_all_of_the_video(masks: np.ndarray, tmp_path: Path) -> None:
    for path in (save(tmp_path / "one.npy", masks[:1]), save(tmp_path / "one.npz", masks[:1], TIMES[:1])):
        assert np.array_equal(at(path, [0, 500], video_seconds=900), masks[[0, 0]])


def test_uneven_times_are_taken_as_they_are(masks: np.ndarray, tmp_path: Path) -> None:
    path = save(tmp_path / "masks.npz", masks[:4], np.array([0.5, 0.6, 3.0, 3.1]))
    assert np.array_equal(at(path, [0, 0.54, 0.56, 1.7, 1.9, 4.1]), masks[[0, 0, 1, 1, 2, 3]])


@pytest.mark.parametrize("codec", ["ffv1", "libx264"])
def test_video_of_masks_gives_its_masks(codec: str, tmp_path: Path) -> None:
    """Through a lossy codec too: black and white stay apart. Its first picture is the video's first."""

    def picture(index: int) -> np.ndarray:
        out = np.zeros((32, 48, 3), np.uint8)
        out[8:24, index : index + 16] = 255
        return out

    path = write_video(tmp_path / "mask.mkv", range(2000, 3000, 40), picture, codec=codec)
    wanted = [0, 7, 7, 24]
    expected = np.stack([picture(i)[..., 0] > 0 for i in wanted])
    found = at(path, [i * 0.04 for i in wanted])
    assert (found != expected).mean() <= (0 if codec == "ffv1" else 0.02)
    assert np.array_equal(at(path, [0.28]), found[1:2])


def test_masks_that_end_too_early_are_refused(masks: np.ndarray, tmp_path: Path) -> None:
    video = write_video(tmp_path / "mask.mkv", range(0, 1000, 40), lambda i: np.zeros((16, 16, 3), np.uint8))
    for path in (save(tmp_path / "masks.npz", masks, TIMES), video):
        at(path, [1.9])  # the last one stays for a second
        error = refused(path, 2.2)
        assert error.cause == "mask_too_short"
        assert "at 2.20 s" in error.message


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (np.zeros((5, 3, 4), np.float32), "float32"),
        (np.zeros((5, 4), bool), r"bool [5, 4]"),
        (np.zeros((5, 3, 4, 3), bool), r"[5, 3, 4, 3]"),
        (np.zeros((0, 3, 4), bool), r"[0, 3, 4]"),
        (np.asfortranarray(np.zeros((5, 3, 4), bool)), "Fortran"),
        (np.array([[[None]]]), "object"),
    ],
    ids=["float", "flat", "rgb", "none", "fortran", "objects"],
)
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_arrays_that_are_no_masks_are_refused(content: np.ndarray, found: str, suffix: str, tmp_path: Path) -> None:
    error = refused(save(tmp_path / f"masks.{suffix}", content))
    assert error.cause == "bad_mask"
    assert found in error.message


@pytest.mark.parametrize(
    "times", [TIMES[:-1], TIMES[::-1], TIMES * np.nan, TIMES[:, None], TIMES.astype("datetime64[s]")]
)
def test_times_that_fit_no_masks_are_refused(times: np.ndarray, masks: np.ndarray, tmp_path: Path) -> None:
    error = refused(save(tmp_path / "masks.npz", masks, times))
    assert error.cause == "bad_mask"
    assert "timestamps_seconds" in error.message


def test_archive_without_masks_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", pictures=np.zeros(3))
    assert "`masks`" in refused(tmp_path / "other.npz").message


@pytest.mark.parametrize("kind", ["masks.npy", "masks.npz", "plain.npz"])
def test_cut_and_damaged_arrays_are_refused(kind: str, masks: np.ndarray, tmp_path: Path) -> None:
    data = save(tmp_path / kind, np.repeat(masks, 40, axis=0)).read_bytes()
    (tmp_path / kind).write_bytes(data[: len(data) * 2 // 3])
    assert refused(tmp_path / kind, 0.99).cause == "bad_mask"
    if kind == "masks.npz":
        rotten = bytearray(data)
        rotten[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
        (tmp_path / kind).write_bytes(rotten)
        assert refused(tmp_path / kind, 0.99).cause == "bad_mask"


def test_header_that_lies_about_its_size_costs_no_memory(tmp_path: Path) -> None:
    header = io.BytesIO()
    npy.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (9, 1 << 20, 1 << 20)})
    (tmp_path / "vast.npy").write_bytes(header.getvalue())
    assert "too large" in refused(tmp_path / "vast.npy").message
    with zipfile.ZipFile(tmp_path / "vast.npz", "w") as archive:
        archive.writestr("masks.npy", header.getvalue())
    assert "too large" in refused(tmp_path / "vast.npz").message


def test_late_masks_of_a_long_array_read_little(tmp_path: Path) -> None:
    masks = np.random.default_rng(5).integers(0, 2, (4000, 32, 32), dtype=np.uint8)

    class CountingFile(io.FileIO):
        taken = 0

        def read(self, size: int = -1) -> bytes:
            data = super().read(size)
            self.taken += len(data)
            return data

    path = save(tmp_path / "masks.npy", masks)
    with CountingFile(str(path)) as file, open_masks(file, path.name, 160.0) as opened:  # type: ignore[arg-type]
        for index in range(3000, 3010):
            assert np.array_equal(opened.at(index * 0.04).numpy(), masks[index] > 0)
        assert file.taken < 12 * 32 * 32


def array_header(shape: str, dtype: str = "|b1") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    "content",
    [
        array_header("(-1, 9, 14)") + bytes(64),
        array_header("(9223372036854775807, 9, 14)") + bytes(64),
        array_header("(1000000000000, 1, 1)") + bytes(64),
        array_header("(25, 9, 14").replace(b"}", b" ") + bytes(64),
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b" " * 4096,
        b"\x93NUMPY\x01\x00\x60\xea" + b"(" * 60_000,
        b"\x93NUMPY\x01\x00\x76\x00" + b"__import__('os').mkdir('ran')".ljust(117) + b"\n",
    ],
    ids=["negative", "overflow", "too many", "unclosed", "endless header", "nested", "expression"],
)
def test_array_headers_that_are_nonsense_are_refused_at_once(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "masks.npy"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        assert refused(path).cause == "bad_mask"
        assert tracemalloc.get_traced_memory()[1] < 50e6  # not what the header promises
    finally:
        tracemalloc.stop()


def test_time_stamps_beyond_any_video_are_refused_before_they_are_read(masks: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "masks.npz"
    array = io.BytesIO()
    np.save(array, masks)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("masks.npy", array.getvalue())
        archive.writestr("timestamps_seconds.npy", array_header("(50000000,)", "<f8") + bytes(400_000_000))
    tracemalloc.start()
    try:
        assert refused(path).cause == "bad_mask"
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def test_an_archive_whose_directory_points_before_its_beginning_is_refused(masks: np.ndarray, tmp_path: Path) -> None:
    path = save(tmp_path / "masks.npz", masks, TIMES)
    content = bytearray(path.read_bytes())
    end = content.rindex(b"PK\x05\x06")
    content[end + 16 : end + 20] = (2**31).to_bytes(4, "little")  # where the directory is said to begin
    path.write_bytes(content)
    assert refused(path).cause == "bad_mask"
