"""Media files of a manifest, read in processes that may die (see `operators.sandbox`): what stages call.

The functions with an underscore run there. They open the file themselves, so that a store that hangs is caught by the
same limits as a decoder that does; of the sound only the file's own samples come back, as resampling needs torch.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from operators import sandbox
from operators.reader import Excerpt, MediaInfo, probe, read_excerpt
from operators.sandbox import Limits
from pipeline.metrics import count
from pipeline.storage import Store, media_errors
from pipeline.uris import redact

if TYPE_CHECKING:
    from pipeline.config import JobConfig

# A large file may be read to its end (MP3 without a table of contents): at least this fast.
BYTES_PER_SECOND = 1 << 20


def limits_for(config: JobConfig, size_bytes: int | None) -> Limits:
    """Limits of one read of a file of so many bytes."""
    seconds = config.decode_seconds + (size_bytes or 0) / BYTES_PER_SECOND
    return Limits(seconds, int(config.decode_memory_gb * 2**30))


def probe_media(store: Store, uri: str, limits: Limits, name: str | None = None) -> MediaInfo:
    """`operators.reader.probe` of a manifest's file. Raises AssetError as that and `Store.open_media` do."""
    shown = name or redact(uri)
    store.locate_media(uri)
    return MediaInfo(**_in_sandbox(_probe, store, uri, shown, name=shown, limits=limits))


def decode_media(
    store: Store, uri: str, limits: Limits, *, start: int, stop: int, sample_rate: int, expected_seconds: float | None
) -> np.ndarray:
    """`operators.media.decode_range` of a manifest's file. Raises AssetError as that and `Store.open_media` do."""
    from operators.media import resample_excerpt

    shown = redact(uri)
    store.locate_media(uri)
    found = _in_sandbox(_read, store, uri, shown, start, stop, sample_rate, expected_seconds, name=shown, limits=limits)
    excerpt = Excerpt(found["samples"], found["first"], found["rate"])
    return resample_excerpt(excerpt, shown, start=start, stop=stop, sample_rate=sample_rate)


def masked_video(store: Store, uri: str, mask_uri: str, limits: Limits, **options: Any) -> bytes:
    """`operators.video.masked_frames` of two of a manifest's files, packed by `operators.frame_transport`."""
    for each in (uri, mask_uri):
        store.locate_media(each)
    shown = f"{redact(uri)} with its masks {redact(mask_uri)}"
    return bytes(_in_sandbox(_look, store, uri, mask_uri, options, name=shown, limits=limits)["frames"])


def _in_sandbox(function: Any, *args: Any, name: str, limits: Limits) -> dict[str, Any]:
    found = sandbox.call(function, *args, name=name, limits=limits)
    count("bytes_total", found.pop("bytes_read"), direction="read")  # what helpers count stays with them
    return found


def _probe(store: Store, uri: str, name: str) -> dict[str, Any]:
    with media_errors(uri), store.open_media(uri) as file:
        info = probe(file, name)
        return {**asdict(info), "bytes_read": _bytes_read(file)}


def _read(
    store: Store, uri: str, name: str, start: int, stop: int, sample_rate: int, expected_seconds: float | None
) -> dict[str, Any]:
    with media_errors(uri), store.open_media(uri) as file:
        excerpt = read_excerpt(
            file, name, start=start, stop=stop, sample_rate=sample_rate, expected_seconds=expected_seconds
        )
        return {**vars(excerpt), "bytes_read": _bytes_read(file)}


def _look(store: Store, uri: str, mask_uri: str, options: dict[str, Any]) -> dict[str, Any]:
    from operators.frame_transport import pack
    from operators.video import masked_frames

    with (
        media_errors(uri),
        media_errors(mask_uri),
        store.open_media(uri) as video,
        store.open_media(mask_uri) as mask,
    ):
        frames = pack(masked_frames(video, redact(uri), mask, redact(mask_uri), **options))
        return {"frames": frames, "bytes_read": _bytes_read(video) + _bytes_read(mask)}


def _bytes_read(file: Any) -> int:
    return int(file.bytes_read)
