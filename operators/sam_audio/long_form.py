"""Long recordings: multi-diffusion over fixed windows on an absolute frame grid.

At every solver step each window's velocity is computed alone and merged with its neighbours' by normalised soft masks
(SAM-Audio paper, long-form section; see `windows`). Noise goes by absolute frame, and the codec runs in pieces with
enough context (`long_codec`). With one evaluation, frames further than a window and the codec's context from an
excerpt's cut edges are those of the whole recording; each further evaluation reaches one window further, faintly.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import flow, long_codec
from .anchors import Anchor, align, anchor_ids, seconds_of_frame
from .conditions import Conditions
from .config import LongFormConfig, SolverConfig
from .long_codec import codec_reach
from .model import SAMAudio
from .spans import active_frames, span_frames
from .windows import Merge, Window, stack, windows_inside

# Frames (240 ms at 25 a second): a shorter run is taken for a false alarm when windows are left out. Our choice;
# the training data's activity (pauses count from 250 ms) works at the same scale.
SHORTEST_RUN = 6


@dataclass(frozen=True, eq=False)
class Excerpt:
    """A stretch of one recording and a prompt.

    key: noise and watermark depend on it and on absolute frames alone.
    waveform: [channels, samples] float32 at the model's rate, sample 0 at `start_frame * hop_length`. Excerpts that
    share the tensor itself are encoded once.
    total_frames: of the recording; None when the excerpt ends with it. anchors: absolute seconds.
    video: masked frames, one a latent frame of the excerpt: uint8 [T, 3, H, W], or an iterable of such groups, which
    is read once; excerpts that share the object itself share its features.
    active: bool [T], True where the sound is thought to be heard. Windows without such a frame are not integrated:
    there the target is silent and the residual is the mixture.
    """

    key: str
    waveform: Tensor
    description: str
    anchors: tuple[Anchor, ...] = ()
    start_frame: int = 0
    total_frames: int | None = None
    video: Tensor | Iterable[Tensor] | None = None
    active: Tensor | None = None


@dataclass(frozen=True, eq=False)
class LongStems:
    """target, residual: [channels, samples] on the CPU, as long as the excerpt's waveform.

    anchors: those used, predicted ones included. windows: inside the excerpt; skipped: of these, not integrated.
    """

    target: Tensor
    residual: Tensor
    anchors: tuple[Anchor, ...]
    windows: int
    skipped: int


@dataclass(frozen=True, eq=False)
class Encoded:
    """What excerpts have in common whatever their candidates: latents [T, C] and video features [T, V], by object."""

    latents: dict[int, Tensor]
    videos: dict[int, Tensor]


def exact_halo_frames(
    model: SAMAudio, fade_frames: int = 0, solver: SolverConfig | None = None, *, predict_spans: bool = False
) -> int:
    """Halo with which segments cut anywhere agree where they are joined, to 100 dB below the mixture or better.

    One window and the codec's reach do for one evaluation. With more, each hands what a missing window would have
    changed one window further, ever fainter: a second window of halo brought 8 evaluations from -47 to -105 dB.
    Predicted spans are merged over windows too, before they reach a window's anchors: one window more.
    """
    windows = 1 if flow.evaluations(solver or model.config.solver) == 1 else 2
    return (windows + predict_spans) * model.config.long_form.window + codec_reach(model) + fade_frames


def separate_long(
    model: SAMAudio,
    excerpts: Sequence[Excerpt],
    *,
    solver: SolverConfig | None = None,
    window_batch: int = 16,
    predict_spans: bool = False,
    skip_inactive: bool = False,
) -> list[LongStems]:
    """Stems of every excerpt.

    The released codec gives one channel, the band codec as many as the mixture has. `window_batch` windows, from any
    excerpts with any prompts, are evaluated in one call. Frames that no window inside the excerpt covers (only near a
    cut edge) hold the mixture. predict_spans: excerpts without anchors get those that the model's span predictor
    finds; skip_inactive: windows of these without one of at least 240 ms are not integrated. Raises ValueError for an
    excerpt that holds no window or contradicts itself.
    """
    encoded = encode(model, excerpts)
    if predict_spans:
        excerpts = with_predicted_spans(
            model, excerpts, encoded, window_batch=window_batch, skip_inactive=skip_inactive
        )
    latents = solve(model, excerpts, encoded, solver=solver, window_batch=window_batch)
    results = []
    for excerpt, z in zip(excerpts, latents, strict=True):
        stems, (windows, skipped) = decode(model, excerpt, z), window_counts(model, excerpt)
        results.append(LongStems(stems["target"], stems["residual"], excerpt.anchors, windows, skipped))
    return results


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
    if not windows_inside(start, end, total, long_form):
        raise ValueError(
            f"frames {start} to {end} of {total} hold no whole window of {min(long_form.window, total)} frames; "
            "read at least one window beyond the core on either side"
        )
    return start, end, total


@torch.inference_mode()
def encode(model: SAMAudio, excerpts: Sequence[Excerpt], known: Encoded | None = None) -> Encoded:
    """Codec latents and video features of excerpts, each distinct waveform and video once; `known` ones are kept."""
    encoded = known or Encoded({}, {})
    for excerpt in excerpts:
        start, end, _ = _span(model, excerpt)
        if id(excerpt.waveform) not in encoded.latents:
            encoded.latents[id(excerpt.waveform)] = long_codec.encode(model, excerpt.waveform, start)
        if excerpt.video is not None and id(excerpt.video) not in encoded.videos:
            groups = [excerpt.video] if isinstance(excerpt.video, Tensor) else excerpt.video
            features = torch.cat([model.encode_frames(group) for group in groups])
            if len(features) != end - start:
                raise ValueError(f"the video has {len(features)} frames for {end - start} latent frames; give one each")
            encoded.videos[id(excerpt.video)] = features
    return encoded


@torch.inference_mode()
def with_predicted_spans(
    model: SAMAudio,
    excerpts: Sequence[Excerpt],
    encoded: Encoded,
    *,
    window_batch: int = 16,
    skip_inactive: bool = False,
    threshold: float = 0.3,
) -> list[Excerpt]:
    """The excerpts with "+" anchors where the span predictor hears their descriptions.

    Those with anchors of their own, or nothing described, stay as they are. The predictor hears one window at a time,
    as it was trained on short clips; its logits are merged like velocities, so that spans do not depend on how the
    recording was cut. A frame is active when the sigmoid of its logit is over `threshold`.
    """
    open_ = [e for e in excerpts if not e.anchors and e.description.strip()]
    if not open_:
        return list(excerpts)
    predictor, codec = model.span_predictor, model.config.audio_codec
    windows, offsets, rows = _windows(model, open_)
    audio = torch.cat([encoded.latents[id(e.waveform)] for e in open_])

    def evaluate(batch: list[Window]) -> Tensor:
        descriptions = [open_[w.excerpt].description for w in batch]
        return predictor.logits(stack(audio, batch), None, descriptions)[..., None]

    logits = Merge(windows, rows, window_batch, model.device)(audio[:, :1].float(), evaluate)[:, 0]
    active = active_frames(logits, threshold).cpu()
    predicted = {}
    for excerpt, offset in zip(open_, offsets, strict=True):
        start, end, _ = _span(model, excerpt)
        mine = active[offset : offset + end - start]
        anchors: list[Anchor] = []
        for first, last in span_frames(mine):
            begin, stop = (seconds_of_frame(start + f, codec.sample_rate, codec.hop_length) for f in (first, last))
            anchors.append(("+", begin, stop))
        predicted[id(excerpt)] = replace(
            excerpt, anchors=tuple(anchors), active=_sustained(mine) if skip_inactive else excerpt.active
        )
    return [predicted.get(id(e), e) for e in excerpts]


@torch.inference_mode()
def solve(
    model: SAMAudio,
    excerpts: Sequence[Excerpt],
    encoded: Encoded,
    *,
    solver: SolverConfig | None = None,
    window_batch: int = 16,
    candidate: int = 0,
) -> list[Tensor]:
    """Latents [T, 2C] at t = 1 of every excerpt; each `candidate` has noise of its own."""
    if not excerpts:
        return []
    device = model.device
    audio = torch.cat([encoded.latents[id(e.waveform)].repeat(1, 2) for e in excerpts])  # [sum of T, 2C]
    windows, offsets, rows = _windows(model, excerpts)
    frames, noise = [], []
    for excerpt, offset in zip(excerpts, offsets, strict=True):
        start, end, total = _span(model, excerpt)
        frames.append(_project(model, excerpt, start, end, total, audio[offset : offset + end - start], encoded))
        key = flow.candidate_key(excerpt.key, candidate)
        noise.append(flow.noise(key, end - start, audio.shape[-1], start=start))
    constant = torch.cat(frames)
    features, text_mask = model.encode_text([excerpt.description for excerpt in excerpts])
    memory, lengths = model.memory_proj(features), text_mask.sum(1).tolist()
    merge = Merge(windows, rows, window_batch, device)

    def velocity(time: float, z: Tensor) -> Tensor:
        def evaluate(batch: list[Window]) -> Tensor:
            items = [w.excerpt for w in batch]
            longest = max(lengths[i] for i in items)
            conditions = Conditions(
                frames=stack(constant, batch),
                memory=memory[items, :longest],
                mixture=stack(audio, batch),
                memory_mask=None if all(lengths[i] == longest for i in items) else text_mask[items, :longest],
            )
            return model.evaluate(stack(z, batch), z.new_full((len(batch),), time), conditions)

        return merge(z, evaluate)

    z = flow.solve(velocity, torch.cat(noise).to(device), solver or model.config.solver)
    z = torch.where(merge.covered, z, audio)
    ends = [*offsets[1:], rows]
    return [z[offset:end] for offset, end in zip(offsets, ends, strict=True)]


@torch.inference_mode()
def decode(
    model: SAMAudio, excerpt: Excerpt, z: Tensor, stems: tuple[str, ...] = long_codec.STEMS
) -> dict[str, Tensor]:
    """Samples [channels, samples] on the CPU of the stems asked for, from an excerpt's latents."""
    start, end, total = _span(model, excerpt)
    covered = None
    if excerpt.active is not None:
        covered = torch.zeros(end - start, dtype=torch.bool)
        inside = windows_inside(start, end, total, model.config.long_form)
        for first, length in inside:
            if _is_active(excerpt, first - start, length):
                covered[first - start : first - start + length] = True
        # Near a cut edge, where no window lies inside, there is nothing to judge by either.
        covered[: inside[0][0] - start] = covered[inside[-1][0] + inside[-1][1] - start :] = False
    return long_codec.decode(model, z, excerpt.waveform, excerpt.key, start, stems=stems, covered=covered)


def window_counts(model: SAMAudio, excerpt: Excerpt) -> tuple[int, int]:
    """How many windows lie inside an excerpt, and how many of these are skipped."""
    start, end, total = _span(model, excerpt)
    inside = windows_inside(start, end, total, model.config.long_form)
    return len(inside), sum(not _is_active(excerpt, first - start, length) for first, length in inside)


def _span(model: SAMAudio, excerpt: Excerpt) -> tuple[int, int, int]:
    return check(excerpt, model.config.audio_codec.hop_length, model.config.long_form)


def _sustained(active: Tensor) -> Tensor:
    """Without runs that are too short to be asked for; those at either end are kept, as they may go on outside."""
    kept = active.clone()
    for start, end in span_frames(active):
        if end - start < SHORTEST_RUN and start > 0 and end < len(active):
            kept[start:end] = False
    return kept


def _is_active(excerpt: Excerpt, first: int, length: int) -> bool:
    return excerpt.active is None or bool(excerpt.active[first : first + length].any())


def _windows(model: SAMAudio, excerpts: Sequence[Excerpt]) -> tuple[list[Window], list[int], int]:
    """Windows to integrate, where each excerpt starts in the concatenated states, and how many rows these have."""
    windows: list[Window] = []
    offsets, offset = [], 0
    for i, excerpt in enumerate(excerpts):
        start, end, total = _span(model, excerpt)
        windows += [
            Window(i, offset + first - start, length)
            for first, length in windows_inside(start, end, total, model.config.long_form)
            if _is_active(excerpt, first - start, length)
        ]
        offsets.append(offset)
        offset += end - start
    return windows, offsets, offset


def _project(
    model: SAMAudio, excerpt: Excerpt, start: int, end: int, total: int, mixture: Tensor, encoded: Encoded
) -> Tensor:
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
    video = None if excerpt.video is None else encoded.videos[id(excerpt.video)].transpose(0, 1)[None]
    conditions = model.condition(
        mixture[None],
        masked_video_features=model.no_video(1) if video is None else video,
        anchor_ids=torch.tensor([anchor_ids(excerpt.anchors)], device=model.device),
        anchor_alignment=tokens.to(model.device)[None],
    )
    return conditions.frames[0]
