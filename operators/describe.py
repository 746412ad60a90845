"""What a plan needs to know of a model, without its weights in memory.

Torch is imported where a model is described: facts go to workers that decode and write, and do without it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from .segments import FADE_FRAMES

if TYPE_CHECKING:
    from .sam_audio.config import SolverConfig


@dataclass(frozen=True)
class ModelFacts:
    """`version` changes with the configuration, the weights or the solver; frames are latent frames."""

    version: str
    sample_rate: int
    hop_length: int
    window_frames: int
    stride_frames: int
    halo_frames: int
    # Of masked video: side of the square frames and how they are resized; None when the model takes no video.
    image_size: int | None = None
    interpolation: str = "BICUBIC"

    def frames(self, seconds: float) -> int:
        """Latent frames that cover so many seconds, rounded up; a hair of float error makes no frame."""
        samples = round(seconds * self.sample_rate)
        return -(-samples // self.hop_length)


def describe(model: str, solver: SolverConfig | None = None, *, predict_spans: bool = False) -> ModelFacts:
    """Facts of a model by name or path, used with this solver. Raises CheckpointError when it is not there."""
    import torch

    from .sam_audio.checkpoint import fingerprint, read_config
    from .sam_audio.long_form import exact_halo_frames
    from .sam_audio.model import SAMAudio

    config = read_config(model)
    with torch.device("meta"):
        built = SAMAudio(config)
    stamp = [fingerprint(model), asdict(solver or config.solver)]
    return ModelFacts(
        version=hashlib.sha256(json.dumps(stamp).encode()).hexdigest()[:16],
        sample_rate=config.audio_codec.sample_rate,
        hop_length=config.audio_codec.hop_length,
        window_frames=config.long_form.window,
        stride_frames=config.long_form.stride,
        halo_frames=exact_halo_frames(built, FADE_FRAMES, solver, predict_spans=predict_spans),
        image_size=config.vision_encoder.image_size if config.vision_encoder else None,
        interpolation=config.vision_encoder.interpolation_mode if config.vision_encoder else "BICUBIC",
    )
