"""Lift any sound out of an archive: the prompts come from the settings, or from the manifest's `description` column.

python jobs/separate.py --manifest manifest.parquet --lake lake --descriptions "dog barking" --target-label dog
"""

import sys

from pipeline.run import main as run_job


def main(argv: list[str] | None = None) -> int:
    return run_job("separate", argv, {}, __doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
