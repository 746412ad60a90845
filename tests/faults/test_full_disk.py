"""A disk that is full says so: no stem is taken for whole of which the end could not be written."""

import json
import subprocess
import sys

import pytest

# Files may not grow beyond 64 KiB in that process: to a writer that is a disk that is full.
PROGRAM = """
import json, resource, sys
import numpy as np, soundfile
from operators.encode import StemWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
path, kind, low, high = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
noise = (np.random.default_rng(0).standard_normal((1, high)) * 0.2).astype(np.float32)
refused, whole, broken = 0, 0, []
for length in range(low, high, (high - low) // 40 | 1):
    try:
        with StemWriter(path, 6000, 1, kind) as writer:
            for start in range(0, length, 3000):
                writer.write(noise[:, start : min(start + 3000, length)])
            if length % 2:  # as who wants the report does: the end of the `with` must not hide what that raises
                writer.close()
    except OSError:
        refused += 1
        continue
    try:
        found = soundfile.read(path, dtype="float32")[0]
        same = found.shape == (length,) and bool(np.abs(found - noise[0, :length]).max() < 1e-6)
    except Exception:
        same = False
    whole += same
    broken += [] if same else [length]
print(json.dumps([refused, whole, broken]))
"""


@pytest.mark.parametrize(("kind", "low", "high"), [("flac", 21_500, 24_000), ("wav", 15_000, 17_500)])
def test_stem_on_a_full_disk_is_refused_or_whole(tmp_path, kind: str, low: int, high: int) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / f"stem.{kind}"), kind, str(low), str(high)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    refused, whole, broken = json.loads(said.stdout)
    assert refused > 3 and whole > 3 and broken == []
    assert not said.stderr
