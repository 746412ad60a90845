"""Sounds inside game archives: Qt resources (.rcc), OpenTTD sound sets (.cat), OpenClonk groups (.ocg), zip files.

Each reader yields (path inside the container, bytes) for audio members. Formats as their projects document them.
"""

from __future__ import annotations

import gzip
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

AUDIO = (".ogg", ".oga", ".wav", ".mp3", ".flac", ".opus")
Member = tuple[str, bytes]


def read_zip(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.lower().endswith(AUDIO):
                yield name, archive.read(name)


def read_rcc(path: Path) -> Iterator[Member]:
    """Qt binary resources: a tree of fixed-size nodes, big-endian; files optionally zlib-compressed."""
    blob = path.read_bytes()
    if blob[:4] != b"qres":
        return
    version, tree, data, names = struct.unpack(">IIII", blob[4:20])
    node_size = 22 if version >= 2 else 14  # version 2 appended a modification time
    stack = [(0, "")]
    while stack:
        index, parent = stack.pop()
        at = tree + index * node_size
        name_offset, flags = struct.unpack(">IH", blob[at : at + 6])
        path_here = parent
        if index:
            start = names + name_offset
            (length,) = struct.unpack(">H", blob[start : start + 2])
            name = blob[start + 6 : start + 6 + 2 * length].decode("utf-16-be")
            path_here = f"{parent}/{name}" if parent else name
        if flags & 2:  # folder
            count, first = struct.unpack(">II", blob[at + 6 : at + 14])
            stack.extend((first + i, path_here) for i in range(count))
        elif path_here.lower().endswith(AUDIO) and not flags & 4:  # 4: zstd, unused for sounds
            (offset,) = struct.unpack(">I", blob[at + 10 : at + 14])
            start = data + offset
            (size,) = struct.unpack(">I", blob[start : start + 4])
            content = blob[start + 4 : start + 4 + size]
            yield path_here, zlib.decompress(content[4:]) if flags & 1 else content


def read_cat(path: Path) -> Iterator[Member]:
    """OpenTTD sound set: a table of (offset, length); each entry is a Pascal string followed by a RIFF file."""
    blob = path.read_bytes()
    count = (struct.unpack("<I", blob[:4])[0] & 0x7FFFFFFF) // 8
    for i in range(count):
        offset, length = struct.unpack("<II", blob[8 * i : 8 * i + 8])
        entry = blob[offset & 0x7FFFFFFF :][: length + 300]
        title = entry[1 : 1 + entry[0]].rstrip(b"\0").decode("latin1")
        riff = entry.find(b"RIFF")
        if riff >= 0:
            size = 8 + struct.unpack("<I", entry[riff + 4 : riff + 8])[0]
            name = re.sub(r"[^A-Za-z0-9._-]+", "_", title)[:60]
            yield f"{i:02d}_{name}.wav", entry[riff : riff + size]


def read_ocg(path: Path) -> Iterator[Member]:
    """OpenClonk group: gzip with altered magic bytes; nested groups with a scrambled 204-byte header."""
    blob = gzip.decompress(b"\x1f\x8b" + path.read_bytes()[2:])
    stack = [(blob, "")]
    while stack:
        group, folder = stack.pop()
        header = bytearray(group[:204])
        for i in range(0, 202, 3):
            header[i], header[i + 2] = header[i + 2], header[i]
        (count,) = struct.unpack("<I", bytes(x ^ 237 for x in header)[36:40])
        base = 204 + 316 * count
        for i in range(count):
            entry = group[204 + 316 * i : 204 + 316 * (i + 1)]
            name = entry[:260].split(b"\0")[0].decode("latin1")
            _, is_group, size, _, offset = struct.unpack("<IIIII", entry[260:280])
            content = group[base + offset : base + offset + size]
            inner = f"{folder}/{name}" if folder else name
            if is_group:
                stack.append((content, inner))
            elif name.lower().endswith(AUDIO):
                yield inner, content


# Catalogue path marker -> (container inside the package, reader). The catalogue writes `<marker>/<member>`.
CONTAINERS = {
    "gcompris-qt-data/rcc_out": ("usr/share/gcompris-qt/rcc/*.rcc", read_rcc),
    "openclonk-data/_sound": ("usr/share/games/openclonk/Sound.ocg", read_ocg),
    "openttd-opensfx/_wav": ("usr/share/games/openttd/baseset/opensfx/*.cat", read_cat),
    "trigger-rally-data/usr/share/games/trigger-rally/_ex_data.zip": (
        "usr/share/games/trigger-rally/data.zip",
        read_zip,
    ),
    "ufoai-music/usr/share/games/ufoai/base/_ex_0music.pk3": (
        "usr/share/games/ufoai/base/0music.pk3",
        read_zip,
    ),
    "ufoai-sound/usr/share/games/ufoai/base/_ex_0snd.pk3": (
        "usr/share/games/ufoai/base/0snd.pk3",
        read_zip,
    ),
    "warzone2100-data/usr/share/games/warzone2100/_ex_base.wz": (
        "usr/share/games/warzone2100/base.wz",
        read_zip,
    ),
}
