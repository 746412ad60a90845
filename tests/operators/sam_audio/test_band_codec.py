from pathlib import Path

import pytest
import soundfile as sf
import torch

from operators.evaluation.metrics import si_sdr
from operators.sam_audio.band_codec import BandCodec, band_matrix
from operators.sam_audio.config import BandCodecConfig

MEDIA = Path(__file__).parents[3] / "jobs" / "demo_media"


def recording(name: str, seconds: float = 6.0) -> torch.Tensor:
    """[channels, samples] of a demo recording."""
    wave, _ = sf.read(MEDIA / name, dtype="float32", frames=int(seconds * 48_000))
    return torch.from_numpy(wave.T.copy())


@pytest.fixture(scope="module")
def codec() -> BandCodec:
    return BandCodec(BandCodecConfig())


def test_bands_sum_to_one_in_every_bin():
    matrix = band_matrix(128, 2049, 48_000)
    torch.testing.assert_close(matrix.sum(1), torch.ones(2049))
    assert (matrix.sum(0) > 0).all()


def test_stft_and_inverse_give_the_wave_back(codec):
    wave = recording("speech.flac", 2.3)
    back = codec.istft(codec.stft(wave), wave.shape[-1])
    torch.testing.assert_close(back, wave, atol=1e-6, rtol=0)


def test_encode_makes_one_frame_per_hop_rounded_up(codec):
    latents = codec.encode(torch.zeros(2, 1, 1920 * 3 + 1))
    assert latents.shape == (2, 128, 4)


def test_true_latents_separate_speech_from_music(codec):
    speech, music = recording("speech.flac"), recording("music.flac")
    mixture = speech + music
    pair = torch.stack([codec.encode(x.mean(0)[None, None]) for x in (speech, music)], dim=1)
    target = codec.decode_stems(pair, mixture[None])[0, 0]
    gained = si_sdr(target[0].numpy(), speech[0].numpy()) - si_sdr(mixture[0].numpy(), speech[0].numpy())
    assert gained > 8


def test_stems_of_every_channel_sum_to_the_mixture(codec):
    mixture = recording("music.flac")
    latents = torch.randn(1, 2, 128, codec.encode(mixture[:1, None]).shape[-1])
    stems = codec.decode_stems(latents, mixture[None])
    assert stems.shape == (1, 2, *mixture.shape)
    # Float addition: one unit in the last place of full scale.
    torch.testing.assert_close(stems.sum(1)[0], mixture, atol=2e-7, rtol=0)


def test_a_piece_with_context_encodes_as_in_the_whole(codec):
    wave = recording("speech.flac")[:1, None]
    whole = codec.encode(wave)
    context = codec.context_frames
    piece = codec.encode(wave[..., (40 - context) * 1920 : (80 + context) * 1920])
    torch.testing.assert_close(piece[..., context:-context], whole[..., 40:80], atol=1e-4, rtol=0)
