import pytest
import torch
from golden.loader import load

from operators.sam_audio.anchors import AnchorError, align, align_batch, anchor_frames, anchor_ids


@pytest.mark.parametrize("case", range(4))
def test_align_batch_equals_the_reference(case: int) -> None:
    golden = load("batch_anchors")
    about = golden.values["cases"][case]
    ids, alignment = align_batch(
        about["anchors"],
        golden[f"case{case}.out.audio_pad_mask"],
        sample_rate=about["sr"],
        hop_length=about["hop"],
    )
    assert torch.equal(ids, golden[f"case{case}.out.anchor_ids"])
    assert torch.equal(alignment, golden[f"case{case}.out.anchor_alignment"])


def test_anchor_frames_round_in_double_precision() -> None:
    assert anchor_frames(("+", 0.28, 0.36), 48_000, 1920) == slice(8, 9)


def test_align_of_a_window_is_that_stretch_of_the_whole() -> None:
    anchors = [("+", 0.5, 3.0), ("-", 2.0, 9.0), ("+", -1.0, 20.0), ("+", 4.0, 3.0)]
    whole = align(anchors, 200, sample_rate=48_000, hop_length=1920)
    for start, stop in [(0, 200), (13, 60), (170, 200), (199, 200)]:
        window = align(anchors, 200, sample_rate=48_000, hop_length=1920, start=start, stop=stop)
        assert torch.equal(window, whole[start:stop])


@pytest.mark.parametrize("anchor", [("*", 0.0, 1.0), ("<pad>", 0.0, 1.0), ("+", 0.0)])
def test_unknown_anchor_is_named(anchor: tuple) -> None:
    with pytest.raises(AnchorError, match="expected"):
        anchor_ids([anchor])


def test_anchor_without_finite_bounds_is_refused() -> None:
    with pytest.raises(AnchorError, match="finite"):
        anchor_frames(("+", 0.0, float("nan")), 48_000, 1920)


def test_one_anchor_list_a_recording_is_required() -> None:
    with pytest.raises(AnchorError, match="1 lists for 2 recordings"):
        align_batch([[]], torch.ones(2, 5, dtype=torch.bool), sample_rate=48_000, hop_length=1920)
