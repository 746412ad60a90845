"""Frames arrive as they were sent, bit by bit, in less room than raw."""

from pathlib import Path

import pytest
import torch
from media_files import DEMO
from torch import Tensor

from operators.frame_transport import PackedFrames, pack, unpack
from operators.video import masked_frames


def moving(frames: int, size: int) -> Tensor:
    """A textured square that wanders over a gradient: uint8 [frames, 3, size, size]."""
    generator = torch.Generator().manual_seed(5)
    ground = torch.arange(size)[:, None] * torch.ones(size) * 255 // size
    video = ground.expand(frames, 3, size, size).clone().to(torch.uint8)
    patch = torch.randint(0, 256, (3, size // 4, size // 4), generator=generator, dtype=torch.uint8)
    for index, frame in enumerate(video):
        left = index % (size - size // 4)
        frame[:, 3 : 3 + size // 4, left : left + size // 4] = patch
    return video


@pytest.mark.parametrize("size", [14, 56, 57, 336])
@pytest.mark.parametrize("kind", ["moving", "noise"])
def test_every_value_arrives(size: int, kind: str) -> None:
    noise = torch.randint(0, 256, (11, 3, size, size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    video = moving(11, size) if kind == "moving" else noise
    arrived = torch.cat(list(unpack(pack(video.split(4)))))
    assert arrived.dtype == torch.uint8
    assert torch.equal(arrived, video)


def test_grouping_at_either_end_changes_nothing() -> None:
    video = moving(25, 28)
    sent = pack(video.split(7))
    assert sent == pack([video[:1], video[1:1], video[1:]])
    groups = list(unpack(sent, group=10))
    assert [len(group) for group in groups] == [10, 10, 5]
    assert torch.equal(torch.cat(groups), video)
    assert torch.equal(torch.cat(list(unpack(sent, threads=2))), video)


def test_packed_frames_can_be_read_again_and_again() -> None:
    video = moving(5, 28)
    packed = PackedFrames(pack([video]))
    for _ in range(2):
        assert torch.equal(torch.cat(list(packed)), video)


def test_strided_frames_arrive_too() -> None:
    video = moving(6, 28).flip(-1).transpose(-1, -2)[::2]
    assert torch.equal(torch.cat(list(unpack(pack([video])))), video)


def test_no_frame_is_no_byte() -> None:
    assert pack([]) == pack([torch.zeros(0, 3, 8, 8, dtype=torch.uint8)]) == b""
    assert list(unpack(b"")) == []


def test_real_video_takes_a_twentieth_of_its_raw_size() -> None:
    path = DEMO / "demo.mp4"
    with path.open("rb") as file:
        size = {"hop_length": 1920, "sample_rate": 48_000, "image_size": 336, "interpolation": "BICUBIC"}
        frames = list(masked_frames(file, path.name, None, "", start=0, end=75, **size))
    sent = pack(frames)
    assert torch.equal(torch.cat(list(unpack(sent))), torch.cat(frames))
    assert len(sent) < 75 * 3 * 336 * 336 / 20


@pytest.mark.parametrize(
    "frames",
    [
        [torch.zeros(2, 3, 8, 8)],
        [torch.zeros(3, 8, 8, dtype=torch.uint8)],
        [torch.zeros(1, 1, 8, 8, dtype=torch.uint8)],
    ],
)
def test_frames_of_another_kind_are_refused(frames: list[Tensor]) -> None:
    with pytest.raises(ValueError, match="uint8"):
        pack(frames)


def test_frames_that_change_their_size_are_refused() -> None:
    with pytest.raises(ValueError, match="10 x 8 follow frames of 8 x 8"):
        pack([torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 3, 8, 10, dtype=torch.uint8)])


@pytest.mark.parametrize("data", [b"no frames", Path(__file__).read_bytes()])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="hold no packed frames"):
        list(unpack(data))


def test_group_without_a_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="group"):
        list(unpack(b"", group=0))
