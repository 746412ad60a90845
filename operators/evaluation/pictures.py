"""Sound for a page: spectrogram pictures as PNG, players' audio as MP3, both as data URIs."""

from __future__ import annotations

import base64
import io
from fractions import Fraction
from typing import Any, cast

import av
import numpy as np

ROWS, COLUMNS = 128, 320
LOWEST_HZ = 60.0
RANGE_DB = 70.0
_N_FFT = 2048
MP3_BITS_PER_SECOND = 80_000
# A dark-to-light ramp of even steps in lightness, near to matplotlib's "inferno".
_RAMP = np.array(
    [
        (0.0, 6, 4, 22), (0.2, 58, 12, 94), (0.4, 135, 32, 107), (0.6, 208, 67, 68), (0.8, 247, 139, 26),
        (1.0, 250, 250, 170),
    ]
)  # fmt: skip


def spectrogram(wave: np.ndarray, sample_rate: int) -> np.ndarray:
    """Levels in dB [ROWS, COLUMNS] of a mono wave: log frequency from LOWEST_HZ (last row) to half the rate (first)."""
    hop = max(1, len(wave) // COLUMNS)
    padded = np.pad(wave.astype(np.float32), (_N_FFT // 2, _N_FFT // 2 + hop))
    starts = np.arange(COLUMNS) * hop
    starts = starts[starts + _N_FFT <= len(padded)]
    window = np.hanning(_N_FFT).astype(np.float32)
    frames = np.stack([padded[s : s + _N_FFT] for s in starts]) * window
    power = np.square(np.abs(np.fft.rfft(frames, axis=1)) / window.sum() * 2)  # [columns, bins]
    edges = np.geomspace(LOWEST_HZ, sample_rate / 2, ROWS + 1) / (sample_rate / _N_FFT)
    centres = np.sqrt(edges[:-1] * edges[1:])
    bins = np.arange(power.shape[1])
    # Bands narrower than a bin are interpolated, wider ones averaged.
    total = np.concatenate([np.zeros((len(power), 1)), np.cumsum(power, axis=1)], axis=1)
    rows = np.empty((ROWS, len(power)), np.float32)
    for row in range(ROWS):
        low, high = int(np.ceil(edges[row])), int(np.ceil(edges[row + 1]))
        if high > low:
            rows[row] = (total[:, high] - total[:, low]) / (high - low)
        else:
            left = int(centres[row])
            share = centres[row] - bins[left]
            rows[row] = (1 - share) * power[:, left] + share * power[:, min(left + 1, bins[-1])]
    return 10 * np.log10(np.maximum(rows[::-1], 1e-14))


def picture(levels: np.ndarray, top_db: float) -> str:
    """A PNG of levels [rows, columns]: from `top_db` (light) down to RANGE_DB below it (dark)."""
    index = np.clip(((levels - top_db) / RANGE_DB + 1) * 255, 0, 255).astype(np.uint8)
    palette = np.full((256, 4), 255, np.uint8)  # alpha, red, green, blue: a third of the bytes of full colour
    for channel in (1, 2, 3):
        palette[:, channel] = np.interp(np.linspace(0, 1, 256), _RAMP[:, 0], _RAMP[:, channel]).round()
    # PyAV's stubs leave out that pal8 is a pair.
    frame = av.VideoFrame.from_ndarray(cast(Any, (np.ascontiguousarray(index), palette)), format="pal8")
    encoder = av.CodecContext.create("png", "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, "pal8"
    encoder.time_base = Fraction(1, 1)
    data = b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])
    return _uri("image/png", data)


def player(wave: np.ndarray, sample_rate: int) -> str:
    """Mono audio as MP3, which every browser plays. Louder than full scale is turned down as a whole."""
    peak = float(np.abs(wave).max(initial=0.0))
    wave = wave / peak if peak > 1 else wave
    out = io.BytesIO()
    with av.open(out, "w", format="mp3") as container:
        stream = container.add_stream("libmp3lame", rate=sample_rate, layout="mono")
        stream.bit_rate = MP3_BITS_PER_SECOND
        stream.codec_context.options = {"compression_level": "7"}  # a page has dozens: twice as fast, as good to hear
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(wave, dtype=np.float32)[None], format="fltp", layout="mono"
        )
        frame.sample_rate = sample_rate
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return _uri("audio/mpeg", out.getvalue())


def frequency_ticks(sample_rate: int) -> list[tuple[str, float]]:
    """(label, height from the top as a share) of round frequencies."""
    top = sample_rate / 2
    scale = np.log(top / LOWEST_HZ)
    return [
        (text, float(np.log(top / hz) / scale))
        for text, hz in (("100 Hz", 100.0), ("1 kHz", 1000.0), ("10 kHz", 10_000.0))
        if LOWEST_HZ < hz < top
    ]


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
