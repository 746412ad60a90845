"""The demonstration: dialogue extraction on real media, into a lake in a local folder. Run by `make demo`."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import soundfile as sf

from jobs import build_manifest, dialogue_extract
from pipeline.storage import Store
from pipeline.tables import Tables

SOURCE = Path(__file__).parent / "demo_media"
RATE = 48_000
PROGRAMME_MINUTES = 12


def read(name: str) -> np.ndarray:
    """A demo recording as float32 [samples, 2]."""
    return sf.read(SOURCE / name, dtype="float32")[0]


def programme(speech: np.ndarray, music: np.ndarray, dog: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Twelve minutes of magazine programme, [samples, 2]: the mixture and its dialogue.

    Speech comes in half-minute reports with pauses; the music bed rises and falls; the dog comes and goes.
    """
    n = PROGRAMME_MINUTES * 60 * RATE
    dialogue = np.zeros((n, 2), np.float32)
    for start in range(5 * RATE, n - len(speech), 45 * RATE):
        dialogue[start : start + len(speech)] += speech
    bed = np.resize(music, (n, 2)) * (0.7 + 0.5 * np.sin(np.arange(n) / RATE * 2 * np.pi / 97))[:, None]
    effects = np.zeros((n, 2), np.float32)
    for start in range(20 * RATE, n - len(dog), 120 * RATE):
        effects[start : start + len(dog)] += dog
    mixture = dialogue + bed + effects
    level = 0.9 / np.abs(mixture).max()
    return (mixture * level).astype(np.float32), (dialogue * level).astype(np.float32)


def make_media(media: Path, truth: Path) -> None:
    """Write the archive that the demo works on, and the true dialogue of what is mixed here."""
    for folder in (media, truth):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    speech, music, dog = read("speech.flac"), read("music.flac"), read("dog.flac")
    for name in ("demo.mp4", "demo.mkv"):  # ten seconds of the mixture under a test picture
        shutil.copy(SOURCE / name, media / name)
        sf.write(truth / f"{name}.flac", speech[: 10 * RATE], RATE)
    sf.write(media / "report.flac", speech + music, RATE, subtype="PCM_24")
    sf.write(truth / "report.flac.flac", speech, RATE, subtype="PCM_24")
    # The speaker left of the middle, the music's channels swapped: stereo has to survive.
    pan = np.array([0.9, 0.45], np.float32)
    sf.write(media / "stereo.wav", speech * pan + music[:, ::-1] + 0.5 * dog, RATE, subtype="PCM_16")
    sf.write(truth / "stereo.wav.flac", speech * pan, RATE, subtype="PCM_24")
    mixture, dialogue = programme(speech, music, dog)
    sf.write(media / "programme.flac", mixture, RATE, subtype="PCM_16")
    sf.write(truth / "programme.flac.flac", dialogue, RATE, subtype="PCM_16")
    whole = (media / "stereo.wav").read_bytes()
    (media / "broken-truncated.wav").write_bytes(whole[: len(whole) // 3])
    (media / "broken-not-audio.mp3").write_text("This is a shopping list that somebody renamed.\n" * 40)


def si_sdr(estimate: np.ndarray, truth: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio, dB, over all channels of [samples, channels]."""
    a, b = estimate.ravel().astype(np.float64), truth.ravel().astype(np.float64)
    projection = a @ b / (b @ b) * b
    return float(10 * np.log10((projection @ projection) / ((a - projection) @ (a - projection))))


def improvement(media: Path, truth: Path, stem: Path) -> tuple[float, float]:
    """SI-SDR of the mixture and of the dialogue stem against the true dialogue, dB."""
    import av

    reference = sf.read(truth, dtype="float32", always_2d=True)[0]
    estimate = sf.read(stem, dtype="float32", always_2d=True)[0]
    with av.open(str(media)) as container:
        resampler = av.AudioResampler(format="flt", layout="stereo", rate=RATE)
        frames = [f for frame in container.decode(audio=0) for f in resampler.resample(frame)]
    mixture = np.concatenate([f.to_ndarray().reshape(-1, 2) for f in frames])
    n = min(len(reference), len(estimate), len(mixture))
    return si_sdr(mixture[:n], reference[:n]), si_sdr(estimate[:n], reference[:n])


def print_stems(stems: pa.Table, media: Path, truth: Path) -> None:
    print(f"\n{'asset':18}{'length':>8}{'ch':>4}{'parts':>7}{'judge':>7}   SI-SDR against the true dialogue")
    for row in sorted(stems.to_pylist(), key=lambda r: r["asset_id"]):
        line = f"{row['asset_id']:18}{row['duration_seconds']:7.1f}s{row['channels']:4d}{row['segment_count']:7d}"
        line += f"{row['judge_overall']:7.2f}"
        known = truth / f"{row['asset_id']}.flac"
        if known.exists():
            stem = Path(row["target_uri"].removeprefix("file://"))
            before, after = improvement(media / row["asset_id"], known, stem)
            line += f"   {before:5.1f} -> {after:5.1f} dB ({after - before:+.1f})"
        print(line)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="where media, manifest and lake go")
    out = parser.parse_args(argv).out.resolve()
    media, truth, lake, manifest = out / "media", out / "truth", out / "lake", out / "manifest.parquet"
    started = time.monotonic()
    print(f"1. media: five recordings and two broken files in {media}")
    make_media(media, truth)
    shutil.rmtree(lake, ignore_errors=True)
    print("\n2. manifest: python jobs/build_manifest.py --media ... --out ...")
    code = build_manifest.main(["--media", str(media), "--out", str(manifest)])
    if code:
        return code
    print("\n3. dialogue extraction: python jobs/dialogue_extract.py --manifest ... --lake ...")
    arguments = ["--manifest", str(manifest), "--lake", str(lake), "--allowed-read-prefixes", str(media)]
    code = dialogue_extract.main(arguments)
    if code:
        return code
    tables = Tables(Store(str(lake)))
    stems, failures = tables.read("stems"), tables.read("failures")
    print_stems(stems, media, truth)
    print("\nfailures (table `failures`):")
    for row in sorted(failures.to_pylist(), key=lambda r: r["asset_id"]):
        print(f"  {row['asset_id']}: {row['cause']} in {row['stage']}: {row['message']}\n    remedy: {row['remedy']}")
    print("\nlisten (FLAC; dialogue, and next to it music_and_effects):")
    for row in stems.sort_by("asset_id").to_pylist():
        print(f"  {row['target_uri'].removeprefix('file://')}")
    print(f"\ntables for DuckDB, pandas, Spark: {lake / 'tables'}")
    print(f"demo took {time.monotonic() - started:.0f} s")
    causes = Counter(failures.column("cause").to_pylist())
    return 0 if stems.num_rows == 5 and sum(causes.values()) == 2 else 1


if __name__ == "__main__":
    sys.exit(main())
