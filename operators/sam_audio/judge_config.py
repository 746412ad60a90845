"""What a judge's `config.json` says, and which revision of the hub's repository it is read from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Unpack

from .checkpoint import read_part_config
from .config import ConfigError, DACVAEConfig
from .pe_av import PEAVConfig
from .sources import Access

# The hub's default revision of this repository has another layout; this one is what the reference reads.
REVISIONS = {"facebook/sam-audio-judge": "sam_audio"}


@dataclass(frozen=True)
class SAMAudioJudgeConfig:
    audio_codec: DACVAEConfig = field(default_factory=DACVAEConfig)
    transformer: PEAVConfig = field(default_factory=PEAVConfig)
    text_model: Mapping[str, Any] = field(default_factory=dict)
    finetune_transformer: PEAVConfig = field(default_factory=PEAVConfig)
    nth_text_layer: int | None = 22
    bottleneck_dim: int = 256

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SAMAudioJudgeConfig:
        """Read a `config.json`; unknown keys are ignored. ConfigError for the layout of another revision."""
        if "dac_vae_encoder" in values:
            raise ConfigError(
                "this judge has the hub's default layout ('dac_vae_encoder'), which nothing reads: take revision "
                f"{REVISIONS['facebook/sam-audio-judge']!r} of the repository ('audio_codec')"
            )
        known = {f.name for f in fields(DACVAEConfig)}
        codec: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in (values.get("audio_codec") or {}).items()
            if key in known
        }
        return cls(
            DACVAEConfig(**codec),
            PEAVConfig.from_dict(values.get("transformer") or {}),
            values.get("text_model") or {},
            PEAVConfig.from_dict(values.get("finetune_transformer") or {}),
            values.get("nth_text_layer", 22),
            values.get("bottleneck_dim", 256),
        )


def default_revision(name_or_path: str | Path, revision: str | None) -> str | None:
    """The revision asked for, or the one that a hub name needs."""
    if revision is None and not Path(name_or_path).is_dir():
        return REVISIONS.get(str(name_or_path))
    return revision


def read_config(name_or_path: str | Path, **access: Unpack[Access]) -> SAMAudioJudgeConfig:
    """The configuration of a judge, without its weights. Raises CheckpointError."""
    return read_part_config(name_or_path, SAMAudioJudgeConfig.from_dict, **access)
