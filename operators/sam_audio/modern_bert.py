"""Descriptions to text features with ModernBERT, as PE-A-Frame and the judge use it: one layer's output, first token.

The encoder is transformers' `ModernBertModel`, cut off behind the layer that is read. Its weights are part of the
checkpoints that contain it; the tokenizer lies beside them.
"""

from __future__ import annotations

import copy
import re
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor, nn

from .config import ConfigError
from .sources import Access, CheckpointError, open_files
from .text import Tokenizer

if TYPE_CHECKING:
    from transformers import ModernBertModel

# input_ids and attention_mask, [B, L] each.
Tokens = tuple[Tensor, Tensor]

MAX_TOKENS = 512
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_TEXTS_KEPT = 1024  # a job has a handful of prompts; this bounds a service that sees many
_LAYER = re.compile(r"layers\.(\d+)\.")
# What a config.json may say about another program's run of the model.
_RUNTIME_KEYS = ("attn_implementation", "_attn_implementation", "dtype", "torch_dtype")


def build_text_model(values: Mapping[str, Any], layer: int | None) -> ModernBertModel:
    """A ModernBERT whose `last_hidden_state` is hidden state number `layer` (0: the embeddings), without final norm.

    Layers above are dropped. `layer` None: all of them and the final norm. `values` as in a `config.json`.
    ConfigError when there are fewer layers. Works on the meta device, and keeps its rotation angles in float32
    whatever type the model is turned into.
    """
    from transformers import ModernBertConfig, ModernBertModel

    config: Any = ModernBertConfig(**copy.deepcopy({k: v for k, v in values.items() if k not in _RUNTIME_KEYS}))
    if layer is not None and not 0 <= layer <= config.num_hidden_layers:
        raise ConfigError(f"nth_text_layer {layer}: the text model has {config.num_hidden_layers} layers")
    model: Any = ModernBertModel(config)
    model.rotary_emb = _Rotary(config.rope_parameters, config.hidden_size // config.num_attention_heads)
    if layer is not None:
        # In transformers 5 the last entry of `hidden_states` is normed, so the layer is read this way instead.
        model.layers, model.final_norm = model.layers[:layer], nn.Identity()
    built: ModernBertModel = model
    return built


def is_unused_text_key(key: str, layer: int | None) -> bool:
    """Is `key` (as inside the text model) of a part that `build_text_model` leaves out?"""
    if layer is None:
        return False
    found = _LAYER.match(key)
    return key.startswith("final_norm.") or (found is not None and int(found[1]) >= layer)


class _Rotary(nn.Module):
    """Rotation tables without buffers: nothing to lose on the meta device or in half precision."""

    def __init__(self, parameters: Mapping[str, Mapping[str, Any]], head_dim: int) -> None:
        super().__init__()
        kinds = {p["rope_type"] for p in parameters.values()}
        if kinds != {"default"}:
            raise ConfigError(f"text_model: rope_type must be 'default', got {', '.join(sorted(kinds))}")
        self.theta = {kind: float(p["rope_theta"]) for kind, p in parameters.items()}
        self.head_dim = head_dim

    def forward(self, x: Tensor, position_ids: Tensor, layer_type: str) -> tuple[Tensor, Tensor]:
        exponent = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=x.device) / self.head_dim
        angle = position_ids[..., None].float() / self.theta[layer_type] ** exponent
        angle = torch.cat([angle, angle], dim=-1)
        return angle.cos().to(x.dtype), angle.sin().to(x.dtype)


class Descriptions:
    """Text features [B, D] of descriptions, computed once each. Belongs to one model, and holds no weights itself.

    `load` gets the tokenizer, if none is given, when the first description arrives.
    """

    def __init__(
        self,
        model: ModernBertModel,
        tokenizer: Tokenizer | None = None,
        *,
        load: Callable[[], Tokenizer] | None = None,
    ) -> None:
        self._model = model
        self._tokenizer, self._load = tokenizer, load
        self._known: OrderedDict[str, Tensor] = OrderedDict()
        self._stamp: tuple[Any, ...] = ()

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            if self._load is None:
                raise ValueError("this model was built without a tokenizer: give token ids instead of descriptions")
            self._tokenizer = self._load()
        return self._tokenizer

    def __call__(self, descriptions: Sequence[str] | Tokens | Mapping[str, Tensor]) -> Tensor:
        """B descriptions, or their tokens (input_ids, attention_mask) [B, L] -> [B, D]."""
        if isinstance(descriptions, Mapping):
            ids = descriptions["input_ids"]
            return self._first_tokens(ids, descriptions.get("attention_mask", torch.ones_like(ids)))
        if isinstance(descriptions, tuple) and isinstance(descriptions[0], Tensor):
            return self._first_tokens(*descriptions)
        if isinstance(descriptions, str):
            raise TypeError(f"descriptions must be a list of strings, one a row, not {descriptions!r}")
        return self._cached([str(text) for text in descriptions])

    @torch.no_grad()
    def _first_tokens(self, ids: Tensor, mask: Tensor) -> Tensor:
        device = self._model.embeddings.tok_embeddings.weight.device
        out = self._model(input_ids=ids.to(device), attention_mask=mask.to(device))
        first: Tensor = out.last_hidden_state[:, 0]
        return first

    def _cached(self, texts: list[str]) -> Tensor:
        self._forget_other_weights()
        # One by one: beside others a description would be padded, and spans near the threshold could depend on that.
        for text in dict.fromkeys(texts):
            if text not in self._known:
                self._known[text] = self._first_tokens(*tokenize(self.tokenizer, [text]))[0]
            self._known.move_to_end(text)
        rows = torch.stack([self._known[text] for text in texts])
        while len(self._known) > _TEXTS_KEPT:
            self._known.popitem(last=False)
        return rows

    def _forget_other_weights(self) -> None:
        weight = self._model.embeddings.tok_embeddings.weight
        version = None if weight.is_inference() else weight._version
        stamp = (weight.data_ptr(), version, weight.dtype, weight.device)
        if stamp != self._stamp:
            self._known.clear()
            self._stamp = stamp


def tokenize(tokenizer: Tokenizer, texts: Sequence[str]) -> Tokens:
    """ids and mask [B, L], L of the longest, at most 512."""
    encoded = tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS, padding="longest", return_tensors="pt")
    return encoded["input_ids"], encoded["attention_mask"]


def load_tokenizer(name_or_path: str | Path, **access: Unpack[Access]) -> Tokenizer:
    """The tokenizer beside a checkpoint (`tokenizer.json` and its settings). CheckpointError where there is none."""
    from transformers import PreTrainedTokenizerFast

    # Copied to a folder that holds nothing else: the checkpoint's config.json means nothing to a tokenizer.
    with open_files(name_or_path, **access) as get, tempfile.TemporaryDirectory(prefix="tokenizer-") as folder:
        for file in _TOKENIZER_FILES:
            try:
                shutil.copyfile(get(file), Path(folder) / file)
            except FileNotFoundError as error:
                if file == _TOKENIZER_FILES[0]:
                    raise CheckpointError(
                        f"model {str(name_or_path)!r} holds no {file}, which descriptions need: put the tokenizer's "
                        "files beside the weights"
                    ) from error
        try:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        except Exception as error:  # the tokenizers library raises plain Exceptions
            raise CheckpointError(
                f"the tokenizer of {str(name_or_path)!r} cannot be read ({error}). Fetch its files again"
            ) from error
    if tokenizer.pad_token is None:
        raise CheckpointError(f"the tokenizer of {str(name_or_path)!r} names no pad_token in {_TOKENIZER_FILES[1]}")
    return tokenizer
