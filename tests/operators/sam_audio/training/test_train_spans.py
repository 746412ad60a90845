"""The span predictor's data and training on a few real recordings."""

from pathlib import Path

import numpy as np
import pytest
import torch
from packs import write_pack

from operators.sam_audio.band_codec import BandCodec
from operators.sam_audio.config import BandCodecConfig
from operators.sam_audio.spans import THRESHOLD, PEAFrame
from operators.sam_audio.training import band_sources, train_spans
from operators.sam_audio.training.band_bank import RECORDING_SECONDS, BandBank
from operators.sam_audio.training.band_sources import BandSources, activity, mixed_power
from operators.sam_audio.training.fetch import catalogue
from operators.sam_audio.training.sound_concepts import ALIKE, FAMILIES, concepts
from operators.sam_audio.training.span_data import SpanEngine
from operators.sam_audio.training.train_spans import Recipe, SpanTrainer, spans_config

LABELS = sorted({row["label"] or "" for row in catalogue() if row["kind"] == "sfx"})


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pack(tmp_path_factory.mktemp("pack"), "train")


@pytest.fixture(scope="module")
def codec() -> BandCodec:
    return BandCodec(BandCodecConfig())


@pytest.fixture(scope="module")
def engine(data_dir: Path, codec: BandCodec) -> SpanEngine:
    return SpanEngine(BandBank(data_dir, codec), codec, concepts(["dog"]))


def test_sounds_that_cancel_leave_nothing_and_never_less() -> None:
    power = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    mixed = mixed_power(power, power * (1 + 1e-7), torch.tensor(-1.5))
    assert (mixed >= 0).all() and mixed.max() < 1e-6
    assert mixed_power(mixed, power, torch.tensor(1.0)).isfinite().all()


def test_bank_holds_the_powers_of_the_recordings(codec: BandCodec, tmp_path: Path) -> None:
    data_dir = write_pack(tmp_path, "train")
    bank = BandBank(data_dir, codec)
    piece = next(p for p in bank.pieces if p.kind == "speech")
    wave = np.memmap(data_dir / "audio.i16", dtype=np.int16)[piece.start : piece.start + piece.samples]
    true = codec.band_power(codec.stft(torch.from_numpy(wave.astype(np.float32) / 32768)))[10:40]
    for opened in (bank, BandBank(data_dir, codec)):  # made now, and read back
        kept = opened.power(piece, 10, 30)
        loud = true > 1e-8
        torch.testing.assert_close(kept[loud].log10(), true[loud].log10(), atol=0.005, rtol=0)  # 0.05 dB
    assert piece.samples <= RECORDING_SECONDS * 48_000


def test_a_frame_is_active_within_40_db_of_the_peak_and_short_pauses_are_closed() -> None:
    power = torch.full((60,), 1e-5)
    power[10:20] = 1.0
    power[24:30] = 2e-4  # 37 dB under the peak, after a pause of 4 frames (160 ms)
    power[40:50] = 0.5  # after one of 10
    assert torch.nonzero(activity(power)).flatten().tolist() == [*range(10, 30), *range(40, 50)]
    assert not activity(torch.zeros(2, 30)).any()


def test_truth_follows_the_sources(engine: SpanEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [c.name for c in concepts(["dog"])]
    chosen = [("speech", ""), ("sfx", "dog")]
    monkeypatch.setattr(SpanEngine, "_sources", lambda self, rng: chosen)
    half = torch.cat([torch.ones(50), torch.zeros(50)])
    gates = iter([half, 1 - half] * 20)
    monkeypatch.setattr(band_sources, "gate", lambda frames, rng: next(gates))
    monkeypatch.setattr(BandSources, "shape", lambda self, power, rng, deviation_db=3.0: power)

    class Always(np.random.Generator):
        """Every source is gated."""

        def random(self, *args, **kwargs):  # type: ignore[override]
            return 0.6 if not args else super().random(*args, **kwargs)

    _, active, known = engine.mixture(100, Always(np.random.PCG64(1)))
    heard = {name: set(torch.nonzero(active[:, i]).flatten().tolist()) for i, name in enumerate(names)}
    assert heard["speech"] and max(heard["speech"]) < 54 and heard["speech"] == heard["all but effects"]
    assert heard["dog"] == heard["animal"] == heard["effects"] == heard["all but speech"]
    assert not heard["dog"] or min(heard["dog"]) >= 46
    assert not heard["music"] and known.all()


def test_an_effect_without_a_name_says_nothing_about_named_ones() -> None:
    found = {c.name: c for c in concepts(["dog", "rain", "water", "other", ""])}
    assert ("sfx", "other") in found["dog"].unsure and ("sfx", "") in found["dog"].unsure
    assert ("sfx", "other") in found["effects"].examples and ("sfx", "other") not in found["speech"].unsure
    assert ("sfx", "water") in found["rain"].unsure and ("sfx", "water") not in found["dog"].unsure
    assert all(not c.examples & c.unsure for c in found.values())


def test_families_and_groups_name_labels_of_the_catalogue() -> None:
    for members in (*FAMILIES.values(), *ALIKE):
        assert members <= set(LABELS)


def test_every_named_label_is_a_concept_with_several_wordings() -> None:
    found = {c.name: c for c in concepts(LABELS)}
    for label in set(LABELS) - {"other", "game_unit", ""}:
        assert len(found[label].wordings) >= 6


def test_a_resumed_run_equals_an_uninterrupted_one(data_dir: Path, tmp_path: Path) -> None:
    config, recipe = spans_config(32, 1, 2), Recipe(batch=2, frames=(50,))
    whole = SpanTrainer(data_dir, tmp_path / "a", config, recipe)
    whole.train(4, save_every=2)
    first = SpanTrainer(data_dir, tmp_path / "b", config, recipe)
    first.train(4, save_every=2, stop=2)
    second = SpanTrainer(data_dir, tmp_path / "b", config, recipe)
    assert second.step == 2
    second.train(4, save_every=2)
    for key, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(second.model.state_dict()[key], tensor, rtol=0, atol=0)
        torch.testing.assert_close(second.average.values[key], whole.average.values[key], rtol=0, atol=0)


def test_it_learns_and_what_it_saves_loads(data_dir: Path, tmp_path: Path) -> None:
    trainer = SpanTrainer(data_dir, tmp_path / "run", spans_config(32, 1, 2), Recipe(batch=4, frames=(75,), ema=0.9))
    trainer.train(90, save_every=10)
    losses = [row["loss"] for row in trainer.log]
    assert losses[-1] < 0.75 * losses[0]
    figures = trainer.finish(mixtures=16)
    assert figures["validation_frame_f1"] > 0.6
    model = PEAFrame.from_pretrained(tmp_path / "run" / "best")
    assert model.config == trainer.model.config
    latents = torch.randn(1, 40, 128)
    logits = model.logits(latents, None, ["speech"])
    assert logits.shape == (1, 40) and torch.isfinite(logits).all()


def test_calibration_makes_the_usual_threshold_the_best_one(engine: SpanEngine) -> None:
    torch.manual_seed(2)
    model = PEAFrame(spans_config(32, 1, 2)).eval()
    train_spans.initialise(model)
    with torch.no_grad():
        model.logit_bias.fill_(-9.0)  # so low that nothing would ever be found
    found = train_spans.calibrate(model, engine, concepts(["dog"]), 16)
    text = model.descriptions(["speech"])
    batch = engine.batch(8, 100, np.random.default_rng(0))
    with torch.no_grad():
        logits = train_spans.frame_logits(model, batch.latents, text)
    assert found["logit_shift"] != 0 and (logits.sigmoid() > THRESHOLD).any()
