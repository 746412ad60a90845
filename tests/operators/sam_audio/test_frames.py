"""Files are sampled by presentation time, to the pixels and the frames that the reference takes."""

from pathlib import Path

import pytest
import torch
from golden.loader import load
from media_files import DEMO, ffmpeg
from torch import Tensor
from torchcodec.decoders import VideoDecoder
from video_files import write_video

from operators.sam_audio.frames import Nearest, latent_times, read_all, read_frames

GRID = {"hop_length": 1920, "sample_rate": 48_000}


def reference_frames(path: Path, size: int) -> Tensor:
    """What the reference does: every frame decoded by torchcodec, then the nearest by the full table of distances."""
    decoder = VideoDecoder(str(path))
    data = decoder.get_frames_in_range(0, len(decoder))
    times = torch.arange(size) * 1920 / 48_000
    return data.data[(times[None] - data.pts_seconds[:, None]).abs().argmin(dim=0)]


@pytest.mark.parametrize("rate", ["30", "24000/1001", "25", "12.5", "50", "10"])
def test_file_of_constant_rate_gives_the_references_frames(rate: str, tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    ffmpeg("-f", "lavfi", "-i", f"testsrc2=size=96x54:rate={rate}", "-t", "2", "-pix_fmt", "yuv420p", path)
    for size in (1, 20, 60):  # the last is longer than the video
        assert torch.equal(read_frames(path, size, **GRID), reference_frames(path, size))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_file_of_variable_rate_gives_the_references_frames(suffix: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / f"video.{suffix}", [0, 40, 80, 400, 440, 900, 940, 960, 1000, 1500])
    assert torch.equal(read_frames(path, 50, **GRID), reference_frames(path, 50))


def test_real_video_gives_the_references_frames() -> None:
    assert torch.equal(read_frames(DEMO / "demo.mp4", 100, **GRID), reference_frames(DEMO / "demo.mp4", 100))


@pytest.mark.parametrize(
    "arguments",
    [
        ("-pix_fmt", "yuv420p10le", "-c:v", "libx264"),
        ("-pix_fmt", "yuv444p", "-c:v", "libx264"),
        ("-pix_fmt", "yuvj420p", "-c:v", "libx264"),
        ("-pix_fmt", "yuv420p", "-colorspace", "bt709", "-color_range", "tv", "-c:v", "libx264"),
        ("-pix_fmt", "yuv422p10le", "-c:v", "prores_ks"),
        ("-pix_fmt", "gray", "-c:v", "ffv1"),
        ("-pix_fmt", "rgb24", "-c:v", "png"),
    ],
    ids=lambda arguments: f"{arguments[1]}-{arguments[-1]}-{len(arguments)}",
)
def test_pixels_are_torchcodecs(arguments: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "video.mkv"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=98x54:rate=10", "-t", "0.5", *arguments, path)
    decoder = VideoDecoder(str(path))
    assert torch.equal(read_all(path), decoder.get_frames_in_range(0, len(decoder)).data)


def test_pictures_of_a_turned_phone_are_upright(tmp_path: Path) -> None:
    flat, turned = tmp_path / "flat.mp4", tmp_path / "turned.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=96x54:rate=10", "-t", "0.3", "-pix_fmt", "yuv420p", flat)
    ffmpeg("-i", flat, "-c", "copy", "-metadata:s:v", "rotate=90", turned)
    assert torch.equal(read_all(turned), VideoDecoder(str(turned)).get_frames_in_range(0, 3).data)
    assert read_all(turned).shape == (3, 3, 96, 54)


def test_nothing_is_decoded_past_the_frames_needed(tmp_path: Path) -> None:
    """The file is cut off in its second half, which a reader of the first half never sees."""
    path = write_video(tmp_path / "video.mkv", range(0, 8000, 40), codec="ffv1")
    whole = read_frames(path, 50, **GRID)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert torch.equal(read_frames(path, 50, **GRID), whole)


def test_golden_indices_are_those_of_equal_pictures_in_a_lossy_file(tmp_path: Path) -> None:
    """The golden case names frame 36 where 37 is nearest: it knows frames by their pixels, and its file is lossy.

    Levels five apart through the MPEG-4 encoder leave frame 37 as a copy of frame 36; each frame named by the first
    that looks like it, the nearest frames are the recorded ones, all of them.
    """
    path = tmp_path / "levels.mp4"
    _write_levels(path)
    decoded = read_all(path)
    for case in load("video_frames").values["file_input"][:2]:
        frames = read_frames(path, case["size"], **GRID)
        named = [int((decoded == frame).flatten(1).all(1).int().argmax()) for frame in frames]
        assert named == case["index"]


def _write_levels(path: Path) -> None:
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for index in range(39):
            level = np.full((64, 64, 3), 5 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(level, format="rgb24")))
        container.mux(stream.encode(None))


def test_nearest_takes_the_earlier_on_a_tie_and_keeps_the_last() -> None:
    frames = Nearest(iter([(0.0, "a"), (1.0, "b"), (2.0, "c")]))
    assert [frames.at(time) for time in (-1, 0.5, 0.6, 1.5)] == [(0.0, "a"), (0.0, "a"), (1.0, "b"), (1.0, "b")]
    assert not frames.ended
    assert frames.at(9) == (2.0, "c")
    assert frames.ended
    assert Nearest(iter([])).at(0) is None


def test_latent_times_do_not_depend_on_where_they_begin() -> None:
    grid = {"hop_length": 1920, "sample_rate": 48_000}
    assert torch.equal(latent_times(70, 30, **grid), latent_times(0, 100, **grid)[70:])


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.mp4"):
        read_frames(tmp_path / "nothing.mp4", 1, **GRID)


def test_file_without_pictures_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(ValueError, match=r"text\.mp4"):
        read_frames(tmp_path / "text.mp4", 1, **GRID)
    with pytest.raises(ValueError, match=r"speech\.flac.*no video"):
        read_all(DEMO / "speech.flac")
