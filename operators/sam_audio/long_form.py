"""Long recordings: multi-diffusion over fixed windows on an absolute frame grid.

At every solver step each window's velocity is computed alone and merged with its neighbours' by normalised soft masks
(SAM-Audio paper, long-form section). Windows start at 0, S, 2S, ... of the *recording*, the last one moved back to end
with it; a recording shorter than a window is one window of its own length. Nothing depends on how a recording was cut
apart: an excerpt uses exactly those windows that lie fully inside it, noise goes by absolute frame, and the codec runs
in pieces with enough context. With one evaluation, frames further than a window and the codec's context from an
excerpt's cut edges are those of the whole recording; each further evaluation reaches one window further, faintly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import torch
from torch import Tensor

from . import flow
from .anchors import Anchor, align, anchor_ids
from .band_codec import BandCodec
from .conditions import Conditions
from .config import LongFormConfig, SolverConfig
from .model import SAMAudio

# Pieces of 10 s for the band codec, whose spectra are larger than its audio.
PIECE_FRAMES = 250
# The released codec bounds its own pieces and carries the watermark's state through them. Its measured reach either
# side of a frame is 6 (encoder) and 7.2 frames (decoder).
DACVAE_REACH = 8


@dataclass(frozen=True, eq=False)
class Excerpt:
    """A stretch of one recording and a prompt.

    key: noise and watermark depend on it and on absolute frames alone.
    waveform: [channels, samples] float32 at the model's rate, sample 0 at `start_frame * hop_length`. Excerpts that
    share the tensor itself are encoded once.
    total_frames: of the recording; None when the excerpt ends with it. anchors: absolute seconds.
    """

    key: str
    waveform: Tensor
    description: str
    anchors: tuple[Anchor, ...] = ()
    start_frame: int = 0
    total_frames: int | None = None


@dataclass(frozen=True)
class _Window:
    excerpt: int
    start: int  # row of the concatenated states
    frames: int


def window_starts(total_frames: int, long_form: LongFormConfig) -> list[int]:
    """First frames of a recording's windows."""
    last = total_frames - long_form.window
    return [0] if last <= 0 else [*range(0, last, long_form.stride), last]


def soft_mask(frames: int) -> Tensor:
    """Triangle [frames], positive everywhere, so that a frame which one window covers alone keeps its value."""
    rise = torch.arange(frames) + 0.5
    return torch.minimum(rise, rise.flip(0))


def codec_reach(model: SAMAudio) -> int:
    """Frames either side of a frame that its latents, or its samples, depend on."""
    codec = model.audio_codec
    return codec.context_frames if isinstance(codec, BandCodec) else DACVAE_REACH


def exact_halo_frames(model: SAMAudio, fade_frames: int = 0, solver: SolverConfig | None = None) -> int:
    """Halo with which segments cut anywhere agree where they are joined, to 100 dB below the mixture or better.

    One window and the codec's reach do for one evaluation. With more, each hands what a missing window would have
    changed one window further, ever fainter: a second window of halo brought 8 evaluations from -47 to -105 dB.
    """
    windows = 1 if flow.evaluations(solver or model.config.solver) == 1 else 2
    return windows * model.config.long_form.window + codec_reach(model) + fade_frames


@torch.inference_mode()
def separate_long(
    model: SAMAudio,
    excerpts: Sequence[Excerpt],
    *,
    solver: SolverConfig | None = None,
    window_batch: int = 16,
) -> list[Tensor]:
    """Stems [2, channels, samples] (target, residual) of every excerpt, as long as its waveform, on the CPU.

    The released codec gives one channel, the band codec as many as the mixture has. `window_batch` windows, from any
    excerpts with any prompts, are evaluated in one call. Frames that no window inside the excerpt covers (only near a
    cut edge) hold the mixture. Raises ValueError for an excerpt that holds no window or contradicts itself.
    """
    if not excerpts:
        return []
    hop = model.config.audio_codec.hop_length
    spans = [check(excerpt, hop, model.config.long_form) for excerpt in excerpts]
    encoded: dict[int, Tensor] = {}
    for excerpt, (start, end, _) in zip(excerpts, spans, strict=True):
        if id(excerpt.waveform) not in encoded:
            encoded[id(excerpt.waveform)] = _encode(model, excerpt.waveform, start, end)
    mixture = [encoded[id(excerpt.waveform)].repeat(1, 2) for excerpt in excerpts]  # [T, 2C]

    z, offsets = _solve(model, excerpts, spans, mixture, solver or model.config.solver, window_batch)
    return [
        _decode(model, excerpt, start, z[offset : offset + end - start])
        for excerpt, (start, end, _), offset in zip(excerpts, spans, offsets, strict=True)
    ]


def check(excerpt: Excerpt, hop_length: int, long_form: LongFormConfig) -> tuple[int, int, int]:
    """Start and end frame of an excerpt and its recording's total; ValueError when they do not fit together."""
    if excerpt.waveform.ndim != 2 or 0 in excerpt.waveform.shape:
        raise ValueError(f"waveform is [channels, samples] and not empty, got {list(excerpt.waveform.shape)}")
    samples = excerpt.waveform.shape[-1]
    start, end = excerpt.start_frame, excerpt.start_frame - (-samples // hop_length)
    total = end if excerpt.total_frames is None else excerpt.total_frames
    if start < 0 or end > total:
        raise ValueError(f"frames {start} to {end} are not inside a recording of {total} frames")
    if end < total and samples % hop_length:
        raise ValueError(
            f"{samples} samples are no whole number of frames ({hop_length} samples each), "
            f"and frame {end} is not the recording's end ({total})"
        )
    window = min(long_form.window, total)
    if not any(start <= first and first + window <= end for first in window_starts(total, long_form)):
        raise ValueError(
            f"frames {start} to {end} of {total} hold no whole window of {window} frames; "
            "read at least one window beyond the core on either side"
        )
    return start, end, total


def _solve(
    model: SAMAudio,
    excerpts: Sequence[Excerpt],
    spans: Sequence[tuple[int, int, int]],
    mixture: Sequence[Tensor],
    solver: SolverConfig,
    window_batch: int,
) -> tuple[Tensor, list[int]]:
    """Latents at t = 1, all excerpts' frames in one [sum of T, 2C], and where each excerpt starts in it."""
    device, long_form = model.device, model.config.long_form
    frames, noise, windows, offsets, offset = [], [], [], [], 0
    for i, (excerpt, (start, end, total)) in enumerate(zip(excerpts, spans, strict=True)):
        frames.append(_project(model, excerpt, start, end, total, mixture[i]))
        noise.append(flow.noise(excerpt.key, end - start, mixture[i].shape[-1], start=start))
        length = min(long_form.window, total)
        windows += [
            _Window(i, offset + first - start, length)
            for first in window_starts(total, long_form)
            if start <= first and first + length <= end
        ]
        offsets.append(offset)
        offset += end - start
    constant, audio = torch.cat(frames), torch.cat(list(mixture))

    features, text_mask = model.encode_text([excerpt.description for excerpt in excerpts])
    memory, lengths = model.memory_proj(features), text_mask.sum(1).tolist()

    masks = {n: soft_mask(n).to(device)[:, None] for n in {w.frames for w in windows}}
    weight = torch.zeros(offset, 1, device=device)
    for w in windows:
        weight[w.start : w.start + w.frames] += masks[w.frames]
    weight.clamp_min_(1e-6)
    batches = list(_batches(windows, window_batch))

    def velocity(time: float, z: Tensor) -> Tensor:
        merged = torch.zeros_like(z)
        for batch in batches:
            rows = [w.excerpt for w in batch]
            longest = max(lengths[i] for i in rows)
            conditions = Conditions(
                frames=_stack(constant, batch),
                memory=memory[rows, :longest],
                mixture=_stack(audio, batch),
                memory_mask=None if all(lengths[i] == longest for i in rows) else text_mask[rows, :longest],
            )
            times = z.new_full((len(batch),), time)
            out = model.evaluate(_stack(z, batch), times, conditions) * masks[batch[0].frames]
            # One window after the other: a scatter would add overlapping windows in any order.
            for w, v in zip(batch, out, strict=True):
                merged[w.start : w.start + w.frames] += v
        return merged / weight

    z = flow.solve(velocity, torch.cat(noise).to(device), solver)
    covered = weight > 1e-6
    return torch.where(covered, z, audio), offsets


def _project(model: SAMAudio, excerpt: Excerpt, start: int, end: int, total: int, mixture: Tensor) -> Tensor:
    """The constant part of the network's input on frames [start, end): [T, D]."""
    codec = model.config.audio_codec
    tokens = align(
        excerpt.anchors,
        total,
        sample_rate=codec.sample_rate,
        hop_length=codec.hop_length,
        start=start,
        stop=end,
    )
    conditions = model.condition(
        mixture[None],
        masked_video_features=model.no_video(1),
        anchor_ids=torch.tensor([anchor_ids(excerpt.anchors)], device=model.device),
        anchor_alignment=tokens.to(model.device)[None],
    )
    return conditions.frames[0]


def _batches(windows: Sequence[_Window], size: int) -> Iterator[list[_Window]]:
    """Windows of equal length in groups of at most `size`; nothing is ever padded."""
    for _, group in groupby(sorted(windows, key=lambda w: w.frames), key=lambda w: w.frames):
        same = list(group)
        yield from (same[i : i + size] for i in range(0, len(same), size))


def _stack(rows: Tensor, windows: Sequence[_Window]) -> Tensor:
    return torch.stack([rows[w.start : w.start + w.frames] for w in windows])


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


def _encode(model: SAMAudio, waveform: Tensor, start: int, end: int) -> Tensor:
    """Latents [T, C] of the waveform's mono mix."""
    hop = model.config.audio_codec.hop_length
    latents = []
    for low, first, last, high in _pieces(model, start, end):
        mono = waveform[:, (low - start) * hop : (high - start) * hop].to(model.device).mean(0)
        piece = model.audio_codec.encode(mono[None, None])[0].float()  # [C, T]
        latents.append(piece[:, first - low : last - low])
    return torch.cat(latents, dim=1).transpose(0, 1)


def _decode(model: SAMAudio, excerpt: Excerpt, start: int, z: Tensor) -> Tensor:
    """Stems [2, channels, samples] of latents z [T, 2C]."""
    hop, samples = model.config.audio_codec.hop_length, excerpt.waveform.shape[-1]
    latents = z.transpose(0, 1).unflatten(0, (2, -1))  # [2, C, T]
    # The same bits for every piece of every excerpt of this item.
    message = (flow.noise(f"{excerpt.key}#watermark", 2, 16) > 0).float()
    out: Tensor | None = None
    for low, first, last, high in _pieces(model, start, start + len(z)):
        mixture = excerpt.waveform[:, (low - start) * hop : (high - start) * hop].to(model.device)
        stems = model.audio_codec.decode_stems(
            latents[None, ..., low - start : high - start],
            mixture[None],
            message=message.to(model.device),
            n_samples=mixture.shape[-1],
        )[0]
        if out is None:
            out = torch.empty(2, stems.shape[1], samples)
        kept = stems[..., (first - low) * hop : (last - low) * hop]
        begin = (first - start) * hop
        out[..., begin : begin + kept.shape[-1]] = kept.cpu()
    assert out is not None  # an excerpt has at least one frame
    return out
