"""The usage examples of facebookresearch/sam-audio's README, notebooks and model cards, with the import path changed.

Names, revisions and files are the published ones: a local hub serves tiny random checkpoints under them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch
import torchaudio
from hub_server import Hub, serve
from released_layout import HOP, RATE, write_released
from torchcodec.decoders import VideoDecoder

from operators.sam_audio import SAMAudio, SAMAudioJudgeModel, SAMAudioJudgeProcessor, SAMAudioProcessor

MEDIA = Path(__file__).parents[3] / "jobs" / "demo_media"
FRAMES = 251  # the demo clip is ten seconds, and AAC fills up its last frame


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    made = write_released(
        tmp_path_factory.mktemp("released"),
        span_predictor="pe-a-frame-large",
        text_ranker={"kind": "judge", "checkpoint_or_model_id": "facebook/sam-audio-judge"},
    )
    repos = {
        "facebook/sam-audio-large": {"main": made.sam_audio},
        "facebook/pe-a-frame-large": {"perception_models": made.pe_a_frame},
        "facebook/sam-audio-judge": {"sam_audio": made.judge},
    }
    with serve(Hub(repos)) as hub, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.setenv("HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub-cache")))
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            patch.delenv(name, raising=False)
        yield hub


@pytest.fixture(scope="module")
def loaded(hub: Hub) -> tuple[SAMAudio, SAMAudioProcessor]:
    device = torch.device("cpu")
    model = SAMAudio.from_pretrained("facebook/sam-audio-large").to(device).eval()
    return model, SAMAudioProcessor.from_pretrained("facebook/sam-audio-large")


@pytest.fixture
def audio(tmp_path: Path) -> str:
    """A recording of two seconds as a file."""
    file = str(tmp_path / "audio.wav")
    generator = torch.Generator().manual_seed(1)
    torchaudio.save(file, 0.1 * torch.randn(2, 2 * 16_000, generator=generator), 16_000)
    return file


def assert_stems(result, frames: int) -> None:
    """One recording's stems, as the model card describes them: lists of 1-D waveforms."""
    for stems in (result.target, result.residual):
        assert isinstance(stems, list) and len(stems) == 1
        assert stems[0].shape == (frames * HOP,)
        assert torch.isfinite(stems[0]).all() and stems[0].any()


def test_basic_text_prompting_and_saving(hub: Hub, audio: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    hub.requests.clear()
    model = SAMAudio.from_pretrained("facebook/sam-audio-large")
    processor = SAMAudioProcessor.from_pretrained("facebook/sam-audio-large")
    model = model.eval().to("cpu")
    batch = processor(
        audios=[audio],
        descriptions=["man speaking"],
    ).to("cpu")
    with torch.inference_mode():
        result = model.separate(batch, predict_spans=False, reranking_candidates=1)
    assert_stems(result, 50)
    # The README saves `result.target` itself, which is a list; the model card has it right.
    sample_rate = processor.audio_sampling_rate
    torchaudio.save("target.wav", result.target[0].unsqueeze(0).cpu(), sample_rate)
    torchaudio.save("residual.wav", result.residual[0].unsqueeze(0).cpu(), sample_rate)
    for name, stem in (("target.wav", result.target[0]), ("residual.wav", result.residual[0])):
        samples, rate = torchaudio.load(name)
        assert rate == RATE
        torch.testing.assert_close(samples[0], stem.clamp(-1, 1), atol=1e-4, rtol=0)
    assert set(hub.fetched()) <= {"config.json", "checkpoint.pt"}  # neither span predictor nor judge


def test_text_prompting_with_span_prediction_then_reranking(
    loaded: tuple[SAMAudio, SAMAudioProcessor], audio: str
) -> None:
    model, processor = loaded
    inputs = processor(audios=[audio], descriptions=["A man speaking"]).to(torch.device("cpu"))
    with torch.inference_mode():
        result = model.separate(inputs, predict_spans=True)
    assert_stems(result, 50)
    with torch.inference_mode():
        outputs = model.separate(inputs, predict_spans=True, reranking_candidates=8)
    assert_stems(outputs, 50)
    assert outputs.noise.shape[0] == 8


def test_visual_prompting(loaded: tuple[SAMAudio, SAMAudioProcessor]) -> None:
    model, processor = loaded
    video_file = str(MEDIA / "demo.mp4")
    decoder = VideoDecoder(video_file)
    frames = decoder[:]
    mask = torch.zeros(len(decoder), 1, *frames.shape[-2:], dtype=torch.bool)
    mask[:, :, 40:120, 60:200] = True
    inputs = processor(
        audios=[video_file],
        descriptions=[""],
        masked_videos=processor.mask_videos([frames], [mask]),
    ).to(torch.device("cpu"))
    with torch.inference_mode():
        result = model.separate(inputs)
    assert_stems(result, FRAMES)


def test_masked_video_as_a_file(loaded: tuple[SAMAudio, SAMAudioProcessor]) -> None:
    model, processor = loaded
    video_file = str(MEDIA / "demo.mp4")
    inputs = processor(audios=[video_file], descriptions=["dog barking"], masked_videos=[video_file])
    with torch.inference_mode():
        assert_stems(model.separate(inputs), FRAMES)


@pytest.mark.parametrize(
    "anchors",
    [
        [["+", 0.3, 0.7]],
        [["+", 0.2, 0.5], ["+", 0.8, 0.9], ["-", 0.0, 0.1]],
    ],
    ids=["one", "several"],
)
def test_span_prompting(loaded: tuple[SAMAudio, SAMAudioProcessor], audio: str, anchors: list) -> None:
    model, processor = loaded
    device = torch.device("cpu")
    inputs = processor(audios=[audio], descriptions=["car honking"], anchors=[anchors]).to(device)
    plain = processor(audios=[audio], descriptions=["car honking"]).to(device)
    with torch.inference_mode():
        result = model.separate(inputs, seeds=["same"], message=torch.zeros(2, 16))
        without = model.separate(plain, seeds=["same"], message=torch.zeros(2, 16))
    assert_stems(result, 50)
    assert not torch.equal(result.target[0], without.target[0])


def test_span_prompting_of_a_waveform_as_in_the_notebook(loaded: tuple[SAMAudio, SAMAudioProcessor]) -> None:
    model, processor = loaded
    samples = 0.1 * torch.randn(2, 3 * 44_100, generator=torch.Generator().manual_seed(2))
    wav = torchaudio.functional.resample(samples, 44_100, processor.audio_sampling_rate)
    wav = wav.mean(0, keepdim=True)
    inputs = processor(audios=[wav], descriptions=["horn honking"], anchors=[[["+", 1.3, 2.0]]]).to("cpu")
    with torch.inference_mode():
        result = model.separate(inputs)
    assert_stems(result, 75)


def test_several_recordings_in_one_batch(loaded: tuple[SAMAudio, SAMAudioProcessor], audio: str) -> None:
    model, processor = loaded
    batch = processor(audios=[audio, torch.zeros(1, RATE)], descriptions=["rain", "church bells"])
    with torch.inference_mode():
        result = model.separate(batch)
    assert [len(stem) for stem in result.target] == [50 * HOP, 25 * HOP]


def test_switched_off_parts_are_not_fetched(hub: Hub, audio: str) -> None:
    model = SAMAudio.from_pretrained(
        "facebook/sam-audio-large", span_predictor=None, text_ranker=None, visual_ranker=None
    )
    batch = SAMAudioProcessor.from_pretrained("facebook/sam-audio-large")(["speech"], [audio])
    with torch.inference_mode():
        assert_stems(model.separate(batch), 50)
        with pytest.raises(ValueError, match="span_predictor="):
            model.separate(batch, predict_spans=True)


def test_everything_from_an_object_store(s3_server: str, audio: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # T5's copy goes there
    url = f"s3://media/{tmp_path.name}"
    made = write_released(tmp_path / "released", url=url)
    fsspec.filesystem("s3").put(f"{tmp_path / 'released'}/", f"{url}/", recursive=True)
    shutil.rmtree(tmp_path / "released")
    model = SAMAudio.from_pretrained(f"{url}/{made.sam_audio.name}")
    batch = SAMAudioProcessor.from_pretrained(f"{url}/{made.sam_audio.name}")(["dog barking"], [audio])
    with torch.inference_mode():
        result = model.separate(batch, predict_spans=True, reranking_candidates=2)
    assert_stems(result, 50)
    assert result.scores is not None and torch.isfinite(result.scores).all()


def test_judge(hub: Hub, loaded: tuple[SAMAudio, SAMAudioProcessor], audio: str, tmp_path: Path) -> None:
    model = SAMAudioJudgeModel.from_pretrained("facebook/sam-audio-judge").to("cpu").eval()
    processor = SAMAudioJudgeProcessor.from_pretrained("facebook/sam-audio-judge")
    separator, prepare = loaded
    wav = prepare.load_audio(audio)
    with torch.inference_mode():
        stems = separator.separate(prepare(["speech"], [wav[None]]))
        processed = processor(
            text=["speech"],
            input_audio=[wav[None]],
            separated_audio=[stems.target[0][None, : len(wav)]],
            sampling_rate=RATE,
        ).to("cpu")
        result = model(**processed)
    for scores in (result.overall, result.recall, result.precision, result.faithfulness):
        assert scores.shape == (1, 1) and torch.isfinite(scores).all()
    # Files work as well as tensors.
    shutil.copy(audio, tmp_path / "separated.wav")
    with torch.inference_mode():
        files = processor(text=["speech"], input_audio=[audio], separated_audio=[str(tmp_path / "separated.wav")])
        assert torch.isfinite(model(**files).overall).all()
