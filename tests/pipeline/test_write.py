"""What becomes of stems after the model: joined, at the rate, depth and level that were asked for, and measured."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
from archive import MEDIA, write_manifest
from line import Line

from operators.resample import resample_range
from pipeline.config import JobConfig
from pipeline.facts import Facts
from pipeline.items import Work
from pipeline.schema import FailureRow, StemRow
from pipeline.storage import Store
from pipeline.write import WriteStage

RATE = 48_000
Pair = tuple[np.ndarray, np.ndarray]


class Writing:
    """The write stage of a job over one recording, fed with stems of our own instead of a model's."""

    def __init__(self, root: Path, *, source_rate: int = RATE, seconds: float = 3, lake: str | None = None, **settings):
        media = root / "media"
        media.mkdir(exist_ok=True)
        self.source = media / "tape.flac"
        soundfile.write(self.source, np.zeros((round(seconds * source_rate), 2)), source_rate)
        manifest = write_manifest(media, ["tape.flac"], root / "m.parquet")
        config = JobConfig(
            manifest=str(manifest),
            lake=lake or str(root / "lake"),
            allowed_read_prefixes=(str(media),),
            descriptions=("speech",),
            segment_seconds=12,
            **settings,
        )
        line = Line(config)
        self.context, self.works = line.context, line.plan().todo

    def results(self, stems: Pair) -> list[dict]:
        rows = [self.row(work, stems) for work in self.works]
        return [WriteStage(self.context)(row) for row in rows]

    def row(self, work: Work, stems: Pair) -> dict:
        assert work.segment is not None
        hop = self.context.facts.hop_length
        start, end = work.segment.start * hop, work.segment.end * hop
        return {
            "work": work.to_json(),
            "failure": "",
            "facts": Facts(self.context.core_seconds(work)).to_json(),
            "target": stems[0][:, start:end],
            "residual": stems[1][:, start:end],
        }

    def stem_row(self, stems: Pair) -> StemRow:
        result = self.results(stems)[-1]
        assert result["kind"] == "stem", result
        return StemRow.model_validate_json(result["row"])


def stems(seconds: float, rate: int = RATE) -> Pair:
    """Speech and music, `[2, n]` at 48 kHz: as much as a recording of that rate and duration becomes."""
    n = math.ceil(round(seconds * rate) * RATE / rate)
    speech, music = (soundfile.read(MEDIA / f"{x}.flac", frames=n, dtype="float32")[0].T for x in ("speech", "music"))
    return speech.copy(), music.copy()


def read(url: str) -> np.ndarray:
    return soundfile.read(url, dtype="float32", always_2d=True)[0].T


def test_stems_go_out_as_the_model_made_them_unless_told_otherwise(tmp_path: Path) -> None:
    writing, (target, residual) = Writing(tmp_path), stems(3)
    row = writing.stem_row((target, residual))
    assert (row.sample_rate, row.source_sample_rate, row.bit_depth, row.channels) == (RATE, RATE, 24, 2)
    assert (row.gain_db, row.clipped_samples, row.duration_seconds) == (0, 0, 3)
    np.testing.assert_allclose(read(row.target_uri), target, atol=2**-24)
    np.testing.assert_allclose(read(row.residual_uri), residual, atol=2**-24)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 96_000])
def test_stems_at_the_source_rate_are_as_long_as_the_source(rate: int, tmp_path: Path) -> None:
    writing = Writing(tmp_path, source_rate=rate, seconds=2.34567, output_sample_rate="source")
    row = writing.stem_row(stems(2.34567, rate))
    assert row.sample_rate == row.source_sample_rate == rate
    for url in (row.target_uri, row.residual_uri):
        assert soundfile.info(url).samplerate == rate
        assert soundfile.info(url).frames == soundfile.info(writing.source).frames


def test_parts_are_joined_and_converted_as_if_they_had_been_one(tmp_path: Path, lake: str) -> None:
    writing = Writing(tmp_path, seconds=29, lake=lake, output_sample_rate=44_100)
    pair = stems(29)
    results = writing.results(pair)
    assert [result["kind"] for result in results] == ["part", "part", "stem"]
    row = StemRow.model_validate_json(results[-1]["row"])
    store, path = writing.context.store, tmp_path / "read.flac"
    for url, whole in zip((row.target_uri, row.residual_uri), pair, strict=True):
        store.download(url.removeprefix(f"{store.root}/"), path)
        expected = resample_range(whole, 0, 0, None, RATE, 44_100)
        np.testing.assert_allclose(read(str(path)), expected, atol=3e-6)
    assert (row.sample_rate, row.source_sample_rate) == (44_100, RATE)
    assert row.duration_seconds == 29


def test_overs_turn_down_both_stems_and_the_table_says_by_how_much(tmp_path: Path) -> None:
    target, residual = stems(3)
    target *= np.float32(2 / np.abs(target).max())
    row = Writing(tmp_path).stem_row((target, residual))
    assert row.gain_db == pytest.approx(-6.02, abs=0.01)
    assert row.clipped_samples == 0
    gain = 10 ** (row.gain_db / 20)
    np.testing.assert_allclose(read(row.target_uri), target * gain, atol=1e-6)
    np.testing.assert_allclose(read(row.residual_uri), residual * gain, atol=1e-6)
    assert 0.999 < row.target_peak <= 1


def test_overs_in_one_part_turn_down_the_whole_item(tmp_path: Path) -> None:
    target, residual = stems(29)
    target[:, : 5 * RATE] *= np.float32(4 / np.abs(target[:, : 5 * RATE]).max())
    row = Writing(tmp_path, seconds=29, bit_depth=16).stem_row((target, residual))
    assert row.gain_db == pytest.approx(-12.04, abs=0.01)
    assert row.bit_depth == 16
    np.testing.assert_allclose(read(row.residual_uri), residual * 10 ** (row.gain_db / 20), atol=2**-14)


def test_overs_are_cut_and_counted_when_the_job_says_so(tmp_path: Path) -> None:
    target, residual = stems(3)
    target *= np.float32(2 / np.abs(target).max())
    row = Writing(tmp_path, on_overs="clip").stem_row((target, residual))
    assert row.gain_db == 0
    assert row.clipped_samples == np.count_nonzero(np.abs(target) > 1) > 0
    assert row.target_peak == pytest.approx(2)


def test_loudness_and_true_peak_stand_in_the_row(tmp_path: Path) -> None:
    wave = (10 ** (-23 / 20) * np.sin(2 * np.pi * 1_000 * np.arange(3 * RATE) / RATE)).astype(np.float32)
    row = Writing(tmp_path).stem_row((np.stack([wave, wave]), np.zeros((2, 3 * RATE), np.float32)))
    assert row.target_loudness_lufs == pytest.approx(-23, abs=0.1)
    assert row.target_true_peak_dbtp == pytest.approx(-23, abs=0.1)
    assert row.residual_loudness_lufs is None
    assert row.residual_true_peak_dbtp is None


@pytest.mark.parametrize(
    ("settings", "subtype", "bits"),
    [
        ({"bit_depth": 16}, "PCM_16", 16),
        ({"stem_format": "wav"}, "FLOAT", 32),
        ({"stem_format": "wav", "bit_depth": 24}, "PCM_24", 24),
        ({"stem_format": "opus"}, "OPUS", None),
    ],
)
def test_format_and_bit_depth_are_those_of_the_job(
    settings: dict, subtype: str, bits: int | None, tmp_path: Path
) -> None:
    row = Writing(tmp_path, **settings).stem_row(stems(3))
    assert soundfile.info(row.target_uri).subtype == subtype
    assert row.bit_depth == bits
    assert row.target_uri.endswith(settings.get("stem_format", "flac"))


def test_opus_at_the_rate_of_a_cd_is_stored_at_48_khz(tmp_path: Path) -> None:
    writing = Writing(tmp_path, source_rate=44_100, output_sample_rate="source", stem_format="opus")
    row = writing.stem_row(stems(3, 44_100))
    assert (row.sample_rate, row.source_sample_rate) == (48_000, 44_100)


def test_a_source_that_is_gone_at_the_end_matters_only_when_its_rate_does(tmp_path: Path) -> None:
    writing = Writing(tmp_path)
    writing.source.unlink()
    assert writing.stem_row(stems(3)).source_sample_rate is None
    writing = Writing(tmp_path, output_sample_rate="source")
    writing.source.unlink()
    (result,) = writing.results(stems(3))
    failure = FailureRow.model_validate_json(result["row"])
    assert (result["kind"], failure.stage, failure.cause) == ("failure", "write", "not_found")


def test_samples_that_are_not_finite_make_a_failure_and_no_stem(tmp_path: Path) -> None:
    writing, (target, residual) = Writing(tmp_path), stems(3)
    target[0, 1_000] = np.inf
    (result,) = writing.results((target, residual))
    assert result["kind"] == "failure"
    assert writing.context.store.list("stems") == writing.context.store.list("commits") == []


class Collected(Store):
    """A lake in which the collector deletes a stem of an earlier try just before the marker is put."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        self.delete(StemRow.model_validate_json(data).target_uri.removeprefix(f"{self.root}/"))
        return super().put_if_absent(key, data)


def test_stem_of_an_earlier_try_that_is_collected_before_the_marker_is_stored_again(tmp_path: Path) -> None:
    job, pair = Writing(tmp_path), stems(3)
    row = job.stem_row(pair)
    store = Collected(job.context.lake)
    store.delete_prefix("commits")  # as if that run had died before its marker
    item, facts = job.works[0].asset, Facts(3.0)
    assert WriteStage(job.context).commit(store, item, tmp_path, lambda: [pair], facts).target_uri == row.target_uri
    assert store.exists(store.key_of(row.target_uri)) and len(store.list("commits")) == 1
