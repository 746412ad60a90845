"""Our own held-out mixes: pairs of recordings of the eval split at 0 dB, which training never sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..sam_audio.band_codec import BandCodec
from ..sam_audio.config import BandCodecConfig
from ..sam_audio.training.engine import SAMPLE_RATE, DataEngine
from ..sam_audio.training.prompts import label_phrases
from .items import Item, SetError

PAIRS = {
    f"{a} in {b}": (a, b) for a, b in (("speech", "music"), ("speech", "sfx"), ("music", "speech"), ("sfx", "music"))
}
PAUSES = ", pauses"  # behind the setting's name where sources have them
PROMPTS = {"speech": "speech", "music": "music"}
MIX_DBFS = -23.0  # programme level, so that nothing depends on clipping or on very quiet input
FRAMES = 200  # 8 s


class EvalSplit:
    """`count` mixes a pair of 8 s, the same ones at every call; the first k do not depend on `count`.

    Without `pauses` both sources run on without gaps and have equal power over the clip. With them, speech and effects
    come in stretches and any source may start late or end early, as in training; power is equal while both sound.
    """

    def __init__(
        self,
        data_dir: Path,
        codec: BandCodec | None = None,
        *,
        count: int = 100,
        pauses: bool = False,
        pairs: list[tuple[str, str]] | None = None,
        part: str = "eval",
    ) -> None:
        if not (data_dir / "index.parquet").exists():
            raise SetError(
                f"{data_dir} holds no index.parquet: it is no folder of training audio; make one with "
                "`python -m operators.sam_audio.training.fetch FOLDER`"
            )
        self.engine = DataEngine(data_dir, codec or BandCodec(BandCodecConfig()), part=part, frames=FRAMES)
        self.count, self.pauses = count, pauses
        self.pairs = list(PAIRS.values()) if pairs is None else pairs
        self.name = f"{part} split" + (", sources with pauses" if pauses else "")
        hours = ", ".join(f"{kind} {hours:.1f} h" for kind, hours in self.engine.hours.items())
        how = "sources with pauses, equal power where both sound" if pauses else "sources without pauses, equal power"
        self.notes = [f"{count} mixes of 8 s a pair, mono, 48 kHz; {how}; recordings of the {part} split: {hours}"]
        # One generator draws a pair's mixes in turn. Its state before each lets any of them be made again.
        self._states: dict[int, list[Any]] = {}

    def __len__(self) -> int:
        return len(self.pairs) * self.count

    def __getitem__(self, index: int) -> Item:
        pair, number = divmod(index, self.count)
        if not 0 <= pair < len(self.pairs):
            raise IndexError(index)
        target, other = self.pairs[pair]
        states = self._states.setdefault(pair, [_generator(target, other).bit_generator.state])
        rng = _generator(target, other)
        while True:
            drawn = min(number, len(states) - 1)
            rng.bit_generator.state = states[drawn]
            (a, label), (b, _) = (self.engine.source(kind, rng, gaps=self.pauses) for kind in (target, other))
            if drawn + 1 == len(states):
                states.append(rng.bit_generator.state)
            if drawn == number:
                break
        level = 10 ** (MIX_DBFS / 20)
        # `source` has unit power where it sounds.
        a, b = (x * (level if self.pauses else level / max(float(np.sqrt(np.mean(x**2))), 1e-6)) for x in (a, b))
        a, b = a.astype(np.float32), b.astype(np.float32)
        setting = f"{target} in {other}"
        return Item(
            item_id=f"{setting.replace(' ', '-')}{'-pauses' if self.pauses else ''}/{number:04d}",
            setting=setting + (PAUSES if self.pauses else ""),
            mixture=a + b,
            sample_rate=SAMPLE_RATE,
            description=PROMPTS.get(target) or label_phrases(label)[0],
            kind=target,
            target=a,
            other=b,
        )


def _generator(target: str, other: str) -> np.random.Generator:
    return np.random.default_rng([ord(c) for c in target + other])
