"""The codec on long excerpts, in pieces of bounded size, and silence where nothing was separated."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import flow
from .band_codec import BandCodec
from .spans import span_frames

if TYPE_CHECKING:
    from .model import SAMAudio

# Pieces of 10 s for the band codec, whose spectra are larger than its audio.
PIECE_FRAMES = 250
# The released codec bounds its own pieces and carries the watermark's state through them. Its measured reach either
# side of a frame is 6 (encoder) and 7.2 frames (decoder).
DACVAE_REACH = 8

STEMS = ("target", "residual")


def codec_reach(model: SAMAudio) -> int:
    """Frames either side of a frame that its latents, or its samples, depend on."""
    codec = model.audio_codec
    return codec.context_frames if isinstance(codec, BandCodec) else DACVAE_REACH


def _pieces(model: SAMAudio, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Codec pieces (low, first, last, high): frames first..last are kept of low..high.

    Cut at absolute frames, so that different excerpts of a recording use the same pieces.
    """
    codec = model.audio_codec
    if not isinstance(codec, BandCodec):
        yield start, start, end, end
        return
    context = codec.context_frames
    cuts = [start, *range(start // PIECE_FRAMES * PIECE_FRAMES + PIECE_FRAMES, end, PIECE_FRAMES), end]
    for first, last in pairwise(cuts):
        yield max(first - context, start), first, last, min(last + context, end)


def encode(model: SAMAudio, waveform: Tensor, start: int) -> Tensor:
    """Latents [T, C] of the mono mix of `waveform` [channels, samples], whose first frame is frame `start`."""
    hop = model.config.audio_codec.hop_length
    latents = []
    for low, first, last, high in _pieces(model, start, start - (-waveform.shape[-1] // hop)):
        mono = waveform[:, (low - start) * hop : (high - start) * hop].to(model.device).mean(0)
        piece = model.audio_codec.encode(mono[None, None])[0].float()  # [C, T]
        latents.append(piece[:, first - low : last - low])
    return torch.cat(latents, dim=1).transpose(0, 1)


def decode(
    model: SAMAudio,
    z: Tensor,
    waveform: Tensor,
    key: str,
    start: int,
    *,
    stems: tuple[str, ...] = STEMS,
    covered: Tensor | None = None,
) -> dict[str, Tensor]:
    """Samples [channels, samples] on the CPU of the stems asked for, from latents z [T, 2C] at t = 1.

    waveform [channels, samples] is the mixture and `start` its first frame; `key` makes the watermark's message.
    covered: bool [T]; where it is False nothing was separated: the target is silent and the residual is the mixture
    (of one channel when the codec makes one), with a ramp of a frame inside what is covered.
    """
    hop, samples = model.config.audio_codec.hop_length, waveform.shape[-1]
    # The same bits for every piece of every excerpt of this item.
    message = (flow.noise(f"{key}#watermark", 2, 16) > 0).float().to(model.device)
    whole = covered is None or bool(covered.all())
    runs = [(0, len(z))] if whole else span_frames(covered)  # type: ignore[arg-type]
    out: dict[str, Tensor] = {}
    for first, last in runs:
        wave = waveform[:, first * hop : last * hop]
        made = _decode_run(model, z[first:last], wave, message, start + first, stems)
        if not out:
            shape = (next(iter(made.values())).shape[0], samples)
            out = {name: torch.zeros(shape) for name in stems}
        for name, part in made.items():
            out[name][:, first * hop : first * hop + part.shape[-1]] = part
    if whole:
        return out
    channels = next(iter(out.values())).shape[0] if out else _channels(model, waveform)
    mixture = waveform if channels == waveform.shape[0] else waveform.mean(0, keepdim=True)
    gain = _gain(covered, hop, samples)  # type: ignore[arg-type]
    silent = {"target": torch.zeros(channels, samples), "residual": mixture}
    return {name: silent[name] + gain * (out[name] - silent[name]) if out else silent[name].clone() for name in stems}


def _channels(model: SAMAudio, waveform: Tensor) -> int:
    return waveform.shape[0] if isinstance(model.audio_codec, BandCodec) else 1


def _decode_run(
    model: SAMAudio, z: Tensor, waveform: Tensor, message: Tensor, start: int, stems: tuple[str, ...]
) -> dict[str, Tensor]:
    hop, samples = model.config.audio_codec.hop_length, waveform.shape[-1]
    latents = z.transpose(0, 1).unflatten(0, (2, -1))  # [2, C, T]
    # The band codec needs both stems for its gains; the released one decodes only what is asked for.
    rows = list(range(2)) if isinstance(model.audio_codec, BandCodec) else [STEMS.index(name) for name in stems]
    out: Tensor | None = None
    for low, first, last, high in _pieces(model, start, start + len(z)):
        mixture = waveform[:, (low - start) * hop : (high - start) * hop].to(model.device)
        made = model.audio_codec.decode_stems(
            latents[None, rows, :, low - start : high - start],
            mixture[None],
            message=message[rows],
            n_samples=mixture.shape[-1],
        )[0]
        if out is None:
            out = torch.empty(len(rows), made.shape[1], samples)
        kept = made[..., (first - low) * hop : (last - low) * hop]
        begin = (first - start) * hop
        out[..., begin : begin + kept.shape[-1]] = kept.cpu()
    assert out is not None  # a run has at least one frame
    return {name: out[rows.index(STEMS.index(name))] for name in stems}


def _gain(covered: Tensor, hop: int, samples: int) -> Tensor:
    """1 where something was separated, 0 elsewhere, [samples]; the ramp lies in the first and last covered frame."""
    gain = covered.float().repeat_interleave(hop)
    ramp = (torch.arange(hop) + 0.5) / hop
    for first, last in span_frames(covered):
        if first > 0:
            gain[first * hop : (first + 1) * hop] = ramp
        if last < len(covered):
            gain[(last - 1) * hop : last * hop] *= ramp.flip(0)
    return gain[:samples]
