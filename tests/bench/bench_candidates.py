"""What candidates and skipped windows cost: seconds and peak memory of one separation, each in a process of its own.

`make bench-candidates` prints a table and writes out/bench-candidates.json. The model has the released codec (107.7 M
parameters) and a small DiT, with random weights: time and memory do not depend on them. Everything stays local.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECONDS = 6
CASES = {
    "K=1": {"candidates": 1},
    "K=8": {"candidates": 8},
    "K=8, all at once": {"candidates": 8, "together": True},
    "K=1, half of it skipped": {"candidates": 1, "skipped": True},
}


def run(case: dict[str, object]) -> dict[str, float]:
    """Separate one clip; in this process, which does nothing else."""
    import torch

    from operators.sam_audio.codec import DACVAE
    from operators.sam_audio.config import DACVAEConfig, LongFormConfig, SAMAudioConfig, SolverConfig, TransformerConfig
    from operators.sam_audio.long_form import Excerpt, separate_long
    from operators.sam_audio.model import SAMAudio
    from operators.sam_audio.processor import SAMAudioProcessor
    from operators.sam_audio.ranking import SoundActivityRanker

    torch.manual_seed(0)
    torch.set_num_threads(1)
    window = SECONDS * 25 // 4
    config = SAMAudioConfig(
        audio_codec=DACVAEConfig(),
        vision_encoder=None,
        transformer=TransformerConfig(dim=512, n_heads=4, n_layers=8, context_dim=512),
        span_predictor=None,
        solver=SolverConfig("midpoint", 2 / 8),
        long_form=LongFormConfig(window, window),
    )

    def encode_text(texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(len(texts), 4, 768), torch.ones(len(texts), 4, dtype=torch.bool)

    model = SAMAudio(config, text_encoder=encode_text).eval()
    assert isinstance(model.audio_codec, DACVAE)
    model.audio_codec.fold_weight_norm()
    wave = 0.1 * torch.randn(1, SECONDS * 48_000)
    batch = SAMAudioProcessor.from_config(config)(
        audios=[wave], descriptions=["dog barking"], anchors=[[("+", 1.0, 2.0)]]
    )
    before = resource.getrusage(resource.RUSAGE_SELF)
    started = time.monotonic()
    k = int(case["candidates"])  # type: ignore[call-overload]
    if case.get("skipped"):
        active = torch.zeros(SECONDS * 25, dtype=torch.bool)
        active[: SECONDS * 25 // 2] = True
        (stems,) = separate_long(model, [Excerpt("item", wave, "dog barking", active=active)])
        assert stems.skipped * 2 == stems.windows
    elif case.get("together"):  # as the reference does it: 2 x K rows at once
        z = model.solve(batch, torch.randn(k, SECONDS * 25, 256))
        latents = z.transpose(1, 2).reshape(k, 2, 128, -1)
        model.audio_codec.decode_stems(latents, call_frames=2 * k * SECONDS * 25)
    else:
        model.separate(batch, reranking_candidates=k, ranker=SoundActivityRanker())
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": time.monotonic() - started,
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_mb": after.ru_maxrss / 1024,
        "peak_over_model_mb": (after.ru_maxrss - before.ru_maxrss) / 1024,
    }


def main() -> int:
    if len(sys.argv) > 1:
        print(json.dumps(run(json.loads(sys.argv[1]))))
        return 0
    print(f"one clip of {SECONDS} s, one CPU thread\n")
    print(f"{'case':26}{'CPU s':>8}{'peak MB':>10}{'over the model':>17}{'CPU ratio':>12}")
    results: dict[str, dict[str, float]] = {}
    for name, case in CASES.items():
        command = [sys.executable, __file__, json.dumps(case)]
        out = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
                             capture_output=True, text=True, check=True).stdout  # fmt: skip
        results[name] = r = json.loads(out.splitlines()[-1])
        r["cpu_ratio"] = r["cpu_seconds"] / results["K=1"]["cpu_seconds"]
        print(
            f"{name:26}{r['cpu_seconds']:8.1f}{r['peak_mb']:10.0f}{r['peak_over_model_mb']:17.0f}{r['cpu_ratio']:12.2f}",
            flush=True,
        )
    path = ROOT / "out" / "bench-candidates.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"clip_seconds": SECONDS, "cases": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
