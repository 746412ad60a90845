from __future__ import annotations

import io
import itertools
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio.functional
from media_files import AAC, DEMO, FORMATS, PICTURE, WITH_VIDEO, decode_whole, ffmpeg, ffmpeg_pipe, make_media

from operators.container import DEMUXERS
from operators.errors import AssetError
from operators.media import decode_range, probe

RATE = 48_000


class CountingFile(io.FileIO):
    """A file that counts the bytes read from it."""

    bytes_read = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(-1 if size is None else size)
        self.bytes_read += len(data)
        return data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("media")


def read(path: Path, start: int = 0, stop: int | None = None, *, rate: int = RATE, seconds: float | None = None):
    with path.open("rb") as file:
        return decode_range(file, path.name, start=start, stop=stop, sample_rate=rate, expected_seconds=seconds)


def cause(path: Path) -> str:
    """What the pipeline would record: from the probe, or from decoding what the probe found."""
    with pytest.raises(AssetError) as raised, path.open("rb") as file:
        info = probe(file, path.name)
        decode_range(file, path.name, start=0, stop=None, sample_rate=RATE, expected_seconds=info.duration_seconds)
    assert path.name in raised.value.message
    assert raised.value.remedy
    return raised.value.cause


# Formats


@pytest.mark.parametrize("kind", FORMATS)
def test_ranges_equal_a_sequential_decode(kind: str, folder: Path) -> None:
    path = make_media(folder / f"ranges.{kind}", kind, seconds=6.5)
    whole, rate = decode_whole(path)
    cuts = [0, 1, rate // 3, 2 * rate + 7, 4 * rate - 1, 6 * rate, None]
    parts = [read(path, a or 0, b, rate=rate) for a, b in itertools.pairwise(cuts)]
    assert [part.shape[1] for part in parts[:-1]] == np.diff(cuts[:-1]).tolist()
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


@pytest.mark.parametrize("kind", FORMATS)
def test_resampled_ranges_join_to_the_resampled_whole(kind: str, folder: Path) -> None:
    path = make_media(folder / f"joins.{kind}", kind, seconds=5.0)
    whole, rate = decode_whole(path)
    expected = torchaudio.functional.resample(torch.from_numpy(whole), rate, RATE).numpy()
    cuts = [0, 57_600, 115_201, 192_000, None]
    joined = np.concatenate([read(path, a or 0, b) for a, b in itertools.pairwise(cuts)], axis=1)
    assert joined.shape == expected.shape
    np.testing.assert_allclose(joined, expected, atol=3e-6)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 96_000, 192_000])
@pytest.mark.parametrize("kind", ["wav", "flac", "flac.mkv"])
def test_every_rate_joins_exactly(kind: str, rate: int, folder: Path) -> None:
    path = make_media(folder / f"rate{rate}.{kind}", kind, seconds=3.0, rate=rate)
    whole, _ = decode_whole(path)
    expected = torchaudio.functional.resample(torch.from_numpy(whole), rate, RATE).numpy()
    joined = np.concatenate([read(path, 0, 70_001), read(path, 70_001, 120_000), read(path, 120_000)], axis=1)
    np.testing.assert_allclose(joined, expected, atol=3e-6)


@pytest.mark.parametrize("kind", FORMATS)
def test_decoded_sound_has_no_lag_to_its_source(kind: str, folder: Path) -> None:
    path = make_media(folder / f"lag.{kind}", kind, seconds=4.0, rate=48_000, source="speech.flac")
    original = soundfile.read(DEMO / "speech.flac", frames=4 * RATE, dtype="float32")[0].T
    decoded = read(path, 2 * RATE, 3 * RATE)
    lags = range(-1200, 1201)
    match = [float(np.dot(decoded[0], original[0, 2 * RATE + lag : 3 * RATE + lag])) for lag in lags]
    # Nothing in these files marks the AAC encoder's delay of 1024 samples, so no decoder drops it.
    known = {"aac": -1024, "mkv": -1024}
    assert abs(lags[int(np.argmax(match))] - known.get(kind, 0)) <= 1


def test_aac_with_noise_substitution_differs_only_by_its_noise(folder: Path) -> None:
    path = folder / "noise.m4a"
    ffmpeg("-i", DEMO / "music.flac", "-t", "6", "-c:a", "aac", path)
    whole, rate = decode_whole(path)
    part = read(path, 2 * rate, 4 * rate, rate=rate)
    error = part - whole[:, 2 * rate : 4 * rate]
    assert 10 * np.log10(np.mean(part**2) / np.mean(error**2)) > 20


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 8])
def test_all_channels_come_in_file_order(channels: int, folder: Path) -> None:
    tones = np.sin(np.arange(RATE)[:, None] * (np.arange(channels) + 2) / 50).astype(np.float32) / 2
    path = folder / f"{channels}.wav"
    soundfile.write(path, tones, RATE, subtype="FLOAT")
    np.testing.assert_array_equal(read(path, 100, 40_000), tones.T[:, 100:40_000])


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
def test_every_sample_format_is_scaled_to_one(subtype: str, folder: Path) -> None:
    music = soundfile.read(DEMO / "music.flac", frames=RATE)[0]
    path = folder / f"{subtype}.wav"
    soundfile.write(path, music, RATE, subtype=subtype)
    np.testing.assert_allclose(read(path), soundfile.read(path, dtype="float32")[0].T, atol=1e-7)


@pytest.mark.parametrize("kind", FORMATS)
def test_probe_tells_duration_rate_channels_and_video(kind: str, folder: Path) -> None:
    path = make_media(folder / f"probe.{kind}", kind, seconds=4.0, rate=48_000)
    with path.open("rb") as file:
        info = probe(file, path.name)
    assert info.duration_seconds == pytest.approx(4.0, abs=0.06)
    assert (info.sample_rate, info.channels, info.has_video) == (48_000, 2, kind in WITH_VIDEO)
    assert info.container and info.codec


def test_cover_art_is_not_video(folder: Path) -> None:
    cover = folder / "cover.jpg"
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=64x64", "-frames:v", "1", cover)
    for kind in ("mp3", "m4a"):
        path = folder / f"cover.{kind}"
        sound = make_media(folder / f"plain.{kind}", kind, seconds=2.0)
        ffmpeg(
            "-i", sound, "-i", cover, "-map", "0:a", "-map", "1:v", "-c", "copy", "-disposition:v", "attached_pic", path
        )
        with path.open("rb") as file:
            assert not probe(file, path.name).has_video


def test_matroska_whose_sound_begins_late_lasts_as_long_as_its_sound(folder: Path) -> None:
    wav, mkv = folder / "late.wav", folder / "late.mkv"
    soundfile.write(wav, np.full(3 * RATE, 0.1), RATE)
    ffmpeg("-i", DEMO / "demo.mp4", "-itsoffset", "0.72", "-i", wav, "-map", "0:v", "-map", "1:a", "-c:v", "copy",
           "-c:a", "flac", mkv)  # fmt: skip
    with mkv.open("rb") as file:
        info = probe(file, mkv.name)
    assert info.duration_seconds == pytest.approx(3.0, abs=0.03)
    assert read(mkv, seconds=info.duration_seconds).shape[1] == pytest.approx(3 * RATE, abs=0.03 * RATE)


def test_an_mp3_named_wav_is_processed_by_its_content(folder: Path) -> None:
    mp3 = make_media(folder / "content.mp3", "mp3", seconds=2.0)
    path = folder / "really-mp3.wav"
    path.write_bytes(mp3.read_bytes())
    np.testing.assert_array_equal(read(path), read(mp3))


def test_duration_of_an_mp3_without_frame_count_is_counted(folder: Path) -> None:
    path = folder / "noheader.mp3"
    ffmpeg("-i", DEMO / "speech.flac", "-t", "10", "-q:a", "5", "-write_xing", "0", path)
    whole, rate = decode_whole(path)
    with path.open("rb") as file:
        info = probe(file, path.name)
    assert info.duration_seconds == pytest.approx(whole.shape[1] / rate, abs=0.03)
    assert read(path, seconds=info.duration_seconds).shape[1] == pytest.approx(whole.shape[1] * RATE / rate, abs=2)


# Work bounded by the range


@pytest.mark.parametrize("kind", ["wav", "flac", "m4a", "mp4", "mkv", "webm", "ogg"])
def test_a_late_range_reads_a_fraction_of_the_file(kind: str, folder: Path) -> None:
    path = make_media(folder / f"long.{kind}", kind, seconds=60.0, rate=48_000)
    with CountingFile(path) as file:
        decode_range(file, path.name, start=55 * RATE, stop=56 * RATE, sample_rate=RATE, expected_seconds=60.0)
        assert file.bytes_read < 0.5 * path.stat().st_size + 300_000


def test_a_range_past_the_end_is_empty(folder: Path) -> None:
    path = make_media(folder / "short.flac", "flac", seconds=2.0)
    assert read(path, 20 * RATE, 21 * RATE, seconds=2.0).shape == (2, 0)


# Broken media


def test_file_of_no_bytes_is_empty_file(folder: Path) -> None:
    path = folder / "zero.wav"
    path.touch()
    assert cause(path) == "empty_file"


def test_file_with_header_but_no_samples_is_empty_file(folder: Path) -> None:
    path = folder / "header.wav"
    soundfile.write(path, np.zeros((0, 2)), RATE)
    assert cause(path) == "empty_file"


@pytest.mark.parametrize(
    "kind", ["wav", "flac", "mp3", "vbr.mp3", "m4a", "mp4", "mkv", "flac.mkv", "mov", "webm", "opus"]
)
def test_file_cut_in_half_is_truncated(kind: str, folder: Path) -> None:
    whole = make_media(folder / f"whole.{kind}", kind, seconds=8.0).read_bytes()
    path = folder / f"half.{kind}"
    path.write_bytes(whole[: len(whole) // 2])
    assert cause(path) == "truncated"


def test_the_intact_part_of_a_truncated_file_can_be_read(folder: Path) -> None:
    path = make_media(folder / "part.wav", "wav", seconds=8.0)
    expected = read(path, 0, RATE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    np.testing.assert_array_equal(read(path, 0, RATE, seconds=8.0), expected)
    with pytest.raises(AssetError, match="truncated"):
        read(path, 6 * RATE, 7 * RATE, seconds=8.0)


def test_random_bytes_are_corrupt(folder: Path) -> None:
    path = folder / "noise.wav"
    path.write_bytes(b"\0" + np.random.default_rng(0).bytes(50_000))
    assert cause(path) == "corrupt"


def test_zero_bytes_are_corrupt(folder: Path) -> None:
    path = folder / "zeros.mp4"
    path.write_bytes(bytes(100_000))
    assert cause(path) == "corrupt"


@pytest.mark.parametrize("kind", ["flac", "m4a"])
def test_damage_in_the_middle_is_corrupt(kind: str, folder: Path) -> None:
    data = bytearray(make_media(folder / f"fine.{kind}", kind, seconds=8.0).read_bytes())
    middle = len(data) // 2
    data[middle : middle + 20_000] = np.random.default_rng(1).bytes(20_000)
    path = folder / f"rot.{kind}"
    path.write_bytes(data)
    assert cause(path) == "corrupt"


def test_video_without_sound_is_no_audio(folder: Path) -> None:
    path = folder / "silent.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=64x48:rate=10", "-t", "1", "-c:v", "mpeg4", path)
    assert cause(path) == "no_audio"


@pytest.mark.parametrize("content", ["jpeg", "text", "html"])
def test_other_content_under_a_media_name_is_mislabelled(content: str, folder: Path) -> None:
    path = folder / f"{content}.wav"
    if content == "jpeg":
        ffmpeg("-f", "lavfi", "-i", "testsrc=size=64x64", "-frames:v", "1", "-f", "mjpeg", path)
    else:
        path.write_text("A shopping list: Brötchen, milk\n" * 200 if content == "text" else "<html>404</html>")
    assert cause(path) == "mislabelled"


def test_a_playlist_cannot_open_another_file(folder: Path) -> None:
    secret = make_media(folder / "secret.mp3", "mp3", seconds=2.0)
    path = folder / "playlist.mp3"
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfile://{secret}\n#EXT-X-ENDLIST\n")
    assert cause(path) == "mislabelled"
    assert not {"hls", "concat", "dash", "image2", "tty"} & set(DEMUXERS.split(","))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_are_no_numbers_are_nan_samples(bad: float, folder: Path) -> None:
    samples = np.zeros((RATE, 2), np.float32)
    samples[20_000, 1] = bad
    path = folder / "nan.wav"
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    assert cause(path) == "nan_samples"


@pytest.mark.parametrize("kind", ["RIFF", "RF64"])
def test_header_that_declares_years_is_bad_duration(kind: str, folder: Path) -> None:
    path = folder / "years.wav"
    samples = bytes(range(256)) * 8
    length = 4_000_000_000  # 69 hours in two kilobytes
    ds64 = b""
    if kind == "RF64":
        years = 10 * 365 * 24 * 3600 * 16_000
        ds64, length = struct.pack("<4sIQQQI", b"ds64", 28, years + 72, years, years // 2, 0), 0xFFFFFFFF
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 8_000, 16_000, 2, 16)
    header = struct.pack("<4sI4s", kind.encode(), 0xFFFFFFFF, b"WAVE") + ds64 + form
    path.write_bytes(header + struct.pack("<4sI", b"data", length) + samples)
    assert cause(path) == "bad_duration"


def test_a_streamed_wav_of_unknown_length_is_read_to_its_end(folder: Path) -> None:
    path = make_media(folder / "streamed.wav", "wav", seconds=2.0)
    data = bytearray(path.read_bytes())
    where = data.index(b"data") + 4
    data[where : where + 4] = data[4:8] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    with path.open("rb") as file:
        seconds = probe(file, path.name).duration_seconds
    assert seconds == pytest.approx(2.0, abs=0.01)
    assert read(path, seconds=seconds).shape == (2, 2 * RATE)


VIDEO = {"mkv": ("-c:v", "mpeg4"), "mp4": ("-c:v", "mpeg4")}
LIVE = {
    "flac": ("-f", "flac"),
    "wav": ("-f", "wav"),
    "webm": ("-c:a", "libvorbis", "-live", "1", "-f", "webm"),
    "mkv": (*AAC, "-f", "matroska"),
    "mp4": (*AAC, "-movflags", "frag_keyframe+empty_moov", "-frag_duration", "1000000", "-f", "mp4"),
}


@pytest.mark.parametrize("kind", LIVE)
def test_files_that_state_no_length_are_probed_and_cut_exactly(kind: str, folder: Path) -> None:
    path = folder / f"live.{kind}"
    ffmpeg_pipe(path, *PICTURE, "-i", DEMO / "speech.flac", "-t", "9", *VIDEO.get(kind, ("-vn",)), *LIVE[kind])
    whole, rate = decode_whole(path)
    with path.open("rb") as file:
        seconds = probe(file, path.name).duration_seconds
    assert seconds == pytest.approx(9.0, abs=0.05)
    cuts = [0, rate, 5 * rate + 1, None]
    parts = [read(path, a or 0, b, rate=rate, seconds=seconds) for a, b in itertools.pairwise(cuts)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


def test_eight_channels_of_a_compressed_format_are_decoded(folder: Path) -> None:
    path = folder / "eight.m4a"
    ffmpeg("-i", DEMO / "speech.flac", "-t", "2", "-af", "pan=7.1|FL=c0|FR=c1|BL=c0|SR=c1", "-c:a", "aac", path)
    samples = read(path)
    loud = np.sqrt((samples**2).mean(axis=1)) > 1e-3
    assert loud.tolist() == [True, True, False, False, True, False, False, True]


def test_more_than_eight_channels_are_unsupported_channels(folder: Path) -> None:
    path = folder / "nine.wav"
    soundfile.write(path, np.zeros((RATE, 9)), RATE)
    assert cause(path) == "unsupported_channels"


def test_a_rate_beyond_the_supported_ones_is_unsupported_sample_rate(folder: Path) -> None:
    path = folder / "ultrasound.wav"
    soundfile.write(path, np.zeros((RATE, 1)), 384_000)
    assert cause(path) == "unsupported_sample_rate"


def test_a_file_that_cannot_be_read_is_unreadable() -> None:
    memory = Path("/proc/self/mem")  # opens, and answers every read at 0 with an I/O error
    if not memory.exists():
        pytest.skip("needs Linux")
    with memory.open("rb", buffering=0) as file, pytest.raises(AssetError) as raised:
        probe(file, "tape.wav")
    assert raised.value.cause == "unreadable"
