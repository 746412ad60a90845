"""ImageBind as a ranker: what it prepares, and what it says when the package is not there."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from operators.sam_audio.ranking_imagebind import ImageBindRanker, audio_clips, clip_starts, video_clips
from operators.sam_audio.sources import CheckpointError


class TwoTowers(nn.Module):
    """ImageBind's interface over random projections of the mean of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.audio, self.vision = nn.Linear(128, 8), nn.Linear(3, 8)

    def forward(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            "audio": self.audio(given["audio"].mean((1, 2, 4))),
            "vision": self.vision(given["vision"].mean((1, 3, 4, 5))),
        }


def test_scores_are_cosines_per_item_and_candidate() -> None:
    model = TwoTowers()
    audio = torch.randn(2, 3, 32_000, generator=torch.Generator().manual_seed(0)) * 0.1
    videos = [torch.full((50, 3, 30, 40), level, dtype=torch.uint8) for level in (20, 220)]
    scores = ImageBindRanker(model=model)(extracted_audio=list(audio), videos=videos, sample_rate=16_000)
    assert scores.shape == (2, 3) and scores.abs().max() <= 1.0001
    with torch.no_grad():
        found = model({"audio": audio_clips(audio[1, 2], 16_000)[None], "vision": video_clips(videos[1], 2.0)[None]})
    expected = torch.nn.functional.cosine_similarity(found["audio"], found["vision"])[0]
    torch.testing.assert_close(scores[1, 2], expected)


def test_audio_clips_have_the_models_shape_whatever_the_length() -> None:
    for seconds in (0.01, 1.0, 2.0, 30.0):
        clips = audio_clips(torch.randn(int(seconds * 48_000)) * 0.1, 48_000)
        assert clips.shape == (3, 1, 128, 204) and clips.isfinite().all()


def test_clips_begin_evenly_up_to_the_last_that_fits() -> None:
    assert clip_starts(10.0, 3) == [0.0, 4.0, 8.0]
    assert clip_starts(10.0, 5) == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert clip_starts(1.0, 3) == [0.0, 0.0, 0.0]


def test_a_clip_holds_its_own_part_of_the_sound() -> None:
    audio = torch.zeros(96_000)
    audio[64_000:] = torch.randn(32_000) * 0.1  # the last two of six seconds
    first, middle, last = audio_clips(audio, 16_000)
    assert torch.equal(first, middle) and last.mean() > first.mean() + 0.5


@pytest.mark.parametrize("size", [(48, 80), (80, 48), (300, 300)])
def test_video_clips_are_three_crops_of_five_pairs(size: tuple[int, int]) -> None:
    video = torch.randint(0, 256, (100, 3, *size), dtype=torch.uint8)
    assert video_clips(video, 4.0).shape == (15, 3, 2, 224, 224)


def test_crops_go_from_one_end_of_the_long_side_to_the_other() -> None:
    video = torch.zeros(10, 3, 224, 672, dtype=torch.uint8)
    video[..., 224:448], video[..., 448:] = 100, 200
    levels = [crop.mean().item() for crop in video_clips(video, 1.0)[:3]]
    assert levels == sorted(levels) and len(set(levels)) == 3


def test_pictures_are_taken_from_their_own_time() -> None:
    video = torch.arange(250, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 3, 224, 224)  # 10 s at 25 a second
    clips = video_clips(video, 10.0)[::3]
    spread = 255 * 0.26862954
    shown = [(clip[0, :, 0, 0] * spread + 0.48145466 * 255).round().int().tolist() for clip in clips]
    assert shown == [[0, 49], [50, 99], [100, 149], [150, 199], [200, 249]]


def test_without_video_the_remedy_is_named() -> None:
    with pytest.raises(ValueError, match="text ranker"):
        ImageBindRanker(model=TwoTowers())(extracted_audio=[torch.zeros(1, 100)], videos=None)


def test_without_the_package_its_place_and_licence_are_named() -> None:
    try:
        import imagebind  # noqa: F401
    except ImportError:
        with pytest.raises(CheckpointError, match=r"CC-BY-NC 4\.0"):
            ImageBindRanker()(
                extracted_audio=[torch.zeros(1, 48_000)], videos=[torch.zeros(25, 3, 8, 8, dtype=torch.uint8)]
            )
    else:
        pytest.skip("ImageBind is installed")
