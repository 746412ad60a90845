"""How loud a stem is: integrated loudness and true peak, measured while its samples pass by.

Loudness is FFmpeg's EBU R 128 meter (ITU-R BS.1770, gated). The true peak is measured here, as BS.1770 annex 2 has it,
because the meter's own costs three times as much and rounds to 0.001 of full scale: nothing is left of a quiet stem.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import av
import av.error
import av.filter
import numpy as np
from av.audio.frame import AudioFrame
from numpy.lib.stride_tricks import sliding_window_view

from operators.encode import LAYOUTS
from operators.resample import polyphase

# The meter says so of anything quieter, silence included: its absolute gate.
GATE_LUFS = -70.0
PEAK_BLOCK = 1024
BLOCKS_AT_A_TIME = 64
METER_BLOCK = 1 << 16


@dataclass(frozen=True)
class Loudness:
    """Of a whole stem. None is silence: under the gate of -70 LUFS or shorter than 0.4 s; no sample but zeros."""

    integrated_lufs: float | None
    true_peak_dbtp: float | None


class LoudnessMeter:
    """Takes a stem piece by piece: `add(samples)`, then `close()`. Memory does not grow with its length.

    Channels are weighted by the layout that a stem file of so many channels has (`encode.LAYOUTS`): surround channels
    count 1.5 dB more, the LFE not at all, and mono is one channel, not two.
    """

    def __init__(self, sample_rate: int, channels: int) -> None:
        self._rate, self._layout = sample_rate, LAYOUTS[channels]
        self._graph = av.filter.Graph()
        self._source = self._graph.add_abuffer(
            sample_rate=sample_rate, format="flt", layout=self._layout, time_base=Fraction(1, sample_rate)
        )
        meter = self._graph.add("ebur128", "metadata=1:framelog=quiet")
        self._sink = self._graph.add("abuffersink")
        self._source.link_to(meter)
        meter.link_to(self._sink)
        self._graph.configure()
        self._position = 0
        self._integrated = GATE_LUFS
        self._peak = TruePeak(sample_rate, channels)

    def add(self, samples: np.ndarray) -> None:
        """Take the next samples `[channels, n]` float32."""
        self._peak.add(samples)
        for begin in range(0, samples.shape[1], METER_BLOCK):
            interleaved = np.ascontiguousarray(samples[:, begin : begin + METER_BLOCK].T, dtype=np.float32)
            frame = AudioFrame.from_ndarray(interleaved.reshape(1, -1), format="flt", layout=self._layout)
            frame.sample_rate = self._rate
            frame.pts = self._position
            self._position += len(interleaved)
            self._source.push(frame)
            self._read()

    def close(self) -> Loudness:
        """The result; nothing can be added afterwards."""
        self._source.push(None)
        self._read()
        peak = self._peak.close()
        return Loudness(
            integrated_lufs=self._integrated if self._integrated > GATE_LUFS else None,
            true_peak_dbtp=20 * math.log10(peak) if peak > 0 else None,
        )

    def _read(self) -> None:
        while True:
            try:
                frame = self._sink.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            # The frame that ends the stem is short and says nothing.
            self._integrated = float(frame.metadata.get("lavfi.r128.I", self._integrated))


class TruePeak:
    """Largest absolute value of the waveform between the samples as well: at 4 times the rate, 2 from 96 kHz on.

    Only stretches whose samples could reach beyond the peak so far are interpolated, which are few.
    """

    def __init__(self, sample_rate: int, channels: int) -> None:
        factor = 4 if sample_rate < 96_000 else 2 if sample_rate < 192_000 else 1
        self._side, weights = polyphase(factor) if factor > 1 else (0, np.ones((1, 1), np.float32))
        self._weights = weights.T  # [taps, factor]
        self._reach = float(np.abs(weights).sum(axis=1).max())
        self._held = np.zeros((channels, self._side), np.float32)  # silence lies before the stem
        self._peak = 0.0

    def add(self, samples: np.ndarray) -> None:
        """Take the next samples `[channels, n]` float32."""
        waiting = np.concatenate([self._held, samples], axis=1)
        blocks = (waiting.shape[1] - 2 * self._side) // PEAK_BLOCK
        if blocks < 1:
            self._held = waiting
            return
        self._held = waiting[:, blocks * PEAK_BLOCK :].copy()
        windows = sliding_window_view(waiting, PEAK_BLOCK + 2 * self._side, axis=1)[:, ::PEAK_BLOCK][:, :blocks]
        highest = np.abs(windows).max(-1).ravel()  # [channels * blocks]
        self._peak = max(self._peak, float(highest.max()))
        order = highest.argsort()[::-1]
        for begin in range(0, len(order), BLOCKS_AT_A_TIME):
            index = order[begin : begin + BLOCKS_AT_A_TIME]
            if float(highest[index[0]]) * self._reach <= self._peak:
                break  # the rest are lower still
            chosen = windows[index // blocks, index % blocks]  # [<= BLOCKS_AT_A_TIME, PEAK_BLOCK + 2 * side]
            between = sliding_window_view(chosen, 2 * self._side + 1, axis=1) @ self._weights
            self._peak = max(self._peak, float(np.abs(between).max()))

    def close(self) -> float:
        """The peak; 1 is full scale."""
        # Silence lies after the stem, too: enough to fill the last block.
        self.add(np.zeros((self._held.shape[0], PEAK_BLOCK + 2 * self._side), np.float32))
        return self._peak
