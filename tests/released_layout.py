"""Tiny random checkpoints on disk, file by file as Meta released the large ones: what from_pretrained has to read.

SAM-Audio (DAC-VAE, DiT, PE tower with the CLIP text tower nobody uses) with the T5, the span predictor and the judge
that its `config.json` names. 25 frames a second, as the real ones. The same bytes every time.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from golden.loader import load
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from operators.sam_audio.config import SAMAudioConfig
from operators.sam_audio.model import SAMAudio

RATE, HOP, CHANNELS = 8000, 320, 8

CODEC = {
    "encoder_dim": 2,
    "encoder_rates": [2, 4, 4, 10],
    "latent_dim": 16,
    "decoder_dim": 96,
    "decoder_rates": [10, 4, 4, 2],
    "n_codebooks": 2,
    "codebook_size": 8,
    "codebook_dim": CHANNELS,
    "quantizer_dropout": False,
    "sample_rate": RATE,
    "mean": 0.0,
    "std": 1.0,
}
SAM_AUDIO = {
    "in_channels": 6 * CHANNELS,
    "audio_codec": CODEC,
    "text_encoder": {"dim": 20, "max_length": 512, "pad_mode": "longest"},
    "vision_encoder": {"dim": 24, "batch_size": 50, "name": "PE-tiny", "normalize_feature": True, "image_size": 56},
    "transformer": {
        "dim": 48,
        "n_heads": 4,
        "n_layers": 2,
        "context_dim": 48,
        "max_positions": 10_000,
        "multiple_of": 16,
        "out_channels": 2 * CHANNELS,
    },
    "num_anchors": 3,
    "anchor_embedding_dim": 10,
    "visual_ranker": None,
}
T5 = {
    "vocab_size": 80,
    "d_model": 20,
    "d_kv": 8,
    "d_ff": 40,
    "num_layers": 2,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
}
# What the tokenizers are trained on; whatever else they meet falls apart into letters.
PHRASES = (
    "speech", "a man speaking", "a woman singing", "dog barking", "car horn honking", "church bells", "piano playing",
    "guitar", "rain on a window", "footsteps on gravel", "background noise", "birds chirping in a quiet forest",
)  # fmt: skip


@dataclass(frozen=True)
class Released:
    """Folders of the four models; give `sam_audio` to from_pretrained."""

    sam_audio: Path
    t5: Path
    pe_a_frame: Path
    judge: Path


def write_released(folder: Path, *, url: str | None = None, **config: Any) -> Released:
    """Write all four below `folder`.

    url: where the folder will be copied to, when that is not where it lies: the models name each other by it.
    config: replaces top-level entries of SAM-Audio's `config.json`.
    """
    found = Released(*(folder / name for name in ("sam-audio-tiny", "t5-tiny", "pe-a-frame-tiny", "judge-tiny")))
    write_t5(found.t5)
    write_pe_a_frame(found.pe_a_frame)
    write_judge(found.judge)
    base = url.rstrip("/") if url else str(folder)
    named = {
        "span_predictor": f"{base}/{found.pe_a_frame.name}",
        "text_ranker": {"kind": "judge", "checkpoint_or_model_id": f"{base}/{found.judge.name}"},
    }
    write_sam_audio(found.sam_audio, t5=f"{base}/{found.t5.name}", **{**named, **config})
    return found


def write_sam_audio(folder: Path, *, t5: str, **config: Any) -> dict[str, Tensor]:
    """`config.json` and `checkpoint.pt` of a random SAM-Audio; returns its state dict."""
    values = SAM_AUDIO | {"text_encoder": {**SAM_AUDIO["text_encoder"], "name": t5}, "span_predictor": None} | config
    torch.manual_seed(11)
    model = SAMAudio(SAMAudioConfig.from_dict(values))
    state = lively(model) | clip_text_tower()
    # Closed gates, which training starts from, would hide anchors and video.
    state["embed_anchors.gate"].fill_(2)
    state["align_masked_video.gate"].fill_(2)
    write_pt(folder, values, state)
    return state


def write_t5(folder: Path) -> None:
    """A T5 encoder and its tokenizer in transformers' layout."""
    torch.manual_seed(12)
    T5EncoderModel(T5Config(**T5)).save_pretrained(folder)
    # As T5's own: the end of text appended, nothing before.
    tokenizer = _pieces(["<pad>", "</s>", "<unk>"], T5["vocab_size"])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def write_bert_tokenizer(folder: Path, vocab_size: int) -> None:
    """A tokenizer with ModernBERT's frame: [CLS] 1 before, [SEP] 2 after, [PAD] 0."""
    tokenizer = _pieces(["[PAD]", "[CLS]", "[SEP]", "[UNK]"], vocab_size)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    ).save_pretrained(folder)


def _pieces(special: list[str], size: int) -> Tokenizer:
    """Letters, and as many of the phrases' words as fit; blanks are marked. Not trained by the library: equal in
    every process, which its trainers are not."""
    text = " ".join(PHRASES)
    letters = Counter(text.replace(" ", "\u2581"))
    words = Counter("\u2581" + word for word in text.split())
    counts = [*sorted(letters.items()), *sorted(words.items(), key=lambda item: (-item[1], item[0]))]
    counts = counts[: size - len(special)]
    total = sum(count for _, count in counts)
    vocabulary = [(token, 0.0) for token in special] + [(piece, math.log(count / total)) for piece, count in counts]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=special.index(special[-1])))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def write_pe_a_frame(folder: Path) -> None:
    """The span predictor of the golden files, in the layout of the revision `perception_models`."""
    golden = load("pe_frame")
    config = golden.config["pe_a_frame"]
    config["audio_model"]["audio_transformer"]["max_position_embeddings"] = 10_000
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    save_file(golden.weights(), folder / "model.safetensors", {"format": "pt"})
    write_bert_tokenizer(folder, config["text_model"]["vocab_size"])


def write_judge(folder: Path) -> None:
    """The judge of the golden files, in the layout of the revision `sam_audio`."""
    golden = load("judge")
    config = golden.config["judge"]
    for part in ("transformer", "finetune_transformer"):
        config[part]["max_position_embeddings"] = 10_000
    write_pt(folder, config, golden.weights())
    write_bert_tokenizer(folder, config["text_model"]["vocab_size"])


def lively(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a random module, louder than it was made: inputs reach the outputs, prompts too."""
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(2)
    return {key: t.detach().clone() for key, t in model.state_dict().items()}


def clip_text_tower(width: int = 24, dim: int = 24, layers: int = 1) -> dict[str, Tensor]:
    """The text half of the CLIP model inside `vision_encoder.model.`, which every released checkpoint holds."""
    shapes = {
        "token_embedding.weight": (16, width),
        "positional_embedding": (6, width),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
        "text_projection": (width, dim),
        "logit_scale": (),
    }
    for i in range(layers):
        shapes |= {
            f"transformer.resblocks.{i}.{name}": shape
            for name, shape in (
                ("ln_1.weight", (width,)),
                ("ln_1.bias", (width,)),
                ("attn.in_proj_weight", (3 * width, width)),
                ("attn.in_proj_bias", (3 * width,)),
                ("attn.out_proj.weight", (width, width)),
                ("attn.out_proj.bias", (width,)),
                ("ln_2.weight", (width,)),
                ("ln_2.bias", (width,)),
                ("mlp.c_fc.weight", (4 * width, width)),
                ("mlp.c_fc.bias", (4 * width,)),
                ("mlp.c_proj.weight", (width, 4 * width)),
                ("mlp.c_proj.bias", (width,)),
            )
        }
    return {f"vision_encoder.model.{name}": torch.randn(shape) for name, shape in shapes.items()}


def write_pt(folder: Path, config: dict[str, Any], state: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    torch.save(state, folder / "checkpoint.pt")
