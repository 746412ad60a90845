"""SAM-Audio for inference: torch only, usable as a library, with facebookresearch/sam-audio's names and calls."""

from .checkpoint import CheckpointError
from .config import SAMAudioConfig, SolverConfig
from .judge import SAMAudioJudgeModel, SAMAudioJudgeOutput, SAMAudioJudgeProcessor
from .long_form import Excerpt, LongStems, separate_long
from .model import SAMAudio, SeparationResult
from .processor import Batch, SAMAudioProcessor
from .spans import PEAFrame

__all__ = [
    "Batch",
    "CheckpointError",
    "Excerpt",
    "LongStems",
    "PEAFrame",
    "SAMAudio",
    "SAMAudioConfig",
    "SAMAudioJudgeModel",
    "SAMAudioJudgeOutput",
    "SAMAudioJudgeProcessor",
    "SAMAudioProcessor",
    "SeparationResult",
    "SolverConfig",
    "separate_long",
]
