"""The pictures of a range: the right ones, in step with the sound, masked before they are resized, and no more read."""

from __future__ import annotations

import io
from pathlib import Path

import av
import fsspec
import numpy as np
import pytest
import torch
from media_files import DEMO, ffmpeg
from torch import Tensor
from video_files import MILLISECOND, SOUND_RATE, write_video

from operators.errors import AssetError
from operators.media import decode_range
from operators.sam_audio.config import VisionEncoderConfig
from operators.sam_audio.frames import read_all
from operators.sam_audio.vision import VisionEncoder, mask_videos, resize_frames
from operators.video import masked_frames

HOP, RATE, SIZE = 240, 6000, 28  # 25 latent frames a second
OPTIONS = {"hop_length": HOP, "sample_rate": RATE, "image_size": SIZE, "interpolation": "BICUBIC"}
THIRTY = [round(i * 1000 / 30) for i in range(120)]
UNEVEN = [0, 20, 60, 400, 433, 466, 500, 900, 1300, 1320, 1340, 2100, 2140, 2180, 3000, 3040, 3080, 3120]


class CountingFile(io.FileIO):
    """Counts what is read of it."""

    taken = 0

    def readinto(self, buffer) -> int:
        count = super().readinto(buffer)
        self.taken += count
        return count

    def read(self, size: int = -1) -> bytes:
        data = super().read(size)
        self.taken += len(data)
        return data


def frames_of(path: Path, start: int, end: int, mask: Path | None = None, **options) -> Tensor:
    with path.open("rb") as video, (mask or path).open("rb") as masks:
        groups = masked_frames(
            video,
            path.name,
            None if mask is None else masks,
            "" if mask is None else mask.name,
            start=start,
            end=end,
            **OPTIONS | options,
        )
        return torch.cat(list(groups))


def chosen(path: Path, count: int) -> list[int]:
    """By the table of all distances, the picture of each latent frame, which count from the first sample of sound."""
    with av.open(str(path)) as container:
        seconds = torch.tensor([float(f.pts * f.time_base) for f in container.decode(video=0)], dtype=torch.float64)
        origin = (container.start_time or 0) / av.time_base
    with av.open(str(path)) as container:
        if container.streams.audio:
            first = next(container.decode(audio=0))
            origin = float(first.pts * first.time_base)
    times = torch.arange(count) * HOP / RATE
    return (times[None].double() + origin - seconds[:, None]).abs().argmin(0).tolist()


@pytest.mark.parametrize("sound", [None, (0, 4000), (500, 4500)], ids=["silent", "together", "sound-later"])
@pytest.mark.parametrize(
    ("suffix", "codec", "milliseconds"),
    [
        ("mp4", "libx264", THIRTY),
        ("mp4", "libx264", UNEVEN),
        ("mkv", "ffv1", UNEVEN),
        ("mkv", "libx264rgb", THIRTY),
        ("ts", "libx264", THIRTY),
    ],
)
def test_each_latent_frame_has_its_nearest_picture_from_any_start(
    suffix: str, codec: str, milliseconds: list[int], sound: tuple[int, int] | None, tmp_path: Path
) -> None:
    path = write_video(tmp_path / f"video.{suffix}", milliseconds, codec=codec, sound=sound)
    expected = resize_frames(read_all(path)[chosen(path, 110)], SIZE, "BICUBIC")
    for start, end in ((0, 110), (30, 77), (100, 101), (109, 110)):
        assert torch.equal(frames_of(path, start, end), expected[start:end])


def test_ranges_join_and_come_in_groups_of_64(tmp_path: Path) -> None:
    path = write_video(tmp_path / "video.webm", THIRTY, codec="libvpx")
    with path.open("rb") as file:
        groups = list(masked_frames(file, path.name, None, "", start=0, end=150, **OPTIONS))
    assert [len(group) for group in groups] == [64, 64, 22]
    assert all(group.dtype == torch.uint8 and group.shape[1:] == (3, SIZE, SIZE) for group in groups)
    pieces = [frames_of(path, *bounds) for bounds in ((0, 41), (41, 42), (42, 150))]
    assert torch.equal(torch.cat(pieces), torch.cat(groups))


@pytest.mark.parametrize(("sound", "picture"), [((0, 3000), 0), ((720, 3720), 0), ((0, 3000), 720)])
def test_picture_and_sound_of_one_moment_meet(sound: tuple[int, int], picture: int, tmp_path: Path) -> None:
    """A flash and a click together, 2 s into the container, whichever of the two tracks begins late."""
    path = tmp_path / "clap.mkv"
    with av.open(str(path), "w") as container:
        video, audio = container.add_stream("ffv1", rate=25), container.add_stream("flac", SOUND_RATE)
        video.width = video.height = 32
        video.pix_fmt, audio.layout = "bgr0", "mono"
        video.codec_context.time_base = video.time_base = MILLISECOND
        packets = []
        for at in range(picture, 3000, 40):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 255 * (at >= 2000), np.uint8), format="rgb24")
            frame.pts, frame.time_base = at, MILLISECOND
            packets += video.encode(frame)
        wave = np.zeros((1, (sound[1] - sound[0]) * SOUND_RATE // 1000), np.int16)
        wave[0, (2000 - sound[0]) * SOUND_RATE // 1000] = 20_000
        block = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
        block.sample_rate, block.pts = SOUND_RATE, sound[0] * SOUND_RATE // 1000
        packets += [*audio.encode(block), *audio.encode(None), *video.encode(None)]
        for packet in sorted(packets, key=lambda p: p.pts * p.time_base):
            container.mux(packet)
    with path.open("rb") as file:
        heard = decode_range(file, path.name, start=0, stop=3 * RATE, sample_rate=RATE, expected_seconds=3.0)
    click = int(np.abs(heard).argmax()) / HOP
    bright = frames_of(path, 0, 75)[:, 0, 0, 0] > 128
    assert int(bright.int().argmax()) == round(click)


@pytest.mark.parametrize("interpolation", ["BICUBIC", "bilinear", "NEAREST", "NEAREST_EXACT"])
@pytest.mark.parametrize("masked", ["black", "kept"])
def test_model_sees_the_pixels_of_the_masked_native_pictures(masked: str, interpolation: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / "video.mkv", range(0, 1200, 40), codec="ffv1")
    masks = np.zeros((30, 36, 64), bool)
    for index, mask in enumerate(masks):
        mask[index : index + 6, 10:50] = True
    np.savez_compressed(tmp_path / "mask.npz", masks=masks, timestamps_seconds=np.arange(30) * 0.04)
    config = VisionEncoderConfig(dim=24, name="PE-tiny", image_size=SIZE, interpolation_mode=interpolation)
    encoder = VisionEncoder(config)
    (native,) = mask_videos([read_all(path)], [torch.from_numpy(masks)[:, None]], masked=masked)  # type: ignore[arg-type]
    ready = frames_of(path, 5, 30, tmp_path / "mask.npz", masked=masked, interpolation=interpolation)
    assert torch.equal(encoder.preprocess(ready), encoder.preprocess(native[5:30]))


def test_mask_follows_the_pictures_own_time(tmp_path: Path) -> None:
    """Pictures 400 ms apart: a mask changes with them, not in between."""
    path = write_video(tmp_path / "video.mkv", range(0, 4000, 400), lambda i: np.full((32, 32, 3), 200, np.uint8))
    masks = np.zeros((100, 32, 32), bool)
    masks[np.arange(100) // 10 % 2 == 1] = True
    np.savez(tmp_path / "mask.npz", masks=masks, timestamps_seconds=np.arange(100) * 0.04)
    lit = frames_of(path, 0, 100, tmp_path / "mask.npz")[:, 0, 0, 0] > 0
    assert lit.tolist() == [index % 2 == 0 for index in chosen(path, 100)]


def test_mask_and_video_begin_together_in_any_container(tmp_path: Path) -> None:
    """The first packet of an AVI with B-frames is not the first picture; transport streams begin at 1.4 s."""
    masks = write_video(
        tmp_path / "mask.mkv", range(0, 1000, 40), lambda i: np.full((32, 32, 3), 255 * (i % 2), np.uint8)
    )
    source = ("-f", "lavfi", "-i", "color=white:size=64x48:rate=25", "-t", "1", "-pix_fmt", "yuv420p", "-bf", "2")
    for name, codec in (("video.avi", "mpeg4"), ("video.ts", "mpeg2video"), ("video.mp4", "libx264")):
        ffmpeg(*source, "-c:v", codec, tmp_path / name)
        with av.open(str(tmp_path / name)) as container:
            late = next(container.decode(video=0)).time - (container.start_time or 0) / av.time_base
        lit = frames_of(tmp_path / name, 0, 25, masks)[:, 0, 0, 0] > 128
        shown = [index - round(late * 25) for index in range(25)]
        assert lit.tolist() == [max(index, 0) % 2 == 0 for index in shown]


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_one_mask_a_picture_fits_though_the_sound_is_longer(suffix: str, tmp_path: Path) -> None:
    """An array without time stamps is spread over the pictures, not over the recording."""
    white = np.full((32, 32, 3), 255, np.uint8)
    path = write_video(tmp_path / f"video.{suffix}", range(0, 2000, 40), lambda i: white, sound=(0, 6000))
    masks = np.zeros((50, 32, 32), bool)
    masks[1::2] = True
    np.save(tmp_path / "mask.npy", masks)
    lit = frames_of(path, 0, 50, tmp_path / "mask.npy")[:, 0, 0, 0] > 128
    assert lit.tolist() == [index % 2 == 0 for index in range(50)]


def test_late_range_of_a_long_file_reads_little(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    noise = [generator.integers(0, 256, (96, 96, 3), dtype=np.uint8) for _ in range(7)]
    path = write_video(tmp_path / "video.mkv", range(0, 20_000, 40), lambda i: noise[i % 7], codec="ffv1")
    with CountingFile(str(path)) as file:
        frames = torch.cat(list(masked_frames(file, path.name, None, "", start=400, end=410, **OPTIONS)))  # type: ignore[arg-type]
        assert file.taken < path.stat().st_size / 10
    assert torch.equal(frames, resize_frames(read_all(path)[400:410], SIZE, "BICUBIC"))


def test_files_of_any_storage_can_be_read(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    store.pipe_file("/archive/demo.mp4", (DEMO / "demo.mp4").read_bytes())
    with store.open("/archive/demo.mp4", "rb", block_size=256 << 10) as file:
        stored = torch.cat(list(masked_frames(file, "demo.mp4", None, "", start=90, end=100, **OPTIONS)))
    assert torch.equal(stored, frames_of(DEMO / "demo.mp4", 90, 100))


def test_last_picture_stays_where_the_sound_goes_on(tmp_path: Path) -> None:
    path = write_video(tmp_path / "video.mkv", range(0, 1000, 40), sound=(0, 60_000))
    assert torch.equal(frames_of(path, 1400, 1402), frames_of(path, 24, 25).expand(2, -1, -1, -1))


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "empty_file"),
        (b"just some words", "mislabelled"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "mislabelled"),
        (b"\x00\x00\x00\x18ftypmp42" + bytes(12) + b"\x00\x10\x00\x00mdat" + bytes(500), "truncated"),
        (bytes(range(256)) * 20, "corrupt"),
    ],
    ids=["empty", "text", "png", "cut-mp4", "garbage"],
)
@pytest.mark.parametrize("role", ["video", "mask"])
def test_broken_file_is_named_with_its_field(content: bytes, cause: str, role: str, tmp_path: Path) -> None:
    good, broken = DEMO / "demo.mp4", tmp_path / "broken.mp4"
    broken.write_bytes(content)
    with pytest.raises(AssetError, match=r"broken\.mp4") as caught:
        frames_of(*((broken, 0, 9) if role == "video" else (good, 0, 9, broken)))
    assert (caught.value.cause, caught.value.field) == (cause, "uri" if role == "video" else "mask_uri")


@pytest.mark.parametrize("role", ["video", "mask"])
def test_bytes_that_rot_in_the_middle_are_blamed_on_their_file(role: str, tmp_path: Path) -> None:
    """The other file is open as well, and not the one to repair."""
    good = write_video(tmp_path / "good.mov", range(0, 4000, 40), codec="png")
    data = bytearray(good.read_bytes())
    for at in range(len(data) // 3, len(data) // 2, 501):
        data[at] ^= 0x55
    broken = tmp_path / "broken.mov"
    broken.write_bytes(data)
    with pytest.raises(AssetError, match=r"broken\.mov") as caught:
        frames_of(*((broken, 0, 99, good) if role == "video" else (good, 0, 99, broken)))
    assert caught.value.field == ("uri" if role == "video" else "mask_uri")


def test_recording_without_moving_pictures_is_refused(tmp_path: Path) -> None:
    cover = tmp_path / "cover.mp3"
    picture = ("-f", "lavfi", "-i", "testsrc2=size=64x64:rate=1:duration=1")
    ffmpeg("-i", DEMO / "speech.flac", *picture, "-map", "0:a", "-map", "1:v", "-frames:v", "1", "-t", "2",
           "-disposition:v", "attached_pic", "-c:v", "mjpeg", cover)  # fmt: skip
    for path in (DEMO / "speech.flac", cover):
        with pytest.raises(AssetError, match="no moving pictures") as caught:
            frames_of(path, 0, 5)
        assert caught.value.cause == "no_video"
