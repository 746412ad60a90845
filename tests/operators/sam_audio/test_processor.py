from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from golden.loader import load
from media_files import DEMO
from small_models import HOP, RATE
from torchcodec.decoders import VideoDecoder
from video_files import write_video

from operators.sam_audio.checkpoint import CheckpointError
from operators.sam_audio.processor import SAMAudioProcessor


@pytest.fixture
def processor() -> SAMAudioProcessor:
    return SAMAudioProcessor(1920, 48_000)


@pytest.mark.parametrize("rate", [44_100, 16_000, 96_000])
def test_files_are_resampled_and_averaged_as_in_the_reference(
    processor: SAMAudioProcessor, tmp_path: Path, rate: int
) -> None:
    golden = load("resample")
    path = tmp_path / "audio.wav"
    soundfile.write(path, golden[f"{rate}.in.wav"].T.numpy(), rate, subtype="FLOAT")
    for given in (path, str(path)):
        golden.assert_close(processor.load_audio(given), f"{rate}.out.mono_48000")


@pytest.mark.parametrize("case", range(4))
def test_batch_equals_the_reference(case: int) -> None:
    golden = load("batch_anchors")
    about = golden.values["cases"][case]
    processor = SAMAudioProcessor(about["hop"], about["sr"])
    batch = processor(
        audios=[torch.randn(2, n) for n in about["wav_sizes"]],
        descriptions=[""] * len(about["wav_sizes"]),
        anchors=about["anchors"],
    )
    assert list(batch.audios.shape) == about["audios_shape"]
    assert batch.sizes.tolist() == golden[f"case{case}.out.sizes"].long().tolist()
    for name in ("wav_sizes", "audio_pad_mask", "anchor_ids", "anchor_alignment"):
        assert torch.equal(getattr(batch, name), golden[f"case{case}.out.{name}"])


def test_tensors_are_averaged_and_padded_as_in_the_reference(processor: SAMAudioProcessor) -> None:
    golden = load("batch_anchors")
    batch = processor(audios=[golden["mix.in.a"], golden["mix.in.b"]], descriptions=["a", "b"])
    assert torch.equal(batch.audios, golden["mix.out.audios"])
    assert batch.wav_sizes.tolist() == golden["mix.out.sizes"].tolist()


def test_sizes_stay_exact_where_float32_loses_a_frame(processor: SAMAudioProcessor) -> None:
    samples = 2**24 + 1921  # a float32 division rounds such lengths
    batch = processor(audios=[torch.zeros(1, samples)], descriptions=[""])
    assert batch.sizes.tolist() == [-(-samples // 1920)]


def test_videos_are_spread_over_the_recording(processor: SAMAudioProcessor) -> None:
    video = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, 3, 2, 2)
    batch = processor(audios=[torch.zeros(1, 10 * 1920)], descriptions=[""], masked_videos=[video])
    assert batch.masked_video is not None
    assert batch.masked_video[0][:, 0, 0, 0].tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 3, 3]


def test_video_of_another_shape_is_refused(processor: SAMAudioProcessor) -> None:
    with pytest.raises(ValueError, match=r"videos are \[frames, 3"):
        processor(audios=[torch.zeros(1, 9)], descriptions=[""], masked_videos=[torch.zeros(0, 3, 2, 2)])


def test_video_files_are_sampled_by_time(processor: SAMAudioProcessor) -> None:
    path = DEMO / "demo.mp4"  # 15 frames a second
    video = torch.zeros(2, 3, 5, 5, dtype=torch.uint8)
    batch = processor(
        audios=[torch.zeros(1, 30 * 1920), torch.zeros(1, 9 * 1920), torch.zeros(1, 1920)],
        descriptions=["", "", ""],
        masked_videos=[path, str(path), video],
    )
    frames = VideoDecoder(str(path))[:20]
    assert batch.masked_video is not None
    assert [len(item) for item in batch.masked_video] == [30, 9, 1]
    assert torch.equal(batch.masked_video[0], frames[(torch.arange(30) * 15 / 25).round().long()])
    assert torch.equal(batch.masked_video[1], batch.masked_video[0][:9])


def test_broken_video_file_is_named(processor: SAMAudioProcessor, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"0000ftyp" + bytes(100))
    with pytest.raises(ValueError, match=r"broken\.mp4"):
        processor(audios=[torch.zeros(1, 9)], descriptions=[""], masked_videos=[tmp_path / "broken.mp4"])


def test_mask_videos_reads_files(processor: SAMAudioProcessor, tmp_path: Path) -> None:
    def mask(index: int) -> np.ndarray:
        return np.full((36, 64, 3), 255 * (index % 2), np.uint8)

    video = write_video(tmp_path / "video.mkv", range(0, 200, 40))
    masks = write_video(tmp_path / "mask.mkv", range(0, 200, 40), mask, codec="ffv1")
    frames = VideoDecoder(str(video))[:]
    (black,) = processor.mask_videos([str(video)], [masks])
    assert torch.equal(black[::2], frames[::2])
    assert not black[1::2].any()
    assert torch.equal(processor.mask_videos([frames], [masks])[0], black)


def test_mask_videos_blacks_out_the_masked_pixels(processor: SAMAudioProcessor) -> None:
    video, mask = torch.full((1, 3, 1, 2), 9), torch.tensor([[[[1, 0]]]])
    assert processor.mask_videos([video], [mask])[0][0, :, 0].tolist() == [[0, 9]] * 3
    assert processor.mask_videos([video], [mask], masked="kept")[0][0, :, 0].tolist() == [[9, 0]] * 3


def test_batch_moves_to_a_device_whole(processor: SAMAudioProcessor) -> None:
    video = torch.zeros(2, 3, 2, 2)
    batch = processor(audios=[torch.zeros(1, 1920)], descriptions=[""], masked_videos=[video]).to("meta")
    assert batch.audios.is_meta
    assert batch.anchor_alignment.is_meta
    assert batch.masked_video is not None
    assert batch.masked_video[0].is_meta


def test_lists_of_different_lengths_are_refused(processor: SAMAudioProcessor) -> None:
    with pytest.raises(ValueError, match="2 descriptions, 1 audios, 3 anchors"):
        processor(audios=[torch.zeros(1, 9)], descriptions=["a", "b"], anchors=[[], [], []])


@pytest.mark.parametrize("audio", [torch.zeros(5), torch.zeros(1, 0)])
def test_audio_of_another_shape_is_refused(processor: SAMAudioProcessor, audio: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="audio"):
        processor(audios=[audio], descriptions=[""])


def test_missing_file_is_named(processor: SAMAudioProcessor, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.wav"):
        processor.load_audio(tmp_path / "nothing.wav")


def test_processor_of_a_model_has_its_rates(model_folder: Path, tmp_path: Path) -> None:
    processor = SAMAudioProcessor.from_pretrained(model_folder)
    assert (processor.audio_sampling_rate, processor.audio_hop_length) == (RATE, HOP)
    with pytest.raises(CheckpointError, match="no model at"):
        SAMAudioProcessor.from_pretrained(str(tmp_path / "nowhere"))
