"""The model of a training run: built from a checkpoint, made trainable, and written when it is done."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from operators.sam_audio.config import SIZES, BandCodecConfig, SolverConfig
from operators.sam_audio.model import SAMAudio
from operators.sam_audio.training import lora
from operators.sam_audio.training.alignment import AlignmentHead, CepstralEmbedding, EventEmbedding, build_embedding
from operators.sam_audio.training.learner import adamw, muon_and_adamw, trained
from operators.sam_audio.training.objective import Objective
from operators.sam_audio.training.train import initialise
from pipeline.training_config import TrainingConfig
from pipeline.training_store import TrainingStore

# Muon's steps have the size of their matrix: its rate is to AdamW's as in the shipped model's recipe, about.
MUON_RATE = 10.0
# Never trained: what turns sound and pictures into latents, which the others were trained on.
FROZEN = ("audio_codec.", "vision_encoder.")


def build_model(config: TrainingConfig, device: torch.device | str) -> SAMAudio:
    """The model as training begins, in training mode. Raises CheckpointError and ConfigError."""
    torch.manual_seed(config.seed)
    # With its image tower even where no example has a picture: what is written must be whole.
    model = SAMAudio.from_pretrained(config.model, device=device)
    if config.mode == "scratch":
        model = from_scratch(config, model).to(device)
    if config.mode == "lora":
        lora.inject(model, config.lora_config())
    else:
        model.transformer.set_heads_first(False)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(FROZEN))
    model.transformer.checkpoint_activations = config.checkpoint_activations
    return training_mode(model)


def training_mode(model: SAMAudio) -> SAMAudio:
    """Dropout on, in all that is trained."""
    model.train()
    for name, part in model.named_children():
        if f"{name}." in FROZEN:
            part.eval()
    return model


def from_scratch(config: TrainingConfig, model: SAMAudio) -> SAMAudio:
    """Random weights in the layout of `model`, whose codec and image tower are kept."""
    values = model.config
    if config.size:
        size = SIZES[config.size].transformer
        transformer = replace(
            values.transformer,
            dim=size.dim,
            n_heads=size.n_heads,
            n_layers=size.n_layers,
            context_dim=size.dim,
        )
        values = replace(values, transformer=transformer)
    if config.prediction and config.prediction != values.prediction:
        # A velocity has nothing to do with the mixture's latents, and needs more than the small model's one step.
        skip: dict[str, Any] = {} if config.prediction == "x" else {"mixture_skip": False, "solver": SolverConfig()}
        values = replace(values, prediction=config.prediction, **skip)
    fresh = SAMAudio(values)
    fresh.audio_codec = model.audio_codec
    if hasattr(model, "vision_encoder"):
        fresh.vision_encoder = model.vision_encoder
    if isinstance(values.audio_codec, BandCodecConfig):
        initialise(fresh)
    else:  # as a diffusion transformer usually begins (Peebles and Xie, 2023): blocks that do nothing, a velocity of 0
        with torch.no_grad():
            for layer in fresh.transformer.blocks:
                nn.init.zeros_(layer.scale_shift_table)
                layer.cross_attention.wo.weight.zero_()
            fresh.transformer.output.weight.zero_()
    return fresh


def build_objective(config: TrainingConfig, model: SAMAudio) -> tuple[Objective, EventEmbedding | None]:
    """The loss, with its alignment head, and the embedding that the head is trained on."""
    weights = config.objective_for(model.config)
    if config.alignment is None:
        return Objective(model, weights), None
    embedding = build_embedding(config.alignment, model.config, model.device)
    head = AlignmentHead(model.config.transformer.dim, embedding.dim).to(model.device)
    if isinstance(embedding, CepstralEmbedding):
        head.embedding = embedding  # its statistics belong into the checkpoint
    return Objective(model, weights, head), embedding


def build_optimizers(config: TrainingConfig, objective: Objective) -> list[torch.optim.Optimizer]:
    if config.optimizer == "muon":
        rate = config.rate
        return muon_and_adamw(objective, muon_lr=MUON_RATE * rate, adam_lr=rate, weight_decay=config.weight_decay)
    return adamw(objective, lr=config.rate, weight_decay=config.weight_decay)


def write_model(config: TrainingConfig, store: TrainingStore, model: SAMAudio) -> None:
    """Write the weights that `model` holds now; with LoRA the adapters, and a checkpoint with them merged in."""
    with tempfile.TemporaryDirectory(prefix="training-") as folder:
        made = Path(folder) / "model"
        if config.mode == "lora":
            lora.save_adapters(model, config.lora_config(), Path(folder) / "adapters", config.model)
            store.upload_folder(Path(folder) / "adapters", "adapters")
            lora.merge(model)
        model.save_pretrained(made)
        store.upload_folder(made, "model")


def parameter_counts(model: SAMAudio) -> tuple[int, int]:
    """(trained, all)."""
    return sum(p.numel() for _, p in trained(model)), sum(p.numel() for p in model.parameters())
