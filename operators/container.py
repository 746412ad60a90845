"""Opening a media file of unknown origin: what it is, its audio stream, how long it says it is, and what is wrong.

Whatever is wrong with the file becomes an AssetError. Only demuxers that read one self-contained file are allowed, so a
playlist that poses as audio cannot make FFmpeg open anything else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import PurePosixPath
from typing import BinaryIO

import av
import av.error
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition

from operators.errors import AssetError
from operators.headers import has_frame_count, mp4_bytes_missing, ogg_bytes_missing, other_kind, wav_declared_seconds

MAX_CHANNELS = 8
MIN_RATE, MAX_RATE = 8_000, 192_000
MAX_DURATION_SECONDS = 31 * 24 * 3600
# No codec in use describes sound in less: a longer duration than this allows is a lie of the header.
MIN_BYTES_PER_SECOND = 10
# Codec delay and padding make decoded and declared length differ by up to a frame or two.
LENGTH_TOLERANCE_SECONDS = 0.15
SCAN_TAIL_SECONDS = 30

DEMUXERS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dts,eac3,flac,flv,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,"
    "mp3,mpeg,mpegts,mxf,ogg,tta,w64,wav,wv"
)
# The length these declare is counted, not estimated from a bit rate.
EXACT_LENGTH = {"wav", "w64", "flac", "ogg", "mov", "aiff", "caf"}


@dataclass(frozen=True)
class AudioSource:
    """An open container and the audio stream that is read from it."""

    file: BinaryIO
    name: str
    size_bytes: int
    container: InputContainer
    stream: AudioStream

    @property
    def format(self) -> str:
        return self.container.format.name.split(",")[0]

    @property
    def rate(self) -> int:
        return self.stream.codec_context.sample_rate

    @property
    def channels(self) -> int:
        return self.stream.codec_context.channels

    @property
    def time_base(self) -> Fraction:
        return self.stream.time_base or Fraction(1, 1000)

    @property
    def has_video(self) -> bool:
        """Moving pictures; cover art and thumbnails of an audio file do not count."""
        still = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
        return any(not stream.disposition & still for stream in self.container.streams.video)


@contextmanager
def open_audio(file: BinaryIO, name: str) -> Iterator[AudioSource]:
    """Open `file` (seekable, binary) at its best audio stream; `name` is what messages call it.

    Raises AssetError, also for what goes wrong inside the `with`: `empty_file`, `mislabelled`, `truncated`, `corrupt`,
    `no_audio`, `unsupported_codec`, `unsupported_channels`, `unsupported_sample_rate`, `unreadable`.
    """
    try:
        size = file.seek(0, 2)
        file.seek(0)
        head = file.read(4096)
        if size == 0:
            raise AssetError("empty_file", f"{name} has 0 bytes", "upload the file again or drop it from the manifest")
        if (what := other_kind(head)) is not None:
            suffix = PurePosixPath(name).suffix or "media"
            raise AssetError(
                "mislabelled",
                f"{name} is named {suffix} but holds {what}",
                "replace it by the recording, or drop it from the manifest",
            )
        file.seek(0)
        try:
            container = av.open(
                file, "r", options={"format_whitelist": DEMUXERS, "protocol_whitelist": ""}, metadata_errors="replace"
            )
        except av.error.FFmpegError as error:
            raise _cannot_open(file, size, head, name, error) from error
        with container:
            yield _select(file, name, size, container)
    except av.error.FFmpegError as error:
        raise corrupt(name, f"the decoder stopped with: {error.strerror}") from error
    except OSError as error:
        raise AssetError(
            "unreadable",
            f"{name} could not be read: {type(error).__name__}: {error}",
            "check that the file exists, that the job may read it, and that the storage answers",
        ) from error


def declared_seconds(source: AudioSource) -> float:
    """Duration of the audio in seconds as the file states it; counted from the packets where it states none.

    Counting reads the whole file for MP3 without a Xing header, raw AAC and AC-3, fragmented MP4 and what was streamed
    into a pipe; it leaves the source at its end, so open it again to decode.
    Raises AssetError: `bad_duration`, `empty_file` (no sample), `truncated` (Matroska that ends before its own end).
    """
    seconds = _stated_seconds(source)
    if seconds is None:
        seconds = _scan_seconds(source)
    if seconds <= 0:
        raise AssetError(
            "empty_file",
            f"{source.name} has an audio stream but no sample of sound",
            "export the file again or drop it from the manifest",
        )
    limit = min(MAX_DURATION_SECONDS, source.size_bytes / MIN_BYTES_PER_SECOND)
    if not math.isfinite(seconds) or seconds > limit:
        raise AssetError(
            "bad_duration",
            f"{source.name} declares {seconds:,.0f} s of sound in {source.size_bytes:,} bytes",
            "rewrite the header, for example: ffmpeg -i IN -c copy OUT",
        )
    return seconds


def corrupt(name: str, what: str) -> AssetError:
    return AssetError("corrupt", f"{name} is damaged: {what}", "restore the file from its master or re-export it")


def truncated(name: str, found: str) -> AssetError:
    return AssetError("truncated", f"{name} is cut short: {found}", "copy or download the file again")


def _stated_seconds(source: AudioSource) -> float | None:
    stream, container = source.stream, source.container
    if source.format == "matroska":
        # Some programs count the tag from the file's beginning, some from the stream's: only the packets tell.
        if float((stream.start_time or 0) * source.time_base) > LENGTH_TOLERANCE_SECONDS:
            return None
        tag = next((v for k, v in stream.metadata.items() if k.upper().startswith("DURATION")), None)
        if tag is not None and (match := re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", tag.strip())):
            hours, minutes, seconds = match.groups()
            return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
        only_audio = len(container.streams) == 1
        return container.duration / av.time_base if only_audio and container.duration else None
    position = source.file.tell()
    beyond = missing = None
    if source.format == "wav":
        beyond = wav_declared_seconds(source.file, source.size_bytes)
    elif source.format == "ogg":  # it states no length: its last page is its length
        missing = ogg_bytes_missing(source.file, source.size_bytes)
    source.file.seek(position)
    if missing:
        raise truncated(source.name, f"{missing:,} bytes of its last page are missing")
    if beyond is not None:
        return beyond
    exact = source.format in EXACT_LENGTH or (source.format == "mp3" and has_frame_count(source.file))
    if not exact or stream.duration is None:
        return None
    return float(stream.duration * source.time_base)


def _scan_seconds(source: AudioSource) -> float:
    """End of the last audio packet, from the last seconds of the file or, failing that, from all of it."""
    container, stream = source.container, source.stream
    declared = container.duration / av.time_base if container.duration else 0.0
    begins = [0.0]
    if source.format in ("matroska", "mpegts", "mpeg") and declared > 2 * SCAN_TAIL_SECONDS:
        begins.insert(0, declared - SCAN_TAIL_SECONDS)
    origin = stream.start_time or 0
    for begin in begins:
        container.seek(int(begin * av.time_base))
        end, last = 0.0, 0.0
        for packet in container.demux():
            if packet.pts is None or packet.time_base is None:
                continue
            stop = float((packet.pts + (packet.duration or 0)) * packet.time_base)
            last = max(last, stop)
            if packet.stream_index == stream.index:
                end = max(end, stop - float(origin * source.time_base))
        if end > 0:
            break
    if source.format == "matroska" and declared - last > 1:
        raise truncated(source.name, f"it declares {declared:.1f} s and ends at {last:.1f} s")
    return end


def _select(file: BinaryIO, name: str, size: int, container: InputContainer) -> AudioSource:
    stream = container.streams.best("audio")
    if stream is None:
        what = "only " + ", ".join(sorted({s.type for s in container.streams})) if container.streams else "no stream"
        raise AssetError(
            "no_audio", f"{name} holds {what}", "drop it from the manifest, or point to the file with its sound"
        )
    if not isinstance(stream, AudioStream) or stream.codec_context is None:
        raise AssetError(
            "unsupported_codec", f"{name}: its audio codec has no decoder here", "convert it to FLAC or AAC first"
        )
    source = AudioSource(file, name, size, container, stream)
    if not 1 <= source.channels <= MAX_CHANNELS:
        raise AssetError(
            "unsupported_channels",
            f"{name} has {source.channels} channels; 1 to {MAX_CHANNELS} are supported",
            "split it into stems of at most 8 channels",
        )
    if not MIN_RATE <= source.rate <= MAX_RATE:
        raise AssetError(
            "unsupported_sample_rate",
            f"{name} has {source.rate} Hz; {MIN_RATE} to {MAX_RATE} are supported",
            "convert it to 48000 Hz first, or correct its header",
        )
    return source


def _cannot_open(file: BinaryIO, size: int, head: bytes, name: str, error: av.error.FFmpegError) -> AssetError:
    if head.count(0) == len(head):
        return corrupt(name, f"its first {len(head)} bytes are all zero")
    if head[4:8] == b"ftyp" and (missing := mp4_bytes_missing(file, size)) > 0:
        return truncated(name, f"{missing:,} bytes of its MP4 boxes are missing")
    return corrupt(name, f"no known media format could be opened ({error.strerror})")
