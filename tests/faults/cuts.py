"""An archive for fault injection: hundreds of real short recordings in several formats, and a long one."""

from __future__ import annotations

from pathlib import Path

import soundfile as sf
from media_files import DEMO, ffmpeg

SOURCES = ("speech.flac", "music.flac", "dog.flac")
# How soundfile names what it writes; the rest is cut by ffmpeg.
KINDS = {"wav": ("WAV", "PCM_16"), "flac": ("FLAC", "PCM_16"), "ogg": ("OGG", "VORBIS"), "mp3": ("MP3", None)}
SHORTEST, LONGEST = 0.5, 6.0


def cut_short(folder: Path, count: int) -> list[str]:
    """`count` recordings of 0.5 to 6 s cut out of the demo's: WAV, FLAC, Ogg, MP3, and a fifth of them M4A or MKV."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    sounds = [sf.read(DEMO / source, dtype="float32", always_2d=True) for source in SOURCES]
    by_ffmpeg = count // 5
    for i in range(count - by_ffmpeg):
        sound, rate = sounds[i % len(sounds)]
        kind, (container, subtype) = list(KINDS.items())[i % len(KINDS)]
        seconds = SHORTEST + (LONGEST - SHORTEST) * (i * 37 % 100) / 99
        length = min(int(seconds * rate), len(sound))
        start = i * 7919 * 101 % max(1, len(sound) - length)
        name = f"cut-{i:03d}.{kind}"
        sf.write(folder / name, sound[start : start + length], rate, format=container, subtype=subtype)
        names.append(name)
    for kind in ("m4a", "mkv"):
        seconds = {"m4a": 1.3, "mkv": 2.9}[kind]
        wanted = by_ffmpeg // 2 + (by_ffmpeg % 2 if kind == "mkv" else 0)
        loop = ("-stream_loop", "-1", "-i", DEMO / "speech.flac", "-t", f"{seconds * wanted:.3f}")
        container = {"m4a": "ipod", "mkv": "matroska"}[kind]
        cut = ("-f", "segment", "-segment_time", str(seconds), "-segment_format", container)
        codec = ("-c:a", "aac", "-aac_pns", "0") if kind == "m4a" else ("-c:a", "flac")
        ffmpeg(*loop, *codec, *cut, "-reset_timestamps", "1", folder / f"{kind}-%03d.{kind}")
        names += sorted(path.name for path in folder.glob(f"{kind}-*.{kind}"))[:wanted]
    return names


def write_long(path: Path, hours: float) -> str:
    """A mono recording of so many hours, FLAC at 8 kHz."""
    minute = path.with_suffix(".minute.wav")
    ffmpeg("-stream_loop", "-1", "-i", DEMO / "music.flac", "-t", "60", "-ar", "8000", "-ac", "1", minute)
    ffmpeg("-stream_loop", "-1", "-i", minute, "-t", str(hours * 3600), "-c:a", "flac", "-compression_level", "0", path)
    minute.unlink()
    return path.name


def write_bomb(path: Path, seconds: float = 100) -> str:
    """Eight channels of silence at 192 kHz: next to nothing on disk, gigabytes in memory."""
    silence = ("-f", "lavfi", "-i", "anullsrc=r=192000:cl=7.1", "-t", str(seconds))
    ffmpeg(*silence, "-c:a", "flac", "-compression_level", "0", path)
    return path.name
