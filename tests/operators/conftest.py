from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_models import RATE, small_model

from operators.sam_audio.model import SAMAudio


@pytest.fixture(scope="session")
def model() -> SAMAudio:
    return small_model()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    small_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def recording() -> torch.Tensor:
    """Stereo [2, samples], 12.3 s: two tones that come and go over noise; not a whole number of frames."""
    generator = torch.Generator().manual_seed(3)
    t = torch.arange(int(12.3 * RATE) + 77) / RATE
    left = torch.sin(2 * torch.pi * 440 * t) * (torch.sin(2 * t) > 0)
    right = torch.sin(2 * torch.pi * 1100 * t) * (torch.sin(3 * t) > 0)
    return 0.3 * torch.stack([left, right]) + 0.05 * torch.randn(2, len(t), generator=generator)
