"""SAM-Audio: latents of a mixture, a description, anchors and a masked video to latents of target and residual.

Source: facebookresearch/sam-audio, `sam_audio/model/model.py` (68b48d4); state-dict keys are the reference's.
Shapes: B recordings, K candidates each, T latent frames, C codec channels, D model width, L text tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import checkpoint, separation
from .anchors import EmbedAnchors
from .conditions import AlignMaskedVideo, Conditions, TextEncoder, TextFeatures
from .config import BandCodecConfig, SAMAudioConfig, SolverConfig
from .dit import DiT, sinusoid
from .parts import Parts
from .processor import Batch
from .separation import SeparationResult
from .sources import Access
from .vision import VisionEncoder

if TYPE_CHECKING:
    from .ranking import Ranker
    from .spans import PEAFrame


class SAMAudio(nn.Module):
    """The separator. Text encoder, span predictor and rankers are no part of its state dict.

    `text_encoder` and `parts` replace those that the configuration names; these are loaded when first used.
    Without `vision` there is no image tower: the model takes no masked video, and is the same otherwise.
    """

    def __init__(
        self,
        config: SAMAudioConfig,
        *,
        text_encoder: TextEncoder | None = None,
        parts: Parts | None = None,
        vision: bool = True,
    ) -> None:
        super().__init__()
        self.config = config
        dim = config.transformer.dim
        self.audio_codec = _codec(config)
        if config.vision_encoder is not None:
            if vision:
                self.vision_encoder = VisionEncoder(config.vision_encoder)
            self.align_masked_video = AlignMaskedVideo(config.vision_encoder.dim, dim)
        self.transformer = DiT(config.transformer)
        self.proj = nn.Linear(config.in_channels, dim)
        self.embed_anchors = EmbedAnchors(config.num_anchors, config.anchor_embedding_dim, dim)
        self.memory_proj = nn.Linear(config.text_encoder.dim, dim)
        self._text_features = TextFeatures(config.text_encoder, text_encoder)
        self._parts = parts or Parts(config)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        strict: bool = True,
        text_encoder: TextEncoder | None = None,
        vision: bool = True,
        **overrides: Any,
    ) -> SAMAudio:
        """Load "tiny" (shipped), a local folder, an fsspec URL or a hub name; in eval mode.

        dtype: of all weights but the codec's, float32 by default. vision=False leaves the image tower out (1.2 GB of a
        released checkpoint in float32). `token`, `cache_dir` and `revision` are the hub's.
        `overrides` replace top-level entries of the configuration, such as `span_predictor`, `text_ranker` and
        `visual_ranker` (None switches one off). Raises CheckpointError.
        """
        # Revisions are of one repository: the parts have their own.
        others: Access = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        access: Access = {"revision": revision, **others}

        def build(config: SAMAudioConfig) -> SAMAudio:
            return cls(config, text_encoder=text_encoder, parts=Parts(config, **others), vision=vision)

        return checkpoint.load(
            name_or_path,
            build,
            device=device,
            dtype=dtype,
            strict=strict,
            overrides=overrides,
            vision=vision,
            **access,
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

    @property
    def span_predictor(self) -> PEAFrame:
        """The span predictor, loaded when first used. ValueError when the configuration names none."""
        return self._parts.span_predictor(self.device)

    @property
    def text_ranker(self) -> Ranker | None:
        """What chooses among candidates, loaded when first used; None when the configuration names none."""
        return self._parts.ranker("text_ranker", self.device)

    @property
    def visual_ranker(self) -> Ranker | None:
        """The same for recordings with masked video."""
        return self._parts.ranker("visual_ranker", self.device)

    def encode_text(self, descriptions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Features [B, L, dim] and mask [B, L] (True = token) of descriptions; each is encoded once and kept."""
        return self._text_features(descriptions, self.proj.weight)

    def no_video(self, batch: int) -> Tensor | None:
        """Features [B, V, 1] that stand for an absent video: zeros, which add a constant to every frame."""
        if self.config.vision_encoder is None:
            return None
        return self.proj.weight.new_zeros(batch, self.config.vision_encoder.dim, 1)

    @torch.no_grad()
    def encode_frames(self, frames: Tensor) -> Tensor:
        """Masked frames [F, 3, H, W] of 0..255 -> features [F, V]."""
        if not hasattr(self, "vision_encoder"):
            raise ValueError("this model takes no video: it has no image tower (vision_encoder in its config)")
        features: Tensor = self.vision_encoder([frames.to(self.device)])[0]
        return features

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

    def evaluate(self, z: Tensor, time: Tensor, conditions: Conditions, features: list[Tensor] | None = None) -> Tensor:
        """Velocity [B, T, 2C] float32 at state `z` [B, T, 2C] and times [B] in 0..1; `features` as in `DiT`."""
        weight = self.proj.weight
        stems = z.shape[-1]
        x = conditions.frames + F.linear(z.to(weight), weight[:, :stems])
        memory = conditions.memory + sinusoid(time, x.shape[-1]).to(weight)[:, None]
        out = self.transformer(
            x,
            time,
            memory=memory,
            padding_mask=conditions.padding_mask,
            memory_mask=conditions.memory_mask,
            features=features,
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
        reranking_candidates: K results are made, one after the other, and the one that `ranker` scores highest is
        kept. Default ranker: the configuration's `visual_ranker` for a batch with video, else its `text_ranker`.
        predict_spans: when the batch has no anchors, the span predictor says where the descriptions are heard, and
        the network is told.
        message, generator: the watermark's bits [2 * B * K, 16] or where to draw them from (released codec).

        For long recordings see `long_form.separate_long`.
        """
        return separation.separate(
            self,
            batch,
            noise,
            ode_opt,
            reranking_candidates,
            predict_spans,
            ranker,
            seeds,
            message,
            generator,
        )

    @torch.inference_mode()
    def solve(self, batch: Batch, noise: Tensor, ode_opt: Mapping[str, Any] | None = None) -> Tensor:
        """Latents [B * K, T, 2C] of target and residual that the flow takes `noise` (same shape) to."""
        batch = replace(batch).to(self.device)
        conditions = separation.condition(self, batch, separation.encode(self, batch))
        return separation.solve(self, conditions, noise, ode_opt)

    def solver(self, ode_opt: Mapping[str, Any] | None) -> SolverConfig:
        """The solver an `ode_opt` names; what it leaves out comes from the configuration."""
        if ode_opt is None:
            return self.config.solver
        given = {"method": ode_opt.get("method"), **dict(ode_opt.get("options") or {})}
        unknown = set(ode_opt) - {"method", "options"} | set(given) - {"method", "step_size"}
        if unknown:
            raise ValueError(f"ode_opt: unknown {', '.join(sorted(unknown))}; known are method and options.step_size")
        return replace(self.config.solver, **{name: v for name, v in given.items() if v is not None})


def _codec(config: SAMAudioConfig) -> Any:
    if isinstance(config.audio_codec, BandCodecConfig):
        from .band_codec import BandCodec

        with torch.device("cpu"):  # it has tables and no weights: nothing would fill them in on the meta device
            return BandCodec(config.audio_codec)
    from .codec import DACVAE

    return DACVAE(config.audio_codec)
