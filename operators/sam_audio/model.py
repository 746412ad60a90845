"""SAM-Audio: latents of a mixture, a description, anchors and a masked video to latents of target and residual.

Source: facebookresearch/sam-audio, `sam_audio/model/model.py` (68b48d4); state-dict keys are the reference's.
Shapes: B recordings, K candidates each, T latent frames, C codec channels, D model width, L text tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import checkpoint, flow
from .anchors import EmbedAnchors
from .conditions import AlignMaskedVideo, Conditions, TextEncoder, TextFeatures
from .config import BandCodecConfig, SAMAudioConfig, SolverConfig
from .dit import DiT, sinusoid
from .processor import Batch
from .vision import VisionEncoder

# Called with extracted_audio, input_audio, descriptions, videos, sample_rate; returns scores [B, K].
Ranker = Callable[..., Tensor]


@dataclass
class SeparationResult:
    """Lists of 1-D tensors, one a recording: frames * hop_length samples, so up to hop_length - 1 more than it had."""

    target: list[Tensor]
    residual: list[Tensor]
    noise: Tensor  # [B * K, T, 2C]


class SAMAudio(nn.Module):
    """The separator. `text_encoder` replaces the one the configuration names; neither is part of the state dict."""

    def __init__(self, config: SAMAudioConfig, *, text_encoder: TextEncoder | None = None) -> None:
        super().__init__()
        self.config = config
        dim = config.transformer.dim
        self.audio_codec = _codec(config)
        if config.vision_encoder is not None:
            self.vision_encoder = VisionEncoder(config.vision_encoder)
            self.align_masked_video = AlignMaskedVideo(config.vision_encoder.dim, dim)
        self.transformer = DiT(config.transformer)
        self.proj = nn.Linear(config.in_channels, dim)
        self.embed_anchors = EmbedAnchors(config.num_anchors, config.anchor_embedding_dim, dim)
        self.memory_proj = nn.Linear(config.text_encoder.dim, dim)
        self._text_features = TextFeatures(config.text_encoder, text_encoder)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        device: torch.device | str = "cpu",
        revision: str | None = None,
        text_encoder: TextEncoder | None = None,
        **overrides: Any,
    ) -> SAMAudio:
        """Load "tiny" (shipped), a local folder, an fsspec URL or a hub name; in eval mode.

        `overrides` replace top-level entries of the configuration. Raises CheckpointError.
        """
        return checkpoint.load(
            name_or_path,
            lambda config: cls(config, text_encoder=text_encoder),
            device=device,
            revision=revision,
            overrides=overrides,
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`, which `from_pretrained` reads."""
        checkpoint.save(self, folder)

    @property
    def device(self) -> torch.device:
        return self.proj.weight.device

    @property
    def sample_rate(self) -> int:
        return self.config.audio_codec.sample_rate

    @property
    def text_encoder(self) -> TextEncoder:
        """The text encoder, built when first used and moved to the model's device."""
        return self._text_features.encoder(self.device)

    def encode_text(self, descriptions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Features [B, L, dim] and mask [B, L] (True = token) of descriptions; each is encoded once and kept."""
        return self._text_features(descriptions, self.proj.weight)

    def no_video(self, batch: int) -> Tensor | None:
        """Features [B, V, 1] that stand for an absent video: zeros, which add a constant to every frame."""
        if self.config.vision_encoder is None:
            return None
        return self.proj.weight.new_zeros(batch, self.config.vision_encoder.dim, 1)

    def condition(
        self,
        audio_features: Tensor,
        *,
        text_features: Tensor | None = None,
        text_mask: Tensor | None = None,
        masked_video_features: Tensor | None = None,
        anchor_ids: Tensor | None = None,
        anchor_alignment: Tensor | None = None,
        audio_pad_mask: Tensor | None = None,
    ) -> Conditions:
        """Project everything that stays the same over a solve. Shapes as in `velocity`."""
        weight = self.proj.weight
        stems = audio_features.shape[-1]
        # The input is [noisy, zeros, mixture] along channels: only the last third is constant and not zero.
        frames = F.linear(audio_features.to(weight), weight[:, 2 * stems :], self.proj.bias)
        if masked_video_features is not None:
            if self.config.vision_encoder is None:
                raise ValueError("this model takes no video: its config has no vision_encoder")
            frames = frames + self.align_masked_video(masked_video_features.to(weight))
        if anchor_alignment is not None:
            if anchor_ids is None:
                raise ValueError("anchor_alignment points into anchor_ids: give both")
            frames = frames + self.embed_anchors(anchor_ids.gather(1, anchor_alignment))
        if text_features is None:
            memory, text_mask = frames.new_zeros(len(frames), 1, frames.shape[-1]), None
        else:
            memory = self.memory_proj(text_features.to(weight))
        return Conditions(frames, memory, audio_features, text_mask, audio_pad_mask)

    def evaluate(self, z: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        """Velocity [B, T, 2C] float32 at state `z` [B, T, 2C] and times [B] in 0..1."""
        weight = self.proj.weight
        stems = z.shape[-1]
        x = conditions.frames + F.linear(z.to(weight), weight[:, :stems])
        memory = conditions.memory + sinusoid(time, x.shape[-1]).to(weight)[:, None]
        out = self.transformer(
            x, time, memory=memory, padding_mask=conditions.padding_mask, memory_mask=conditions.memory_mask
        ).float()
        if self.config.mixture_skip:
            out = out + conditions.mixture
        if self.config.prediction == "x":
            out = (out - z) / (1 - time)[:, None, None].clamp_min(1e-6)
        return cast(Tensor, out)

    def velocity(
        self,
        noisy_audio: Tensor,
        audio_features: Tensor,
        text_features: Tensor | None,
        time: Tensor,
        masked_video_features: Tensor | None = None,
        text_mask: Tensor | None = None,
        anchor_ids: Tensor | None = None,
        anchor_alignment: Tensor | None = None,
        audio_pad_mask: Tensor | None = None,
    ) -> Tensor:
        """One evaluation of the flow's velocity [B, T, 2C] (reference: `SAMAudio.forward`, same arguments).

        noisy_audio, audio_features [B, T, 2C]; text_features [B, L, dim]; time [B] in 0..1;
        masked_video_features [B, V, T]; text_mask [B, L], audio_pad_mask [B, T], True = valid; anchor_ids [B, n] and
        anchor_alignment [B, T] as in a Batch. What is None is left out.
        """
        conditions = self.condition(
            audio_features,
            text_features=text_features,
            text_mask=text_mask,
            masked_video_features=masked_video_features,
            anchor_ids=anchor_ids,
            anchor_alignment=anchor_alignment,
            audio_pad_mask=audio_pad_mask,
        )
        return self.evaluate(noisy_audio, time, conditions)

    @torch.inference_mode()
    def separate(
        self,
        batch: Batch,
        noise: Tensor | None = None,
        ode_opt: Mapping[str, Any] | None = None,
        reranking_candidates: int = 1,
        predict_spans: bool = False,
        *,
        ranker: Ranker | None = None,
        seeds: Sequence[str] | None = None,
        message: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> SeparationResult:
        """Separate every recording of a batch into what its prompts describe and the rest.

        noise: [B * K, T, 2C], candidates of a recording next to each other; drawn when not given, from `seeds` (a
        key a recording: same noise in any batch, on any machine) or torch's generator.
        ode_opt: {"method": "midpoint" or "euler", "options": {"step_size": h}}; default: the configuration's.
        reranking_candidates: K results are made and the one `ranker` scores highest is kept.
        message, generator: the watermark's bits [2 * B * K, 16] or where to draw them from (released codec).

        For long recordings see `long_form.separate_long`.
        """
        if predict_spans:
            raise ValueError(
                "predict_spans=True needs a span predictor, which this version does not have; "
                "give anchors to the processor instead"
            )
        k = reranking_candidates
        if k < 1 or (k > 1 and ranker is None):
            raise ValueError(
                f"reranking_candidates={k} needs a ranker, and this version has none of its own; "
                "pass ranker=..., or use reranking_candidates=1"
            )
        batch = replace(batch).to(self.device)
        b, t = batch.audio_pad_mask.shape
        if noise is None:
            noise = self._draw_noise(b, k, t, seeds)
        elif noise.shape[0] != b * k:
            raise ValueError(f"noise has {noise.shape[0]} rows, expected {b * k} (recordings x candidates)")
        z = self.solve(batch, noise, ode_opt)
        stems = self._decode(z, batch, k, message, generator)  # [B, K, 2, N]
        lengths = [int(size) * batch.hop_length for size in batch.sizes]
        best = [0] * b if ranker is None else self._choose(ranker, stems, batch, lengths)
        picked = [stems[i, best[i], :, :n] for i, n in enumerate(lengths)]
        return SeparationResult([s[0] for s in picked], [s[1] for s in picked], noise)

    @torch.inference_mode()
    def solve(self, batch: Batch, noise: Tensor, ode_opt: Mapping[str, Any] | None = None) -> Tensor:
        """Latents [B * K, T, 2C] of target and residual that the flow takes `noise` (same shape) to."""
        batch = replace(batch).to(self.device)
        latents = self.audio_codec.encode(batch.audios).transpose(1, 2).float()  # [B, T, C]
        b, t, c = latents.shape
        if t != batch.audio_pad_mask.shape[1]:
            raise ValueError(
                f"the batch has {batch.audio_pad_mask.shape[1]} frames, the codec made {t}: "
                "was it made by this model's processor?"
            )
        if noise.shape[0] % b or noise.shape[1:] != (t, 2 * c):
            raise ValueError(f"noise is {list(noise.shape)}, expected {[b, t, 2 * c]} (rows: a multiple of {b})")
        text_features, text_mask = self.encode_text(batch.descriptions)
        conditions = self.condition(
            torch.cat([latents, latents], dim=-1),
            text_features=text_features,
            text_mask=text_mask,
            masked_video_features=self._encode_video(batch),
            anchor_ids=batch.anchor_ids,
            anchor_alignment=batch.anchor_alignment,
            audio_pad_mask=batch.audio_pad_mask,
        ).repeat(noise.shape[0] // b)
        return flow.solve(
            lambda time, z: self.evaluate(z, z.new_full((len(z),), time), conditions),
            noise.to(self.device).float(),
            self.solver(ode_opt),
        )

    def solver(self, ode_opt: Mapping[str, Any] | None) -> SolverConfig:
        """The solver an `ode_opt` names; what it leaves out comes from the configuration."""
        if ode_opt is None:
            return self.config.solver
        given = {"method": ode_opt.get("method"), **dict(ode_opt.get("options") or {})}
        unknown = set(ode_opt) - {"method", "options"} | set(given) - {"method", "step_size"}
        if unknown:
            raise ValueError(f"ode_opt: unknown {', '.join(sorted(unknown))}; known are method and options.step_size")
        return replace(self.config.solver, **{name: v for name, v in given.items() if v is not None})

    def _draw_noise(self, b: int, k: int, t: int, seeds: Sequence[str] | None) -> Tensor:
        channels = 2 * self.config.audio_codec.channels
        if seeds is None:
            return torch.randn(b * k, t, channels, device=self.device)
        if len(seeds) != b:
            raise ValueError(f"{len(seeds)} seeds for {b} recordings")
        keys = [seed if i == 0 else f"{seed}#{i}" for seed in seeds for i in range(k)]
        return torch.stack([flow.noise(key, t, channels) for key in keys])

    def _encode_video(self, batch: Batch) -> Tensor | None:
        if batch.masked_video is None:
            return self.no_video(len(batch.sizes))
        if self.config.vision_encoder is None:
            raise ValueError("this model takes no video: its config has no vision_encoder")
        features: Tensor = self.vision_encoder(batch.masked_video)  # [B, T, V]
        return features.transpose(1, 2)

    def _decode(
        self, z: Tensor, batch: Batch, k: int, message: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        rows, t, _ = z.shape
        n = t * batch.hop_length
        mixture = F.pad(batch.audios, (0, n - batch.audios.shape[-1])).repeat_interleave(k, dim=0)
        stems = self.audio_codec.decode_stems(
            z.transpose(1, 2).reshape(rows, 2, -1, t),
            mixture,
            message=message,
            generator=generator,
            n_samples=n,
        )
        return cast(Tensor, stems[:, :, 0].reshape(rows // k, k, 2, n))

    def _choose(self, ranker: Ranker, stems: Tensor, batch: Batch, lengths: list[int]) -> list[int]:
        k = stems.shape[1]
        scores = ranker(
            extracted_audio=[stems[i, :, 0, :n] for i, n in enumerate(lengths)],
            input_audio=[batch.audios[i, :, :n].expand(k, -1) for i, n in enumerate(lengths)],
            descriptions=batch.descriptions,
            videos=batch.masked_video,
            sample_rate=self.sample_rate,
        )
        if scores.shape != (len(lengths), k):
            raise ValueError(f"the ranker gave scores {list(scores.shape)}, expected {[len(lengths), k]}")
        return [int(i) for i in scores.argmax(dim=1)]


def _codec(config: SAMAudioConfig) -> Any:
    if isinstance(config.audio_codec, BandCodecConfig):
        from .band_codec import BandCodec

        with torch.device("cpu"):  # it has tables and no weights: nothing would fill them in on the meta device
            return BandCodec(config.audio_codec)
    from .codec import DACVAE

    return DACVAE(config.audio_codec)
