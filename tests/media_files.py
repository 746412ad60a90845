"""Real media files for tests: the demo recordings, encoded by the ffmpeg program."""

from __future__ import annotations

import subprocess
from pathlib import Path

import av
import numpy as np

DEMO = Path(__file__).parents[1] / "jobs" / "demo_media"

# suffix -> ffmpeg arguments. AAC without noise substitution: its decoder fills bands with random numbers that
# depend on what it decoded before, so two decoders agree to about -46 dB only.
AAC = ("-c:a", "aac", "-aac_pns", "0")
FORMATS: dict[str, tuple[str, ...]] = {
    "wav": ("-c:a", "pcm_s16le"),
    "float.wav": ("-c:a", "pcm_f32le"),
    "flac": ("-c:a", "flac"),
    "mp3": ("-c:a", "libmp3lame", "-b:a", "128k"),
    "vbr.mp3": ("-c:a", "libmp3lame", "-q:a", "4"),
    "m4a": AAC,
    "aac": AAC,
    "ogg": ("-c:a", "libvorbis"),
    "opus": ("-c:a", "libopus"),
    "mp4": (*AAC, "-movflags", "+faststart"),
    "mkv": AAC,
    "flac.mkv": ("-c:a", "flac"),
    "mov": ("-c:a", "pcm_s24le"),
    "webm": ("-c:a", "libopus"),
    "vorbis.webm": ("-c:a", "libvorbis"),
}
PICTURE = ("-f", "lavfi", "-i", "testsrc=size=64x48:rate=10")
VIDEO_CODEC = {"webm": "libvpx", "vorbis.webm": "libvpx"}
WITH_VIDEO = ("mp4", "mkv", "flac.mkv", "mov", "webm", "vorbis.webm")


def ffmpeg(*arguments: str | Path) -> None:
    subprocess.run(["ffmpeg", "-v", "error", "-nostdin", "-y", *map(str, arguments)], check=True)


def ffmpeg_pipe(path: Path, *arguments: str | Path) -> None:
    """Let ffmpeg write into a pipe, as a live encoder does: it cannot go back to put the length into the header."""
    with path.open("wb") as file:
        subprocess.run(["ffmpeg", "-v", "error", "-nostdin", *map(str, arguments), "-"], check=True, stdout=file)


def make_media(
    path: Path, kind: str, *, seconds: float = 8.0, rate: int = 44_100, channels: int = 2, source: str = "music.flac"
) -> Path:
    """Encode the beginning of a demo recording, repeated as needed, as `kind` (a key of FORMATS)."""
    if "libopus" in FORMATS[kind]:
        rate = 48_000  # Opus has no other
    inputs: list[str | Path] = ["-stream_loop", "-1", "-i", DEMO / source]
    codecs: list[str] = []
    if kind in WITH_VIDEO:
        inputs += PICTURE
        codecs = ["-map", "0:a", "-map", "1:v", "-c:v", VIDEO_CODEC.get(kind, "mpeg4"), "-b:v", "100k"]
    ffmpeg(*inputs, *codecs, "-t", str(seconds), "-ar", str(rate), "-ac", str(channels), *FORMATS[kind], path)
    return path


def decode_whole(path: Path) -> tuple[np.ndarray, int]:
    """Every sample in one sequential pass, as `[channels, n]` float32, and the rate: what ranges have to agree with."""
    pieces = []
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        resampler = av.AudioResampler(format="fltp")  # a change of sample format only
        for frame in container.decode(stream):
            pieces += [converted.to_ndarray() for converted in resampler.resample(frame)]
        return np.concatenate(pieces, axis=1), stream.rate
