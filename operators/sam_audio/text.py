"""Descriptions to text features with a frozen T5 encoder (facebookresearch/sam-audio, `model/text_encoder.py`).

The encoder is not part of SAM-Audio's checkpoints: it comes from the Hugging Face hub, a local folder or object
storage, when the first description arrives.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .config import TextEncoderConfig
from .sources import CheckpointError, check_url

if TYPE_CHECKING:
    from transformers import T5EncoderModel

# list of texts, padding=, truncation=, max_length=, return_tensors= -> "input_ids" and "attention_mask", [B, L] each.
Tokenizer = Callable[..., Any]

# What a folder in transformers' layout needs; the same weights for other frameworks stay where they are.
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_TOKENIZER_SUFFIXES = (".json", ".model", ".txt")


class TextEncoderError(RuntimeError):
    """The text encoder cannot be loaded: names it and says what to do."""


class T5TextEncoder:
    """T5's last hidden states for descriptions; lower-case noun or verb phrases match its use in training.

    `config.name` is a hub name, a local folder in transformers' layout, or the URL of such a folder (s3://...).
    `model` and `tokenizer` replace what would be loaded from there.
    """

    def __init__(
        self,
        config: TextEncoderConfig,
        *,
        model: T5EncoderModel | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self.config = config
        self._model = model.eval() if model is not None else None
        self._tokenizer = tokenizer
        self._device = model.device if model is not None else torch.device("cpu")

    def to(self, device: torch.device | str) -> T5TextEncoder:
        self._device = torch.device(device)
        if self._model is not None:
            self._model.to(self._device)  # type: ignore[arg-type]
        return self

    @torch.no_grad()
    def __call__(self, descriptions: list[str]) -> tuple[Tensor, Tensor]:
        """B descriptions -> features [B, L, dim] and mask [B, L], True = token, L of the longest.

        Padded positions hold values too; the mask keeps them out of the attention that reads them. An empty
        description is one token. Raises TextEncoderError.
        """
        model, tokenizer = self._load()
        encoded = tokenizer(
            list(descriptions),
            truncation=True,
            max_length=self.config.max_length,
            padding=self.config.pad_mode,
            return_tensors="pt",
        )
        ids = encoded["input_ids"].to(self._device)
        mask = encoded["attention_mask"].to(self._device)
        features = model(input_ids=ids, attention_mask=mask).last_hidden_state
        return features, mask.bool()

    def _load(self) -> tuple[T5EncoderModel, Tokenizer]:
        if self._model is not None and self._tokenizer is not None:
            return self._model, self._tokenizer
        from transformers import AutoTokenizer, T5EncoderModel

        name = self.config.name
        source = str(fetch_folder(name)) if "://" in name else name
        try:
            # The tokenizer first: it is small, so a wrong name is found before gigabytes are read.
            tokenizer = self._tokenizer or AutoTokenizer.from_pretrained(source)
            model = self._model or T5EncoderModel.from_pretrained(source)
        except (OSError, ValueError, ImportError) as error:
            raise TextEncoderError(
                f"text encoder {name!r} cannot be loaded ({error}). Give a folder with its weights and tokenizer, or "
                "the URL of one, as text_encoder.name, or make the hub reachable"
            ) from error
        if model.config.d_model != self.config.dim:
            raise TextEncoderError(
                f"text encoder {name!r} gives {model.config.d_model} channels, "
                f"but text_encoder.dim is {self.config.dim}"
            )
        self._model, self._tokenizer = model.eval().requires_grad_(False).to(self._device), tokenizer
        return self._model, tokenizer


def fetch_folder(url: str, cache: str | Path | None = None) -> Path:
    """Copy a remote folder in transformers' layout below `cache`; returns the local folder.

    The folder's name depends on the URL and on the names and sizes of its files, so another version is fetched anew
    and a complete copy is used again, by other processes too. Raises TextEncoderError.
    """
    import fsspec

    try:
        check_url(url)
        filesystem, root = fsspec.core.url_to_fs(url.rstrip("/"))
        sizes = {Path(f["name"]).name: f["size"] for f in filesystem.ls(root, detail=True) if f["type"] == "file"}
        weights = next((name for name in _WEIGHTS if name in sizes), None)
        if weights is None:
            raise TextEncoderError(f"text encoder {url!r}: the folder holds none of {', '.join(_WEIGHTS)}")
        wanted = {n: s for n, s in sizes.items() if n == weights or Path(n).suffix in _TOKENIZER_SUFFIXES}
        version = hashlib.sha256(json.dumps([url, sorted(wanted.items())]).encode()).hexdigest()[:16]
        folder = Path(cache or _cache_folder()) / version
        if folder.is_dir():
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        # A finished folder appears in one step, so nobody ever loads half a copy.
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{version}-") as part:
            copy = Path(part) / version
            copy.mkdir()
            for name in wanted:
                filesystem.get_file(f"{root}/{name}", str(copy / name))
            try:
                copy.rename(folder)
            except OSError:
                if not folder.is_dir():  # otherwise another process was faster
                    raise
    except (OSError, ValueError, ImportError, CheckpointError) as error:
        raise TextEncoderError(
            f"text encoder {url!r} cannot be fetched ({error}). Check the URL and the credentials for it"
        ) from error
    return folder


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sam-audio-pipeline" / "text-encoders"
