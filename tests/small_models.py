"""Models for tests: random ones of the shipped kind, and the reference's own small ones from the golden files."""

from __future__ import annotations

import torch
from golden.loader import Golden
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from operators.sam_audio.checkpoint import assign
from operators.sam_audio.conditions import TextEncoder
from operators.sam_audio.config import (
    BandCodecConfig,
    LongFormConfig,
    SAMAudioConfig,
    SolverConfig,
    TextEncoderConfig,
    TransformerConfig,
)
from operators.sam_audio.model import SAMAudio
from operators.sam_audio.parts import Parts
from operators.sam_audio.spans import PEAFrame, PEAFrameConfig, is_unused_key
from operators.sam_audio.vision import TOWERS, TowerConfig

RATE, HOP, BANDS = 6000, 240, 12  # 25 frames a second, as the real ones


def small_config(window: int = 30, stride: int = 20) -> SAMAudioConfig:
    return SAMAudioConfig(
        in_channels=6 * BANDS,
        audio_codec=BandCodecConfig(n_bands=BANDS, n_fft=512, hop_length=HOP, sample_rate=RATE),
        text_encoder=TextEncoderConfig(kind="minilm", name="all-MiniLM-L6-v2", max_length=32, dim=384),
        vision_encoder=None,
        transformer=TransformerConfig(
            dim=32, n_heads=2, n_layers=2, multiple_of=8, context_dim=32, out_channels=2 * BANDS
        ),
        anchor_embedding_dim=8,
        span_predictor=None,
        prediction="x",
        mixture_skip=True,
        solver=SolverConfig("euler", 1.0),
        long_form=LongFormConfig(window, stride),
    )


def small_model(config: SAMAudioConfig | None = None) -> SAMAudio:
    """Random weights; gates are open, so that anchors matter."""
    torch.manual_seed(7)
    model = SAMAudio(config or small_config()).eval()
    with torch.no_grad():
        model.embed_anchors.gate.fill_(0.5)
    return model


class TokenT5:
    """The golden files' T5 behind their stand-in tokenizer: one token a word, 1 at the end, padded with 0."""

    def __init__(self, golden: Golden) -> None:
        self.vocabulary = golden.values["vocabulary"]
        self.model = T5EncoderModel(T5Config(**golden.config["t5"])).eval()
        self.model.load_state_dict(golden.weights("text_encoder.model."))

    @torch.no_grad()
    def __call__(self, descriptions: list[str]) -> tuple[Tensor, Tensor]:
        rows = [torch.tensor([*(2 + self.vocabulary.index(w) for w in d.split()), 1]) for d in descriptions]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        return self.model(input_ids=ids, attention_mask=mask).last_hidden_state, mask


def golden_model(
    golden: Golden, *, text_encoder: TextEncoder | None = None, parts: Parts | None = None, strict: bool = True
) -> SAMAudio:
    """The small model of a golden case; `strict=False` where it holds the DiT and its input layers only."""
    config = SAMAudioConfig.from_dict(golden.config["sam_audio"])
    # The cases call every small tower "PE-tiny"; most have the size that the code knows by that name, or none at all.
    sizes = golden.config.get("pe_vision")
    if sizes is not None:
        assert config.vision_encoder is not None
        assert TOWERS[config.vision_encoder.name] == TowerConfig(**sizes)
    model = SAMAudio(config, text_encoder=text_encoder, parts=parts, vision=sizes is not None).eval()
    weights = golden.weights()
    if strict:
        assign(model, weights, source=golden.name)
    else:
        mine = {k: v for k, v in weights.items() if not k.startswith(("text_encoder.", "span_predictor."))}
        assert not model.load_state_dict(mine, strict=False).unexpected_keys
    return model


def golden_span_predictor(golden: Golden) -> PEAFrame:
    """The span predictor stored beside a golden model; the case's tokens stand in for a tokenizer, text by text."""
    config = PEAFrameConfig.from_dict(golden.config["span_predictor"])
    tokens = zip(golden["in.span_input_ids"], golden["in.span_attention_mask"], strict=True)
    rows = dict(zip(golden.values["texts"], tokens, strict=True))

    def tokenizer(texts: list[str], **_: object) -> dict[str, Tensor]:
        ids, masks = zip(*(rows[text] for text in texts), strict=True)
        longest = max(int(mask.sum()) for mask in masks)
        return {"input_ids": torch.stack(ids)[:, :longest], "attention_mask": torch.stack(masks)[:, :longest]}

    model = PEAFrame(config, tokenizer=tokenizer).eval()
    state = golden.weights("span_predictor.")
    model.load_state_dict({k: v for k, v in state.items() if not is_unused_key(k, config.nth_text_layer)})
    return model
