"""Pictures out of videos, and mask files that `open_masks` reads."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from media_files import ffmpeg

from operators.errors import AssetError
from operators.masklet_files import video_pictures, write_masks
from operators.masks import open_masks


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "fifty.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=64x48:rate=50", "-t", "2", "-c:v", "mpeg4", path)
    return path


def times(path: Path, max_rate: float) -> list[float]:
    with path.open("rb") as file:
        return [seconds for seconds, _ in video_pictures(file, path.name, max_rate=max_rate)]


def test_pictures_come_at_most_at_the_rate_asked_for(video: Path) -> None:
    assert times(video, 50) == pytest.approx(np.arange(100) / 50)
    assert times(video, 1000) == pytest.approx(np.arange(100) / 50)
    assert times(video, 25) == pytest.approx(np.arange(50) / 25)
    assert times(video, 2) == pytest.approx([0.0, 0.5, 1.0, 1.5])


def test_odd_rates_lose_no_interval(tmp_path: Path) -> None:
    path = tmp_path / "ntsc.mkv"  # whose clock is rounded to milliseconds
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=32x32:rate=30000/1001", "-t", "2", "-c:v", "mpeg4", path)
    found = times(path, 25)
    assert 48 <= len(found) <= 50 and np.diff(found).max() < 0.07
    assert len(times(path, 30)) == 60


def test_pictures_are_upright_and_in_colour(video: Path) -> None:
    with video.open("rb") as file:
        _, picture = next(video_pictures(file, "fifty.mp4", max_rate=25))
    assert picture.shape == (3, 48, 64) and picture.dtype == torch.uint8 and picture.float().std() > 20


def test_a_file_without_pictures_is_named() -> None:
    with pytest.raises(AssetError, match=r"noise\.mp4"):
        list(video_pictures(io.BytesIO(b"nothing of the kind" * 300), "noise.mp4", max_rate=25))


def test_masks_come_back_as_written(tmp_path: Path) -> None:
    masks = torch.rand(300, 40, 60, generator=torch.Generator().manual_seed(0)) > 0.5
    seconds = np.cumsum(np.random.default_rng(0).uniform(0.01, 0.1, 300))
    path = tmp_path / "m.npz"
    with write_masks(path) as writer:
        for second, mask in zip(seconds, masks, strict=True):
            writer.add(float(second), mask)
    with np.load(path) as stored:
        assert stored["masks"].dtype == np.uint8 and stored["timestamps_seconds"].dtype == np.float64
        assert np.array_equal(stored["masks"], masks.numpy())
        assert np.array_equal(stored["timestamps_seconds"], seconds)
    with path.open("rb") as file, open_masks(file, "m.npz", 30.0) as reader:
        assert torch.equal(reader.at(float(seconds[7])), masks[7])
        assert torch.equal(reader.at(float(seconds[299])), masks[299])
    assert [p.name for p in tmp_path.iterdir()] == ["m.npz"]


def test_a_mask_of_another_size_is_stretched_to_the_first(tmp_path: Path) -> None:
    with write_masks(tmp_path / "m.npz") as writer:
        writer.add(0.0, torch.zeros(4, 6, dtype=torch.bool))
        writer.add(0.1, torch.ones(8, 3, dtype=torch.bool))
        assert writer.any_set
    assert np.load(tmp_path / "m.npz")["masks"].shape == (2, 4, 6)


def test_nothing_is_left_of_a_file_that_was_not_finished(tmp_path: Path) -> None:
    with pytest.raises(KeyError), write_masks(tmp_path / "m.npz") as writer:
        writer.add(0.0, torch.zeros(4, 6, dtype=torch.bool))
        raise KeyError
    assert list(tmp_path.iterdir()) == []
