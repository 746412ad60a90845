"""What a few bytes of a file tell that FFmpeg does not: other kinds of files, missing ends, true lengths."""

from __future__ import annotations

import struct
from typing import BinaryIO

OTHER_FILES = (
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89PNG", "a PNG image"),
    (b"GIF8", "a GIF image"),
    (b"BM", "a BMP image"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "gzip data"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"SQLite format 3", "a SQLite database"),
    (b"PAR1", "a Parquet table"),
    (b"\x7fELF", "a program"),
)
# What writers that stream into a pipe put where the length of the samples belongs.
UNKNOWN_WAV_LENGTHS = (range(1), range(0x7FFFF000, 0x80000000), range(0xFFFFF000, 0x100000000))
MAX_WAV_CHUNKS = 100
MAX_OGG_PAGE = 65_307


def other_kind(head: bytes) -> str | None:
    """What `head`, the first bytes of a file, belongs to if it is surely no media file."""
    known = next((what for magic, what in OTHER_FILES if head.startswith(magic)), None)
    if known is not None:
        return known
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "a WebP image"
    printable = all(byte >= 32 or byte in b"\t\n\r\f" for byte in head)
    return "text" if printable and _is_utf8(head) else None


def _is_utf8(head: bytes) -> bool:
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > len(head) - 4  # cut in the middle of the last character
    return True


def has_frame_count(file: BinaryIO) -> bool:
    """Whether an MP3 begins with a Xing, Info or VBRI header, after its ID3 tag (which may hold a large picture)."""
    position = file.tell()
    file.seek(0)
    head = file.read(10)
    tag = 0
    if head[:3] == b"ID3":
        tag = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
    file.seek(tag)
    first_frame = file.read(4096)
    file.seek(position)
    return any(mark in first_frame for mark in (b"Xing", b"Info", b"VBRI"))


def mp4_bytes_missing(file: BinaryIO, size: int) -> int:
    """How far the last top-level box of an MP4 file of `size` bytes reaches beyond the end of the file."""
    position = 0
    while position < size:
        file.seek(position)
        header = file.read(16)
        if len(header) < 8:
            return 8 - len(header)
        length = struct.unpack(">I", header[:4])[0]
        if length == 1 and len(header) == 16:
            length = struct.unpack(">Q", header[8:])[0]
        if length < 8:
            return 0
        position += length
    return position - size


def wav_declared_seconds(file: BinaryIO, size: int) -> float | None:
    """Duration that a WAV or RF64 header of a file of `size` bytes promises beyond its end, else None.

    FFmpeg silently takes the end of the file for the end of the samples.
    """
    file.seek(0)
    head = file.read(12)
    if head[8:12] != b"WAVE":
        return None
    position, byte_rate, long_length = 12, 0, None
    for _ in range(MAX_WAV_CHUNKS):
        file.seek(position)
        chunk = file.read(24)
        if len(chunk) < 8:
            return None
        name, length = struct.unpack("<4sI", chunk[:8])
        if name == b"fmt " and len(chunk) >= 20:
            byte_rate = struct.unpack("<I", chunk[16:20])[0]
        elif name == b"ds64" and len(chunk) == 24:
            long_length = struct.unpack("<Q", chunk[16:24])[0]
        elif name == b"data":
            if long_length is not None and length == 0xFFFFFFFF:
                length = long_length
            elif any(length in lengths for lengths in UNKNOWN_WAV_LENGTHS):
                return None
            return length / byte_rate if byte_rate and position + 8 + length > size else None
        position += 8 + length + length % 2
    return None


def ogg_bytes_missing(file: BinaryIO, size: int) -> int:
    """How far the last page of an Ogg file of `size` bytes reaches beyond the end of the file."""
    file.seek(max(0, size - 2 * MAX_OGG_PAGE))
    tail = file.read()
    page = tail.rfind(b"OggS\0")
    if page < 0:
        return 0
    sizes = tail[page + 27 : page + 27 + tail[page + 26]] if page + 26 < len(tail) else b""
    return max(0, page + 27 + len(sizes) + sum(sizes) - len(tail))
