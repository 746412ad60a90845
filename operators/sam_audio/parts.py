"""Parts of a model that have checkpoints of their own: span predictor and rankers. Fetched when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

import torch

from .config import SAMAudioConfig
from .sources import Access

if TYPE_CHECKING:
    from .ranking import Ranker
    from .spans import PEAFrame


class Parts:
    """Builds what `config` names at the first call, on the device of that call; None where it names nothing.

    Not a module: its weights are no part of a separator's checkpoint. What is given replaces what the config names.
    """

    def __init__(
        self,
        config: SAMAudioConfig,
        *,
        span_predictor: PEAFrame | None = None,
        text_ranker: Ranker | None = None,
        visual_ranker: Ranker | None = None,
        **access: Unpack[Access],
    ) -> None:
        self._config = config
        self._span_predictor = span_predictor
        self._rankers: dict[str, Ranker | None] = {"text_ranker": text_ranker, "visual_ranker": visual_ranker}
        self._access = access

    def span_predictor(self, device: torch.device) -> PEAFrame:
        """ValueError when the configuration names none."""
        if self._span_predictor is None:
            if self._config.span_predictor is None:
                raise ValueError(
                    "predict_spans needs a span predictor, and this model's config names none: give "
                    "span_predictor='pe-a-frame-large' (or a folder) to from_pretrained, or anchors of your own"
                )
            from .spans import PEAFrame

            self._span_predictor = PEAFrame.from_pretrained(self._config.span_predictor, device=device, **self._access)
        return self._span_predictor

    def ranker(self, name: str, device: torch.device) -> Ranker | None:
        """The `text_ranker` or `visual_ranker` of the configuration."""
        if self._rankers[name] is None:
            from .ranking import build_ranker

            self._rankers[name] = build_ranker(
                getattr(self._config, name),
                device=device,
                token=self._access.get("token"),
                cache_dir=self._access.get("cache_dir"),
            )
        return self._rankers[name]
