"""What is evaluated: separators, speech denoisers, the codec's bound, and stems that another system left in a folder.

A system takes an item and gives the target as mono [samples] float32, as long as the mixture; None where it has
nothing to say (a denoiser asked for music).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import fsspec
import numpy as np
import torch
import torchaudio.functional

from ..errors import AssetError
from ..media import decode_range
from ..sam_audio import Excerpt, SAMAudio, SAMAudioProcessor, separate_long
from ..sam_audio.anchors import Anchor
from ..sam_audio.band_codec import BandCodec
from ..sam_audio.sources import check_url
from .items import Item, SetError

SPANS = ("item", "none", "true", "predicted")
# Longer recordings go through multi-diffusion; up to here they are one window, as in SAM-Audio's own evaluation.
LONGEST_SECONDS = 60.0
SILENCE_DB = -40.0  # below the loudest 100 ms: the paper's threshold of activity
CLOSED_SECONDS = 0.25
STEM_SUFFIXES = (".flac", ".wav", "/target.flac", "/target.wav")


class System(Protocol):
    """`name` heads its column."""

    @property
    def name(self) -> str: ...

    def __call__(self, item: Item) -> np.ndarray | None: ...


class Untouched:
    """The mixture itself: what every metric gives when nothing is separated."""

    name = "mixture"

    def __call__(self, item: Item) -> np.ndarray | None:
        return item.mixture


class Separator:
    """A SAM-Audio model, ours or a released one.

    spans: "item" gives the spans that belong to the item's prompt; "none" withholds them; "true" takes them from the
    true target's activity (an upper bound, of sets that know it); "predicted" asks the model's span predictor.
    """

    def __init__(
        self,
        model: SAMAudio,
        *,
        name: str,
        spans: str = "item",
        candidates: int = 1,
    ) -> None:
        if spans not in SPANS:
            raise ValueError(f"spans must be one of {', '.join(SPANS)}, got {spans!r}")
        self.model, self.spans, self.candidates = model, spans, candidates
        self.processor = SAMAudioProcessor.from_config(model.config)
        self.name = name if spans == "item" else f"{name} + {spans} spans" if spans != "none" else f"{name}, no spans"

    def anchors(self, item: Item) -> tuple[Anchor, ...]:
        if self.spans == "true":
            if item.target is None:
                raise SetError(f"{item.item_id}: true spans need the true target, which this set does not know")
            return active_spans(item.target, item.sample_rate)
        return item.anchors if self.spans == "item" else ()

    @torch.inference_mode()
    def __call__(self, item: Item) -> np.ndarray | None:
        wave = torch.from_numpy(item.mixture)
        rate = self.model.sample_rate
        if item.sample_rate != rate:
            wave = torchaudio.functional.resample(wave, item.sample_rate, rate)
        anchors, predict = self.anchors(item), self.spans == "predicted"
        if item.masked_video is None and len(wave) > LONGEST_SECONDS * rate:
            excerpt = Excerpt(item.item_id, wave[None], item.description, anchors)
            out = separate_long(self.model, [excerpt], predict_spans=predict)[0].target[0]
        else:
            batch = self.processor(
                [item.description],
                [wave[None]],
                anchors=[list(anchors)] if anchors else None,
                masked_videos=None if item.masked_video is None else [item.masked_video],
            ).to(self.model.device)
            # A key an item and no message: the same noise and watermark on every machine and in any order.
            out = self.model.separate(
                batch,
                seeds=[item.item_id],
                reranking_candidates=self.candidates,
                predict_spans=predict,
                message=torch.zeros(2 * self.candidates, 16),
            ).target[0]
        out = out.float().cpu()
        if item.sample_rate != rate:
            out = torchaudio.functional.resample(out, rate, item.sample_rate)
        return _fitted(out.numpy(), len(item.mixture))


class Silenced:
    """Another system's target with silence outside the true target's spans: what they are worth without skill."""

    def __init__(self, system: System) -> None:
        self.name, self.system = f"{system.name} + true gate", system

    def __call__(self, item: Item) -> np.ndarray | None:
        found = self.system(item)
        if found is None or item.target is None:
            return None
        gain = np.zeros(len(found), np.float32)
        for _, start, end in active_spans(item.target, item.sample_rate):
            gain[round(start * item.sample_rate) : round(end * item.sample_rate)] = 1
        return found * gain


class Denoiser:
    """A speech denoiser (`training.baselines`): answers items whose `kind` is speech."""

    def __init__(self, name: str, run: Callable[[np.ndarray], np.ndarray], sample_rate: int = 48_000) -> None:
        self.name, self.run, self.sample_rate = name, run, sample_rate

    def __call__(self, item: Item) -> np.ndarray | None:
        if item.kind != "speech":
            return None
        if item.sample_rate != self.sample_rate:
            raise SetError(f"{item.item_id}: {self.name} takes {self.sample_rate} Hz, not {item.sample_rate}")
        return _fitted(self.run(item.mixture), len(item.mixture))


class CodecOracle:
    """What the band codec gives with the true latents: the bound for any model on it."""

    def __init__(self, codec: BandCodec) -> None:
        self.name, self.codec = "codec oracle", codec

    @torch.inference_mode()
    def __call__(self, item: Item) -> np.ndarray | None:
        if item.target is None or item.other is None:
            return None
        a, b, m = (torch.from_numpy(x)[None, None] for x in (item.target, item.other, item.mixture))
        latents = torch.stack([self.codec.encode(a), self.codec.encode(b)], 1)
        found: np.ndarray = self.codec.decode_stems(latents, m)[0, 0, 0].numpy()
        return found


class StemFolder:
    """Targets that another system wrote: `<folder>/<item_id>.flac` (or .wav, or `<item_id>/target.wav`).

    The folder is a path or a store's URL. Stems may have any sample rate and channels, and must be as long as the
    mixture to a tenth of a second.
    """

    def __init__(self, name: str, folder: str | Path) -> None:
        self.name, self.folder = name, str(folder).rstrip("/")
        if "://" in self.folder:
            check_url(self.folder)
        self._files, self._root = fsspec.core.url_to_fs(self.folder)
        if not self._files.exists(self._root):
            raise SetError(f"{self.folder} is not there: give the folder of {name}'s stems")

    def __call__(self, item: Item) -> np.ndarray | None:
        for suffix in STEM_SUFFIXES:
            path = f"{self._root}/{item.item_id}{suffix}"
            if not self._files.exists(path):
                continue
            with self._files.open(path, "rb") as file:
                wave = decode_range(
                    file, path, start=0, stop=None, sample_rate=item.sample_rate, expected_seconds=None
                ).mean(0)
            if abs(len(wave) - len(item.mixture)) > item.sample_rate // 10:
                raise SetError(
                    f"{path} lasts {len(wave) / item.sample_rate:.2f} s, its mixture {item.seconds:.2f} s: let "
                    f"{self.name} write stems as long as the mixtures"
                )
            return _fitted(wave, len(item.mixture))
        raise AssetError(
            "not_found", f"{self.folder} holds no {item.item_id}.flac or .wav", "name stems after the items"
        )


def active_spans(wave: np.ndarray, sample_rate: int) -> tuple[Anchor, ...]:
    """`+` spans (seconds) where the wave's 100 ms power is within 40 dB of its peak; gaps under 250 ms closed."""
    hop = sample_rate // 10
    power = np.square(wave[: len(wave) // hop * hop].reshape(-1, hop)).mean(1)
    if not power.size or power.max() <= 0:
        return ()
    loud = power > power.max() * 10 ** (SILENCE_DB / 10)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], loud, [0]])))
    spans: list[Anchor] = []
    for start, end in zip((edges[::2] / 10).tolist(), (edges[1::2] / 10).tolist(), strict=True):
        if spans and start - spans[-1][2] < CLOSED_SECONDS:
            spans[-1] = ("+", spans[-1][1], end)
        else:
            spans.append(("+", start, end))
    return tuple(spans)


def _fitted(wave: np.ndarray, length: int) -> np.ndarray:
    wave = wave[:length].astype(np.float32)
    return np.pad(wave, (0, length - len(wave)))
