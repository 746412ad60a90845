"""What a judge should say, computed where the truth is known: energies of what a separated sound consists of.

Every cell (a band over five frames) of an output O is split into a part of the target A, a part of the other sound B
and a rest, O = a A + b B + e, by least squares, as BSS Eval does with time-invariant filters (Vincent et al., 2006).
The four scores are these ratios in dB, summed over the clip, on a scale of 1 to 5 (`RANGES_DB`):

recall        |A|^2 / |(1 - a) A|^2: the target against what of it is missing (a above 1 misses nothing)
precision     |a A|^2 / |b B|^2: the target's part against the other's
faithfulness  |g A|^2 / |O - b B - g A|^2, g one gain for the clip: the target's part against what distorts it
overall       SI-SDR of the output against the target (Le Roux et al., 2019)

A silent output of a target that is there scores 1 throughout. For a sound that is not in the mixture silence is right:
recall and faithfulness are 5 (nothing can be missed or distorted), precision and overall say how far below the mixture
the output is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...judge_scores import SCORES
from ..band_codec import BandCodec

# dB that give a score of 1 and of 5; linear between, nothing outside.
RANGES_DB = {"overall": (-10.0, 20.0), "recall": (0.0, 20.0), "precision": (-10.0, 30.0), "faithfulness": (-3.0, 20.0)}
ABSENT_RANGE_DB = (0.0, 40.0)
SILENT_DB = -60.0  # an output this far below the mixture is silence
ABSENT_DB = -45.0  # a target this far below the mixture is not there
_CELL_FRAMES, _CELL_BANDS = 5, 3
_RIDGE = 1e-4


def on_scale(db: Tensor, low: float, high: float) -> Tensor:
    """dB -> 1 (at `low` and below) to 5 (at `high` and above)."""
    return 1 + 4 * ((db - low) / (high - low)).clamp(0, 1)


class Bands:
    """Band sums of spectra. Triangular bands touch two bands a bin, so a sparse matrix does it."""

    def __init__(self, codec: BandCodec) -> None:
        with torch.no_grad():
            self._matrix = codec.bands.T.to_sparse().coalesce()

    def __call__(self, power: Tensor) -> Tensor:
        """[..., T, F] per bin -> [..., T, C] per band."""
        lead = power.shape[:-1]
        flat = power.reshape(-1, power.shape[-1]).T.contiguous()
        return torch.sparse.mm(self._matrix, flat).T.reshape(*lead, -1)


class Truth:
    """Scores outputs against the two halves that mixtures were made of."""

    def __init__(self, codec: BandCodec, a: Tensor, b: Tensor) -> None:
        """a, b [B, N] at the codec's rate: the mixture is their sum."""
        self._codec, self._bands, self._waves = codec, Bands(codec), (a, b)
        self._spectra = codec.stft(a), codec.stft(b)
        self._powers = self._power(self._spectra[0]), self._power(self._spectra[1])
        self._ab = self._inner(*self._spectra)
        self._mixture = (a + b).square().sum(-1)

    def scores(self, output: Tensor) -> Tensor:
        """Outputs [B, N] -> [B, 3, 4]: as an answer to being asked for a, for b, and for what is not there.

        The last axis is in the order of SCORES.
        """
        o = self._codec.stft(output)
        oo, oa, ob = self._power(o), self._inner(o, self._spectra[0]), self._inner(o, self._spectra[1])
        (aa, bb), ab = self._powers, self._ab
        ratios = [_ratios(oo, oa, ob, aa, bb, ab), _ratios(oo, ob, oa, bb, aa, ab)]
        for values, wave in zip(ratios, self._waves, strict=True):
            values["overall"] = si_sdr(output, wave)
        levels = [_db(wave.square().sum(-1), self._mixture) for wave in (output, *self._waves)]
        return _answers(ratios, *levels)

    def _power(self, x: Tensor) -> Tensor:
        return _cells(self._bands(x.real.square() + x.imag.square()))

    def _inner(self, x: Tensor, y: Tensor) -> Tensor:
        return _cells(self._bands(x.real * y.real + x.imag * y.imag))


def scores_of_gain(gain: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The same from band powers, where no waveform was made: gain and the powers of both halves [B, T, C] -> [B, 3, 4].

    Bands are taken as orthogonal and the halves as uncorrelated.
    """
    output = gain.square() * (a + b)
    oo, oa, ob, aa, bb = (_cells(x) for x in (output, gain * a, gain * b, a, b))
    ratios = [_ratios(oo, oa, ob, aa, bb, torch.zeros_like(oo)), _ratios(oo, ob, oa, bb, aa, torch.zeros_like(oo))]
    for values, half in zip(ratios, (a, b), strict=True):
        projection = _total(gain * half).square() / _total(half).clamp_min(1e-12)
        values["overall"] = _db(projection, (_total(output) - projection).clamp_min(0))
    return _answers(ratios, *(_db(_total(x), _total(a + b)) for x in (output, a, b)))


def _answers(ratios: list[dict[str, Tensor]], level_db: Tensor, a_db: Tensor, b_db: Tensor) -> Tensor:
    """Ratios for either half, and the levels of output and halves below the mixture [B] -> [B, 3, 4]."""
    below = on_scale(-level_db, *ABSENT_RANGE_DB)
    right = torch.full_like(below, 5.0)
    nothing_asked = torch.stack([below, right, below, right], dim=1)
    answers = []
    for values, target_db in zip(ratios, (a_db, b_db), strict=True):
        scored = torch.stack([on_scale(values[name], *RANGES_DB[name]) for name in SCORES], dim=1)
        scored[level_db < SILENT_DB] = 1.0
        answers.append(torch.where((target_db < ABSENT_DB)[:, None], nothing_asked, scored))
    return torch.stack([*answers, nothing_asked], dim=1)


def _ratios(oo: Tensor, oa: Tensor, ob: Tensor, aa: Tensor, bb: Tensor, ab: Tensor) -> dict[str, Tensor]:
    """Inner products of output, target a and the other b per cell [B, T, C] -> ratios in dB [B]."""
    # Two coefficients a cell. The ridge keeps them finite where a source is silent, and there they do not matter.
    ridge = _RIDGE * (aa + bb) + 1e-12
    determinant = (aa + ridge) * (bb + ridge) - ab.square()
    a = ((oa * (bb + ridge) - ob * ab) / determinant).clamp(-2, 2)
    b = ((ob * (aa + ridge) - oa * ab) / determinant).clamp(-2, 2)
    whole = _total(aa)
    gain = _total(a * aa) / whole.clamp_min(1e-12)
    g = gain[:, None, None]
    wrong = oo - 2 * b * ob - 2 * g * oa + b.square() * bb + g.square() * aa + 2 * g * b * ab
    return {
        "recall": _db(whole, _total((1 - a).clamp_min(0).square() * aa)),
        "precision": _db(_total(a.square() * aa), _total(b.square() * bb)),
        "faithfulness": _db(gain.square() * whole, _total(wrong.clamp_min(0))),
    }


def si_sdr(estimate: Tensor, reference: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio [B] in dB of [B, N]."""
    estimate = estimate - estimate.mean(-1, keepdim=True)
    reference = reference - reference.mean(-1, keepdim=True)
    scale = (estimate * reference).sum(-1, keepdim=True) / reference.square().sum(-1, keepdim=True).clamp_min(1e-12)
    projection = scale * reference
    return _db(projection.square().sum(-1), (estimate - projection).square().sum(-1))


def _cells(x: Tensor) -> Tensor:
    """Mean over the neighbourhood of every band and frame: [B, T, C] -> the same."""
    size = _CELL_FRAMES, _CELL_BANDS
    mean: Tensor = F.avg_pool2d(
        x[:, None], size, stride=1, padding=(size[0] // 2, size[1] // 2), count_include_pad=False
    )
    return mean[:, 0]


def _total(x: Tensor) -> Tensor:
    return x.sum((1, 2))


def _db(over: Tensor, under: Tensor) -> Tensor:
    return 10 * torch.log10((over + 1e-12) / (under + 1e-12))
