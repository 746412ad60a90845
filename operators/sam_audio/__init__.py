"""SAM-Audio for inference: torch only, usable as a library, with facebookresearch/sam-audio's names and calls."""

from .checkpoint import CheckpointError
from .config import SAMAudioConfig, SolverConfig
from .long_form import Excerpt, separate_long
from .model import SAMAudio, SeparationResult
from .processor import Batch, SAMAudioProcessor

__all__ = [
    "Batch",
    "CheckpointError",
    "Excerpt",
    "SAMAudio",
    "SAMAudioConfig",
    "SAMAudioProcessor",
    "SeparationResult",
    "SolverConfig",
    "separate_long",
]
