from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from media_files import DEMO

from operators.stereo import frame_length, wiener

RATE = 48_000
SECONDS = 8
ROOT = Path(__file__).parents[2]


def load(name: str) -> torch.Tensor:
    """`[2, n]`"""
    samples = soundfile.read(DEMO / name, frames=SECONDS * RATE, dtype="float32", always_2d=True)[0]
    return torch.from_numpy(samples.T.copy())


@pytest.fixture(scope="module")
def speech() -> torch.Tensor:
    return load("speech.flac")


@pytest.fixture(scope="module")
def music() -> torch.Tensor:
    return load("music.flac")


def si_sdr(estimate: torch.Tensor, reference: torch.Tensor) -> float:
    scaled = reference * ((estimate * reference).sum() / reference.square().sum())
    return float(10 * torch.log10(scaled.square().sum() / (estimate - scaled).square().sum()))


def test_mono_stems_lift_the_target_out_of_every_channel(speech: torch.Tensor, music: torch.Tensor) -> None:
    speech = speech.mean(0) * torch.tensor([[1.0], [0.25]])  # panned to the left
    mixture = speech + music
    target = wiener(speech.mean(0), music.mean(0), mixture, sample_rate=RATE)
    for channel in range(2):
        before, after = (si_sdr(x[channel], speech[channel]) for x in (mixture, target))
        assert after > before + 9
    level = target.square().mean(1).sqrt()
    assert float(level[0] / level[1]) == pytest.approx(4, rel=0.1)


def test_the_level_of_the_mono_stems_does_not_matter(speech: torch.Tensor, music: torch.Tensor) -> None:
    mixture = speech + music
    target = wiener(speech.mean(0), music.mean(0), mixture, sample_rate=RATE)
    quiet = wiener(speech.mean(0) / 10, music.mean(0) / 10, mixture, sample_rate=RATE)
    torch.testing.assert_close(quiet, target, atol=1e-4, rtol=0)


def test_a_stem_alone_is_the_mixture_up_to_its_first_and_last_sample(speech: torch.Tensor) -> None:
    silence = torch.zeros(speech.shape[1])
    everything = wiener(speech.mean(0), silence, speech, sample_rate=RATE)
    heard = (speech[0] + speech[1]).abs() > 0  # digital silence is nobody's
    assert float((everything - speech)[:, heard].abs().max()) < 1e-4
    assert float(wiener(silence, speech.mean(0), speech, sample_rate=RATE).abs().max()) == 0


def test_what_neither_stem_holds_stays_with_the_residual(music: torch.Tensor) -> None:
    silence = torch.zeros(music.shape[1])
    assert float(wiener(silence, silence, music, sample_rate=RATE).abs().max()) == 0


@pytest.mark.parametrize("frames", [1, 3, 50])
def test_the_size_of_pieces_does_not_change_the_result(frames: int, speech: torch.Tensor, music: torch.Tensor) -> None:
    arguments = speech.mean(0)[:90_001], music.mean(0)[:90_001], (speech + music)[:, :90_001]
    whole = wiener(*arguments, sample_rate=RATE)
    pieces = wiener(*arguments, sample_rate=RATE, frames_per_piece=frames)
    torch.testing.assert_close(pieces, whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("start", [1_920 * 31, 12_345])
def test_a_stretch_gives_what_the_whole_recording_gives(start: int, speech: torch.Tensor, music: torch.Tensor) -> None:
    arguments = speech.mean(0), music.mean(0), speech + music
    whole = wiener(*arguments, sample_rate=RATE)
    stop, reach = start + 100_000, frame_length(RATE)
    stretch = wiener(*(x[..., start:stop] for x in arguments), sample_rate=RATE, start=start)
    inside = slice(reach, 100_000 - reach)
    torch.testing.assert_close(stretch[:, inside], whole[:, start:stop][:, inside], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("rate", "n"), [(6_000, 1), (6_000, 119), (44_100, 3_000), (192_000, 20_000)])
def test_any_rate_and_length_is_split_without_loss(rate: int, n: int) -> None:
    generator = torch.Generator().manual_seed(1)
    mixture = torch.randn(3, n, generator=generator)
    target, residual = torch.randn(2, n, generator=generator)
    one = wiener(target, residual, mixture, sample_rate=rate)
    other = wiener(residual, target, mixture, sample_rate=rate)
    torch.testing.assert_close(one + other, mixture, atol=1e-5, rtol=0)


def test_minutes_take_the_memory_of_a_piece() -> None:
    # In a process of its own, whose highest memory ever is that of this call.
    program = (
        "import resource, sys, torch; torch.set_num_threads(1); from operators.stereo import wiener\n"
        "mixture = torch.zeros(2, int(sys.argv[1])).uniform_(-1, 1)\n"
        "base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "wiener(mixture[0], mixture[1], mixture, sample_rate=48_000)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base)"
    )
    n = 180 * RATE
    run = subprocess.run([sys.executable, "-c", program, str(n)], check=True, capture_output=True, text=True, cwd=ROOT)
    megabytes = int(run.stdout) / 1024
    assert megabytes < 2 * n * 4 / 2**20 + 120  # the result, and one piece's spectra


def test_stems_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="same stretch"):
        wiener(torch.zeros(10), torch.zeros(11), torch.zeros(2, 10), sample_rate=RATE)
    with pytest.raises(ValueError, match="mono"):
        wiener(torch.zeros(2, 10), torch.zeros(10), torch.zeros(2, 10), sample_rate=RATE)
