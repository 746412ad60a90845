"""CLAP's weights as its authors publish them, for transformers' `ClapModel`.

lukewys/laion_clap holds training checkpoints such as `630k-best.pt`: an HTSAT audio tower and a RoBERTa text tower,
under the module names of the laion_clap package (LAION-AI/CLAP). Their names here:

    text_branch.*                          text_model.*
    audio_branch.*                         audio_model.audio_encoder.*
      bn0                                    batch_norm
      layers.i.blocks.j.norm1, norm2         layernorm_before, layernorm_after
      layers.i.blocks.j.attn.qkv             attention.self.query, .key, .value (equal thirds of the rows)
      layers.i.blocks.j.attn.proj            attention.output.dense
      layers.i.blocks.j.attn.relative_*      attention.self.relative_*
      layers.i.blocks.j.mlp.fc1, fc2         intermediate.dense, output.dense
    {text,audio}_projection.0, .2          {text,audio}_projection.linear1, .linear2

Not needed: the spectrogram's and the classifier's tensors, attention masks (they are computed), and two heads that only
a loss uses.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .checkpoint import fill
from .sources import CheckpointError, open_files
from .text import TextEncoderError, Tokenizer, fetch_folder

if TYPE_CHECKING:
    from transformers import ClapConfig, ClapModel

RELEASED = ("lukewys/laion_clap", "630k-best.pt")
TOKENIZER = "roberta-base"
_PICKLED = (".pt", ".pth", ".ckpt")
# What a training checkpoint holds beside its tensors: numpy scalars, its metrics. Once they are named, torch can refuse
# everything else. numpy 1 and 2 write them under different names.
_SCALAR: Any = np.float64(0).__reduce__()[0]
_SCALARS: list[Any] = [
    np.dtype,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
    np.dtypes.Int64DType,
    *((_SCALAR, f"{module}.multiarray.scalar") for module in ("numpy.core", "numpy._core")),
]

_UNUSED = re.compile(
    r"audio_branch\.(spectrogram_extractor|logmel_extractor|tscam_conv|head)\.|(text|audio)_transform\."
    r"|text_branch\.embeddings\.(position_ids|token_type_ids)$|audio_branch\..*\.attn_mask$"
)
_RENAMED = [
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^text_branch\.", "text_model."),
        (r"^audio_branch\.", "audio_model.audio_encoder."),
        (r"\.bn0\.", ".batch_norm."),
        (r"\.norm1\.", ".layernorm_before."),
        (r"\.norm2\.", ".layernorm_after."),
        (r"\.attn\.proj\.", ".attention.output.dense."),
        (r"\.attn\.", ".attention.self."),
        (r"\.mlp\.fc1\.", ".intermediate.dense."),
        (r"\.mlp\.fc2\.", ".output.dense."),
        (r"^(text|audio)_projection\.0\.", r"\1_projection.linear1."),
        (r"^(text|audio)_projection\.2\.", r"\1_projection.linear2."),
    )
]
# Index tables that ClapModel makes itself.
_COMPUTED = ("text_model.embeddings.position_ids", "text_model.embeddings.token_type_ids")


def rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A laion_clap state dict (with or without the `module.` of a parallel training run) under ClapModel's names."""
    out: dict[str, Tensor] = {}
    for original, tensor in state.items():
        key = original.removeprefix("module.")
        if _UNUSED.match(key):
            continue
        for pattern, name in _RENAMED:
            key = pattern.sub(name, key)
        if ".attention.self.qkv." in key:
            for name, part in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                out[key.replace(".qkv.", f".{name}.")] = part
        else:
            out[key] = tensor
    return out


def released_config() -> ClapConfig:
    """Sizes of `630k-best.pt`: HTSAT-tiny without fusion, RoBERTa-base."""
    from transformers import ClapConfig

    # The text tower was RoBERTa's, with RoBERTa's epsilon; ClapConfig's own default is another.
    return ClapConfig(text_config={"layer_norm_eps": 1e-5})


def load_clap(
    checkpoint: str | Path | None = None,
    *,
    config: ClapConfig | None = None,
    device: torch.device | str = "cpu",
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> tuple[ClapModel, Tokenizer]:
    """A CLAP without fusion and its tokenizer, in eval mode.

    checkpoint: a `.pt` of laion_clap (path, URL; None: the released one, from the hub), or a folder, URL or hub name in
    transformers' layout. config: sizes of a `.pt`, the released ones by default. A `.pt` without a `tokenizer.json`
    beside it uses RoBERTa's from the hub. Raises CheckpointError.
    """
    name = str(checkpoint) if checkpoint is not None else "/".join(RELEASED)
    if not name.endswith(_PICKLED):
        return _transformers_layout(name, device, token, cache_dir)
    folder, _, file = name.rpartition("/")
    with open_files(folder or ".", token=token, cache_dir=cache_dir) as get:
        try:
            path = get(file)
        except FileNotFoundError as error:
            raise CheckpointError(f"CLAP checkpoint {name!r} does not exist: {error}") from error
        try:
            tokenizer: Tokenizer = _own_tokenizer(get("tokenizer.json"))
        except (FileNotFoundError, CheckpointError):  # none there, or nobody to ask: RoBERTa's may be in the cache
            tokenizer = _hub_tokenizer(token, cache_dir)
        model = _build(read(path), config or released_config(), name)
    return model.eval().requires_grad_(False).to(device), tokenizer  # type: ignore[arg-type]


def read(path: Path) -> dict[str, Tensor]:
    """The state dict of a laion_clap training checkpoint. Nothing in the file is executed."""
    try:
        with torch.serialization.safe_globals(_SCALARS):
            # Mapped: the optimiser's state, most of such a file, is never read. Files of old torch cannot be mapped.
            content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path} is no checkpoint that can be read safely ({error}). Fetch it again") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} holds no state dict; a CLAP checkpoint has one under 'state_dict'")
    return dict(state)


def _build(state: Mapping[str, Tensor], config: ClapConfig, source: str) -> ClapModel:
    from transformers import ClapModel

    model = ClapModel(config)
    own = model.state_dict()
    fill(model, rename(state) | {key: own[key] for key in _COMPUTED if key in own}, source=source)
    return model


def _transformers_layout(
    name: str, device: torch.device | str, token: str | bool | None, cache_dir: str | Path | None
) -> tuple[ClapModel, Tokenizer]:
    from transformers import AutoTokenizer, ClapModel

    options: dict[str, Any] = {"token": token, "cache_dir": cache_dir}
    try:
        source = str(fetch_folder(name, cache_dir)) if "://" in name else name
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        model = ClapModel.from_pretrained(source, **options)
    except (OSError, ValueError, ImportError, TextEncoderError) as error:
        raise CheckpointError(
            f"CLAP model {name!r} cannot be loaded ({error}). Give a folder in transformers' layout, the URL or hub "
            "name of one, or a .pt file of laion_clap"
        ) from error
    audio: Any = model.config.audio_config
    if audio.enable_fusion:
        raise CheckpointError(f"CLAP model {name!r} fuses long audio; the ranker needs one without fusion")
    return model.eval().requires_grad_(False).to(device), tokenizer


def _own_tokenizer(path: Path) -> Tokenizer:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_file=str(path), pad_token="<pad>")


def _hub_tokenizer(token: str | bool | None, cache_dir: str | Path | None) -> Tokenizer:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(TOKENIZER, token=token, cache_dir=cache_dir)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"CLAP's tokenizer {TOKENIZER!r} cannot be fetched ({error}). Put its tokenizer.json beside the checkpoint"
        ) from error
