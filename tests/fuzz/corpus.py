"""Hostile media, made from real files: mutated bytes, headers that lie, bombs, and recordings of hardly any length.

Everything is made anew from a seed, so a case can be named and made again.
"""

from __future__ import annotations

import io
import struct
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
from media_files import ffmpeg, make_media
from video_files import write_video

KINDS = ("wav", "flac", "mp3", "vbr.mp3", "m4a", "mp4", "mkv", "ogg", "opus", "webm", "mov", "aac")
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
DAY_SECONDS = 24 * 3600
Maker = Callable[[Path], Path | bytes]  # given a folder to work in


def seeds(folder: Path) -> dict[str, bytes]:
    """One real file a kind: two seconds of music, with a picture in the containers that hold one."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for kind in KINDS:
        path = folder / f"seed.{kind}"
        if not path.exists():
            make_media(path, kind, seconds=2.0)
        made[kind] = path.read_bytes()
    return made


# Mutations of bytes. Most damage goes where the structure is: to the beginning and the end.


def _place(rng: np.random.Generator, data: bytearray) -> int:
    where = rng.choice(3, p=[0.5, 0.35, 0.15])
    if where == 0:
        return int(rng.integers(0, min(len(data), 1024)))
    if where == 1:
        return int(rng.integers(0, len(data)))
    return int(rng.integers(max(0, len(data) - 1024), len(data)))


def flip(rng: np.random.Generator, data: bytearray, _: bytes) -> bytearray:
    for _ in range(int(rng.choice([1, 3, 30, 300]))):
        data[_place(rng, data)] ^= 1 << int(rng.integers(8))
    return data


def number(rng: np.random.Generator, data: bytearray, _: bytes) -> bytearray:
    """Numbers that lengths, counts and rates go wrong at."""
    for _ in range(int(rng.choice([1, 2, 8]))):
        at = max(0, min(_place(rng, data), len(data) - 8))
        layout = str(rng.choice(["<I", ">I", "<H", ">H", ">Q", "<Q"]))
        value = INTERESTING[rng.integers(len(INTERESTING))] & ((1 << 8 * struct.calcsize(layout)) - 1)
        struct.pack_into(layout, data, at, value)
    return data


def cut(rng: np.random.Generator, data: bytearray, _: bytes) -> bytearray:
    return data[: int(rng.integers(1, len(data)))]


def remove(rng: np.random.Generator, data: bytearray, _: bytes) -> bytearray:
    at = _place(rng, data)
    del data[at : at + int(rng.choice([1, 7, 100, 5000]))]
    return data or bytearray(b"\0")


def insert(rng: np.random.Generator, data: bytearray, _: bytes) -> bytearray:
    at = _place(rng, data)
    data[at:at] = rng.bytes(int(rng.choice([1, 7, 100, 5000])))
    return data


def blank(rng: np.random.Generator, data: bytearray, _: bytes) -> bytearray:
    at = _place(rng, data)
    size = min(len(data) - at, int(rng.choice([16, 512, 8192])))
    data[at : at + size] = bytes([int(rng.choice([0, 0xFF]))]) * size
    return data


def repeat(rng: np.random.Generator, data: bytearray, _: bytes) -> bytearray:
    at = _place(rng, data)
    data[at:at] = data[at : at + int(rng.choice([8, 64, 4096]))] * int(rng.choice([2, 50]))
    return data


def splice(rng: np.random.Generator, data: bytearray, other: bytes) -> bytearray:
    """The beginning of one file, the end of another."""
    return data[: _place(rng, data)] + other[int(rng.integers(len(other))) :]


MUTATIONS: tuple[Callable[[np.random.Generator, bytearray, bytes], bytearray], ...] = (
    flip, number, cut, remove, insert, blank, repeat, splice,
)  # fmt: skip


def mutated(data: bytes, other: bytes, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    out = bytearray(data)
    for _ in range(int(rng.choice([1, 1, 2, 4]))):
        out = MUTATIONS[rng.integers(len(MUTATIONS))](rng, out, other)
    return bytes(out)


# Headers that lie


def liars(made: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """(name, content): each states another duration, rate or channel count than it has."""
    for value in (0, 1, 2, 9, 255, 0xFFFF):
        yield f"channels-{value}.wav", _patched(made["wav"], 22, "<H", value)
        yield f"block-{value}.wav", _patched(made["wav"], 32, "<H", value)
        yield f"bits-{value}.wav", _patched(made["wav"], 34, "<H", value)
    for value in (0, 1, 7999, 8000, 192_001, 0x7FFFFFFF, 0xFFFFFFFF):
        yield f"rate-{value}.wav", _patched(made["wav"], 24, "<I", value)
        yield f"byterate-{value}.wav", _patched(made["wav"], 28, "<I", value)
    data = made["wav"].index(b"data") + 4
    for value in (0, 1, 3, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF):
        yield f"length-{value}.wav", _patched(made["wav"], data, "<I", value)
        yield f"riff-{value}.wav", _patched(made["wav"], 4, "<I", value)
    # FLAC's STREAMINFO: rate 20 bits, channels 3, bits 5, samples 36, from byte 18 on.
    info = int.from_bytes(made["flac"][18:26], "big")
    for name, shift, width in (("rate", 44, 20), ("channels", 41, 3), ("bits", 36, 5), ("samples", 0, 36)):
        for value in (0, 1, (1 << width) - 1, 1 << (width - 1)):
            lie = info & ~(((1 << width) - 1) << shift) | value << shift
            yield f"{name}-{value}.flac", made["flac"][:18] + lie.to_bytes(8, "big") + made["flac"][26:]
    for kind in ("mp4", "m4a", "mov"):
        for box, fields in (
            (b"mvhd", (12, 16)),
            (b"mdhd", (12, 16)),
            (b"stts", (8, 12)),
            (b"stsz", (8,)),
            (b"stsc", (8,)),
        ):
            for offset in fields:
                for value in (0, 1, 0x7FFFFFFF, 0xFFFFFFFF):
                    at = made[kind].index(box) + 4 + offset - 4
                    yield f"{box.decode()}-{offset}-{value:x}.{kind}", _patched(made[kind], at, ">I", value)
    for kind, mark in (("mp3", b"Info"), ("vbr.mp3", b"Xing")):
        for value in (0, 1, 0x7FFFFFFF, 0xFFFFFFFF):
            yield f"frames-{value:x}.{kind}", _patched(made[kind], made[kind].index(mark) + 8, ">I", value)
    for kind in ("ogg", "opus"):
        last = made[kind].rindex(b"OggS") + 6
        for value in (0, 1, 1 << 40, (1 << 63) - 1, (1 << 64) - 1):
            yield f"granule-{value:x}.{kind}", _patched(made[kind], last, "<Q", value)
    head = made["opus"].index(b"OpusHead")
    for value in (0, 9, 255):
        yield f"channels-{value}.opus", _patched(made["opus"], head + 9, "<B", value)
    for value in (0, 0xFFFF):
        yield f"skip-{value}.opus", _patched(made["opus"], head + 10, "<H", value)
    vorbis = made["ogg"].index(b"\x01vorbis")
    for value in (0, 1, 0xFFFFFFFF):
        yield f"rate-{value}.ogg", _patched(made["ogg"], vorbis + 12, "<I", value)
    for value in (0, 255):
        yield f"channels-{value}.ogg", _patched(made["ogg"], vorbis + 11, "<B", value)
    for kind in ("mkv", "webm"):
        duration = made[kind].index(b"\x44\x89") + 3
        for value in (0.0, -1.0, 1e30, float("nan"), float("inf")):
            yield f"duration-{value}.{kind}", _patched(made[kind], duration, ">d", value)


def _patched(data: bytes, at: int, layout: str, value: float) -> bytes:
    out = bytearray(data)
    struct.pack_into(layout, out, at, value)
    return bytes(out)


# Much out of little


def bombs(folder: Path) -> Iterator[tuple[str, Path]]:
    """(name, path): small files that stand for very much sound, or very many pieces of it; made in minutes."""
    folder.mkdir(parents=True, exist_ok=True)
    silence = f"anullsrc=r=8000:cl=mono:d={DAY_SECONDS}"
    for name, arguments in {
        "day.flac": ("-compression_level", "0"),
        "day.mp3": ("-b:a", "8k", "-write_xing", "0"),
        "day.ogg": ("-c:a", "libvorbis", "-q:a", "-1"),
    }.items():
        yield name, _made(folder / name, "-f", "lavfi", "-i", silence, *arguments)
    wide = "anullsrc=r=192000:cl=7.1:d=600"
    yield "wide.flac", _made(folder / "wide.flac", "-f", "lavfi", "-i", wide, "-compression_level", "0")
    for name, data in {
        "chunks.wav": b"RIFF\xff\xff\xff\x7fWAVE" + b"LIST\0\0\0\0" * 500_000,
        "boxes.mp4": b"\0\0\0\x10ftypisom\0\0\0\0" + b"\0\0\0\x08free" * 500_000,
        "nested.mp4": b"\0\0\0\x10ftypisom\0\0\0\0"
        + b"".join(struct.pack(">I4s", 8 * n, b"moov") for n in range(60_000, 0, -1)),
        "tag.mp3": b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + bytes(1 << 20),
        "tags.mp3": b"ID3\x04\0\0\0\0\x20\0" + (b"TXXX\0\0\0\x08\0\0a\0bbbbbb" * 230)[:4096] + bytes(4096),
        "pages.ogg": (b"OggS\0\0" + bytes(20) + b"\1\0") * 300_000,
        "sync.aac": b"\xff\xf1\x50\x80\x00\xff\xfc" * 700_000,
        "sync.mp3": b"\xff\xfb\x90\x00" * 1_000_000,
    }.items():
        path = folder / name
        if not path.exists():
            path.write_bytes(data)
        yield name, path


def _made(path: Path, *arguments: str) -> Path:
    if not path.exists():
        part = path.with_name(f"part-{path.name}")
        ffmpeg(*arguments, part)
        part.rename(path)
    return path


# Hardly anything

CODECS = {"flac": "flac", "mp3": "libmp3lame", "m4a": "aac", "mkv": "flac", "ogg": "libvorbis", "opus": "libopus"}


def tiny() -> Iterator[tuple[str, Maker]]:
    """(name, maker of the file in a folder): recordings of 0, 1, 2 and 100 samples in each kind."""
    for samples in (0, 1, 2, 100):
        yield f"{samples}-samples.wav", partial(_few, samples, "wav")
        for kind in CODECS:
            yield f"{samples}-samples.{kind}", partial(_few, samples, kind)


def _few(samples: int, kind: str, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    source, path = folder / f"{samples}-samples.wav", folder / f"{samples}-samples.{kind}"
    soundfile.write(source, np.full((samples, 2), 0.25, np.float32), 48_000, subtype="FLOAT")
    if kind != "wav":
        # Without a sound FFmpeg writes a header, or nothing: that is a case too.
        command = ["ffmpeg", "-v", "quiet", "-nostdin", "-y", "-i", source, "-c:a", CODECS[kind], path]
        subprocess.run(command, check=False)
        path.touch()
    return path


# Masks


def mask_seeds(folder: Path) -> dict[str, bytes]:
    """Masks of the seeds' pictures: npy, npz (compressed and not) and a video."""
    folder.mkdir(parents=True, exist_ok=True)
    masks = np.random.default_rng(5).random((20, 12, 16)) < 0.5
    times = np.arange(20) * 0.1
    made: dict[str, bytes] = {}
    for name, write in {
        "npy": lambda file: np.save(file, masks),
        "npz": lambda file: np.savez_compressed(file, masks=masks, timestamps_seconds=times),
        "plain.npz": lambda file: np.savez(file, masks=masks, timestamps_seconds=times),
    }.items():
        file = io.BytesIO()
        write(file)
        made[name] = file.getvalue()
    video = write_video(
        folder / "masks.mkv", [100 * i for i in range(20)], lambda i: np.full((12, 16, 3), 255 * (i % 2), np.uint8)
    )
    return made | {"mkv": video.read_bytes()}


def mask_bombs() -> Iterator[tuple[str, bytes | Maker]]:
    """(name, content or its maker): archives and headers that promise gigabytes, and what a pickle would run."""

    def header(shape: str, dtype: str = "|b1") -> bytes:
        text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()

    def archive(**members: bytes) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zipped:
            for name, content in members.items():
                zipped.writestr(f"{name}.npy", content)
        return file.getvalue()

    plain = header("(20, 12, 16)") + bytes(20 * 12 * 16)
    yield "huge-shape.npy", header("(4, 100000, 100000)") + bytes(64)
    yield "negative.npy", header("(-1, 12, 16)") + bytes(64)
    yield "overflow.npy", header("(9223372036854775807, 4, 4)") + bytes(64)
    yield "many-frames.npy", header("(1000000000000, 1, 1)") + bytes(64)
    yield "pickle.npy", header("(20, 12, 16)", "|O") + b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR."
    yield "expression.npy", b"\x93NUMPY\x01\x00\x76\x00" + b"__import__('os').system('touch pwned')".ljust(117) + b"\n"
    yield "long-header.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b" " * 4096
    yield "deep-header.npy", b"\x93NUMPY\x01\x00\x60\xea" + b"(" * 60_000
    yield "rows.npz", lambda _: archive(masks=header("(20, 7000, 9000)") + bytes(20 * 7000 * 9000))
    times = header("(150000000,)", "<f8")
    yield "times.npz", lambda _: archive(masks=plain, timestamps_seconds=times + bytes(1_200_000_000))
    yield "times-lie.npz", archive(masks=plain, timestamps_seconds=header("(1000000000000,)", "<f8") + bytes(64))
    yield "objects.npz", archive(masks=plain, timestamps_seconds=header("(20,)", "|O") + b"\x80\x04N.")
    yield (
        "nan.npz",
        archive(masks=plain, timestamps_seconds=header("(20,)", "<f8") + struct.pack("<20d", *[float("nan")] * 20)),
    )
    yield "no-masks.npz", archive(other=plain)
