import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import HOP, RATE

from operators.errors import AssetError
from operators.sam_audio.config import SolverConfig
from operators.segments import Joiner, cut
from operators.separator import SegmentRequest, SegmentStems, Separator, SeparatorOptions


@pytest.fixture(scope="module")
def separator(model_folder: Path) -> Separator:
    return Separator(str(model_folder), device="cpu")


def request_of(waveform: np.ndarray, **changes: object) -> SegmentRequest:
    frames = -(-waveform.shape[-1] // HOP)
    values = {"item_id": "item", "start_frame": 0, "total_frames": frames, "description": "dog barking"} | changes
    return SegmentRequest(waveform=waveform, **values)  # type: ignore[arg-type]


def test_separator_gives_stems_as_long_as_the_waveform(separator: Separator, recording: torch.Tensor) -> None:
    assert (separator.sample_rate, separator.hop_length) == (RATE, HOP)
    (stems,) = separator([request_of(recording.numpy())])
    assert isinstance(stems, SegmentStems)
    assert stems.target.shape == stems.residual.shape == tuple(recording.shape)
    assert stems.target.dtype == stems.residual.dtype == np.float32
    np.testing.assert_allclose(stems.target + stems.residual, recording.numpy(), atol=1e-5)


def test_bad_requests_cost_themselves_only(separator: Separator, recording: torch.Tensor) -> None:
    good = recording.numpy()
    bad = good.copy()
    bad[0, 500] = np.nan
    requests = [
        request_of(bad),
        request_of(good),
        request_of(good, anchors=(("?", 0.0, 1.0),)),
        request_of(good[:, : 5 * HOP], total_frames=300),
        request_of(good[0]),
        request_of(good, item_id="other"),
    ]
    results = separator(requests)
    causes = [r.cause if isinstance(r, AssetError) else None for r in results]
    assert causes == ["not_finite", None, "bad_anchor", "bad_segment", "bad_segment", None]
    (alone,) = separator([request_of(good)])
    np.testing.assert_allclose(results[1].target, alone.target, atol=1e-5)  # type: ignore[union-attr]


def test_no_requests_give_no_stems(separator: Separator) -> None:
    assert separator([]) == []


def test_read_only_waveforms_are_accepted(separator: Separator, recording: torch.Tensor) -> None:
    waveform = recording.numpy().copy()
    waveform.flags.writeable = False
    assert isinstance(separator([request_of(waveform)])[0], SegmentStems)


def test_silence_gives_silence(separator: Separator) -> None:
    (stems,) = separator([request_of(np.zeros((1, 100 * HOP), np.float32))])
    assert np.abs(stems.target).max() == 0  # type: ignore[union-attr]


def test_version_names_weights_and_options(separator: Separator, model_folder: Path, tmp_path: Path) -> None:
    assert Separator(str(model_folder), device="cpu").version == separator.version
    halved = Separator(str(model_folder), device="cpu", options=SeparatorOptions(solver=SolverConfig("euler", 0.5)))
    assert halved.version != separator.version
    other = tmp_path / "other"
    shutil.copytree(model_folder, other)
    state = load_file(other / "model.safetensors")
    state["proj.bias"][0] += 1e-3
    save_file(state, other / "model.safetensors")
    assert Separator(str(other), device="cpu").version != separator.version


def test_shipped_model_gives_the_same_stems_whatever_the_cut(recording: torch.Tensor) -> None:
    shipped = Separator("tiny", device="cpu")
    hop, rate = shipped.hop_length, shipped.sample_rate
    waveform = torch.nn.functional.interpolate(recording[None], scale_factor=rate / RATE)[0].numpy()
    total = -(-waveform.shape[-1] // hop)

    def separate(core: int, halo: int) -> np.ndarray:
        joiner, parts = Joiner(hop), []
        for s in cut(total, core, halo):
            (stems,) = shipped(
                [SegmentRequest("item", waveform[:, s.start * hop : s.end * hop], s.start, total, "dog barking")]
            )
            assert isinstance(stems, SegmentStems)
            parts.append(joiner.add(s, stems.target))
        return np.concatenate(parts, axis=-1)

    whole, cut_up = separate(total, 0), separate(57, shipped.halo_frames)
    assert 10 * np.log10(((cut_up - whole) ** 2).mean() / (waveform**2).mean() + 1e-20) < -100
