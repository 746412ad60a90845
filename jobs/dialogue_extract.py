"""Lift the dialogue out of an archive: stems `dialogue` and `music_and_effects` for every asset of a manifest.

python jobs/dialogue_extract.py --manifest manifest.parquet --lake s3://bucket/lake
ray job submit -- python jobs/dialogue_extract.py --config dialogue.yaml
"""

import sys

from pipeline.run import main as run_job

PRESET = {
    # Lower-case noun phrases are what the models were trained on.
    "descriptions": ["speech"],
    "target_label": "dialogue",
    "residual_label": "music_and_effects",
}


def main(argv: list[str] | None = None) -> int:
    return run_job("dialogue_extract", argv, PRESET, __doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
