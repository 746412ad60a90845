"""What a judge's `config.json` says, and which revision of the hub's repository it is read from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Unpack

from .checkpoint import read_part_config
from .config import BandCodecConfig, ConfigError, DACVAEConfig
from .pe_av import PEAVConfig
from .sources import SHIPPED, Access

# The hub's default revision of this repository has another layout; this one is what the reference reads.
REVISIONS = {"facebook/sam-audio-judge": "sam_audio"}


@dataclass(frozen=True)
class SAMAudioJudgeConfig:
    """Sizes and parts of a judge; the defaults are those of the released one.

    What the small judge does differently: the `band` codec, `text_model` of kind "minilm" (see sentences.py), and
    clip_seconds: longer recordings are scored in pieces of at most that, None: whole, as released.
    """

    audio_codec: DACVAEConfig | BandCodecConfig = field(default_factory=DACVAEConfig)
    transformer: PEAVConfig = field(default_factory=PEAVConfig)
    text_model: Mapping[str, Any] = field(default_factory=dict)
    finetune_transformer: PEAVConfig = field(default_factory=PEAVConfig)
    nth_text_layer: int | None = 22
    bottleneck_dim: int = 256
    clip_seconds: float | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SAMAudioJudgeConfig:
        """Read a `config.json`; unknown keys are ignored. ConfigError for the layout of another revision."""
        if "dac_vae_encoder" in values:
            raise ConfigError(
                "this judge has the hub's default layout ('dac_vae_encoder'), which nothing reads: take revision "
                f"{REVISIONS['facebook/sam-audio-judge']!r} of the repository ('audio_codec')"
            )
        given = values.get("audio_codec") or {}
        kind = BandCodecConfig if given.get("kind") == "band" else DACVAEConfig
        known = {f.name for f in fields(kind)}
        codec: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in given.items() if key in known
        }
        return cls(
            kind(**codec),
            PEAVConfig.from_dict(values.get("transformer") or {}),
            values.get("text_model") or {},
            PEAVConfig.from_dict(values.get("finetune_transformer") or {}),
            values.get("nth_text_layer", 22),
            values.get("bottleneck_dim", 256),
            values.get("clip_seconds"),
        )

    @property
    def reads_sentences(self) -> bool:
        """Whether MiniLM reads the descriptions, whose weights and tokenizer are in no checkpoint."""
        return self.text_model.get("kind") == "minilm"

    def to_dict(self) -> dict[str, Any]:
        """The values of a `config.json`."""
        return asdict(self)


def default_revision(name_or_path: str | Path, revision: str | None) -> str | None:
    """The revision asked for, or the one that a hub name needs."""
    if revision is None and not Path(name_or_path).is_dir():
        return REVISIONS.get(str(name_or_path))
    return revision


def location(name_or_path: str | Path) -> str | Path:
    """Where a judge lies: "tiny" is the shipped one, beside the separator of that name."""
    name = str(name_or_path)
    return SHIPPED[name] / "judge" if name in SHIPPED else name_or_path


def read_config(name_or_path: str | Path, **access: Unpack[Access]) -> SAMAudioJudgeConfig:
    """The configuration of a judge, without its weights. Raises CheckpointError."""
    return read_part_config(location(name_or_path), SAMAudioJudgeConfig.from_dict, **access)
