"""Real video files for tests, with pictures and time stamps that the test chooses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

MILLISECOND = Fraction(1, 1000)
LOSSLESS = {"libx264rgb": {"qp": "0", "preset": "ultrafast", "bf": "2", "b-adapt": "0"}, "ffv1": {}}
SOUND_RATE = 8000


def counting_picture(index: int, height: int = 36, width: int = 64) -> np.ndarray:
    """A picture [H, W, 3] that tells its index by its level, over a texture; a bright square wanders about."""
    y, x = np.mgrid[:height, :width]
    picture = np.stack([(3 * x + 5 * y) % 60, (7 * x + y) % 60, np.full_like(x, index % 200)], axis=-1).astype(np.uint8)
    left = index % (width - 8)
    picture[4:12, left : left + 8, :2] = 250
    return picture


def write_video(
    path: Path,
    milliseconds: Sequence[int],
    picture: Callable[[int], np.ndarray] = counting_picture,
    *,
    codec: str = "libx264rgb",
    key_every: int = 8,
    sound: tuple[int, int] | None = None,
) -> Path:
    """One picture at each time stamp; `sound` (begins, ends), in milliseconds too, is a FLAC or AAC track of noise."""
    with av.open(str(path), "w") as container:
        first = picture(0)
        stream = container.add_stream(codec, rate=25, options=LOSSLESS.get(codec, {}))
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = {"libx264rgb": "rgb24", "ffv1": "bgr0", "png": "rgb24"}.get(codec, "yuv420p")
        stream.codec_context.gop_size = key_every
        stream.codec_context.time_base = stream.time_base = MILLISECOND
        packets = []
        noise = container.add_stream("aac" if path.suffix in (".mp4", ".ts") else "flac", SOUND_RATE) if sound else None
        for index, pts in enumerate(milliseconds):
            frame = av.VideoFrame.from_ndarray(picture(index), format="rgb24")
            frame.pts, frame.time_base = pts, MILLISECOND
            packets += stream.encode(frame)
        packets += stream.encode(None)
        if noise is not None and sound is not None:
            noise.layout = "mono"
            begins, ends = (at * SOUND_RATE // 1000 for at in sound)
            wave = np.random.default_rng(1).normal(0, 0.1, (1, ends - begins)).astype(np.float32)
            for at in range(0, wave.shape[1], 1024):
                block = av.AudioFrame.from_ndarray(wave[:, at : at + 1024], format="fltp", layout="mono")
                block.sample_rate, block.pts, block.time_base = SOUND_RATE, begins + at, Fraction(1, SOUND_RATE)
                packets += noise.encode(block)
            packets += noise.encode(None)
        for packet in sorted(packets, key=lambda p: float((p.dts or 0) * p.time_base)):
            container.mux(packet)
    return path
