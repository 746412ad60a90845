"""Train or fine-tune a separator on recordings of your own: LoRA, all weights, or from scratch.

    python jobs/build_training_manifest.py --media sounds --out sounds/training.parquet
    python jobs/train_separator.py --manifest sounds/training.parquet --lake lake --run dogs --model tiny --steps 500
    python jobs/separate.py --model lake/training/dogs/model --descriptions "dog barking" ...

The run lies in the lake under training/<run>: checkpoints, curves for TensorBoard, and at the end the model. The same
command again goes on from the newest checkpoint, with as many workers as you like; a run that has ended, or one of
other settings, is never overwritten.
"""

import sys

from pipeline.training_run import main as run_training


def main(argv: list[str] | None = None) -> int:
    return run_training(argv, __doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
