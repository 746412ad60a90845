"""Metrics that compare with the true sound. All in dB, higher is better; all signals mono [samples]."""

from __future__ import annotations

import math

import numpy as np

from .items import Item

LARGEST_DB = 60.0
_FLOOR = 1e-12


def si_sdr(estimate: np.ndarray, reference: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al., 2019: "SDR - half-baked or well done?").

    Means are removed first. Kept within 60 dB either way: a silent estimate, for which it is not defined, gives -60, so
    that one of them neither passes for an untouched mixture (as a floor under both energies would have it) nor drowns
    a mean.
    """
    estimate, reference = (x.astype(np.float64) - x.mean(dtype=np.float64) for x in (estimate, reference))
    projection = np.dot(estimate, reference) / max(np.dot(reference, reference), _FLOOR) * reference
    noise = estimate - projection
    wanted, unwanted = float(np.dot(projection, projection)), float(np.dot(noise, noise))
    if wanted <= _FLOOR:
        return -LARGEST_DB
    return float(np.clip(10 * np.log10(wanted / max(unwanted, _FLOOR * wanted)), -LARGEST_DB, LARGEST_DB))


def sdr(estimate: np.ndarray, reference: np.ndarray) -> float:
    """Signal-to-distortion ratio of BSS Eval (Vincent et al., 2006) in dB, by torchmetrics.

    Distortion is what a filter of 512 taps on the reference cannot explain, over the whole signal; MUSDB's tables
    (museval) take medians over seconds instead. Raises ImportError without torchmetrics.
    """
    import torch
    from torchmetrics.functional.audio import signal_distortion_ratio

    # A little diagonal loading keeps references with empty bands (low-passed ones) solvable.
    found, truth = (torch.from_numpy(np.ascontiguousarray(x, dtype=np.float64)) for x in (estimate, reference))
    return float(signal_distortion_ratio(found, truth, load_diag=1e-10))


class SiSdr:
    """SI-SDR, its improvement over the untouched mixture, and whether the prompt was obeyed.

    Obeyed: the estimate is nearer (by SI-SDR) to the sound asked for than to the rest.
    """

    name = "si_sdr"
    columns = ("si_sdr_db", "si_sdri_db", "obeyed")

    def __call__(self, item: Item, estimate: np.ndarray) -> dict[str, float]:
        if item.target is None:
            return {}
        after = si_sdr(estimate, item.target)
        scores = {"si_sdr_db": after, "si_sdri_db": after - si_sdr(item.mixture, item.target)}
        if item.other is not None:
            scores["obeyed"] = float(after > si_sdr(estimate, item.other))
        return scores


class Sdr:
    """SDR and its improvement over the untouched mixture."""

    name = "sdr"
    columns = ("sdr_db", "sdri_db")

    def __init__(self) -> None:
        import torchmetrics.functional.audio  # noqa: F401  # says at once when it is not installed

    def __call__(self, item: Item, estimate: np.ndarray) -> dict[str, float]:
        if item.target is None:
            return {}
        after, before = sdr(estimate, item.target), sdr(item.mixture, item.target)
        if not (math.isfinite(after) and math.isfinite(before)):  # silence has no SDR
            return {}
        return {"sdr_db": after, "sdri_db": after - before}
