"""The driver of a training run: checks everything first, then hands over to Ray Train."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import tempfile
from collections.abc import Sequence

import ray

from operators.errors import AssetError
from operators.sam_audio.checkpoint import fingerprint, read_config
from operators.sam_audio.config import ConfigError
from operators.sam_audio.sources import CheckpointError
from operators.sam_audio.training.mixing import Collection
from pipeline import cluster
from pipeline.config import JobConfigError
from pipeline.lease import Lease, LeaseLost
from pipeline.storage import StorageError, Store
from pipeline.training_config import TrainingConfig, parse_training
from pipeline.training_manifest import TrainingRow, collection, manifest_bytes, read_training_manifest
from pipeline.training_store import TrainingStore
from pipeline.uris import redact

OK, BROKEN, WRONG_CONFIG = 0, 1, 2
NAME = "train_separator"


def main(argv: Sequence[str] | None, description: str) -> int:
    """0: trained, or another driver is at it. 1: broke, run it again. 2: wrong settings, or the run is another's."""
    try:
        return run(parse_training(sys.argv[1:] if argv is None else argv, description))
    except (JobConfigError, ConfigError, CheckpointError, AssetError) as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return WRONG_CONFIG
    except (StorageError, LeaseLost) as error:
        print(f"{NAME}: {error}\nRun the same command again: it goes on from its newest checkpoint.", file=sys.stderr)
        return BROKEN


def run(config: TrainingConfig) -> int:
    """Train, or go on with training. Raises JobConfigError, ConfigError, CheckpointError, StorageError, LeaseLost."""
    rows = read_training_manifest(config.manifest)
    store = TrainingStore(config)
    check_sources(store.store, rows)
    model = read_config(config.model)
    config.objective_for(model)
    train, held_out = collection(rows, "train"), _held_out(config, rows)
    identity = {
        "manifest_sha256": hashlib.sha256(manifest_bytes(rows)).hexdigest(),
        "model_fingerprint": fingerprint(config.model),
    }
    lease = Lease(store.store, f"training-{config.run}", config.lease_seconds, NAME)
    if not lease.acquire():
        print(f"{NAME}: nothing done, another driver has this run: {lease.holder()}", file=sys.stderr)
        return OK
    with lease:
        step = store.claim(identity)
        hours = sum(source.seconds for source in train.sources) / 3600
        print(
            f"{NAME}: {redact(store.url(''))}: {config.mode} of {config.model}, {len(train.sources):,} recordings "
            f"({hours:.2f} h) and {len(train.mixtures):,} mixtures; "
            f"{0 if held_out is None else len(held_out.sources) + len(held_out.mixtures):,} held out; "
            + ("from the beginning" if step is None else f"goes on from step {step}"),
            flush=True,
        )
        if not fit(config):
            return BROKEN
        lease.check()
    report(store)
    return OK


def _held_out(config: TrainingConfig, rows: Sequence[TrainingRow]) -> Collection | None:
    if not config.validation_examples:
        return None
    try:
        return collection(rows, "validation")
    except ConfigError:
        raise JobConfigError(
            "the held-out rows of the manifest (split validation) are too few to mix: hold out mixtures, or recordings "
            "of two labels, or measure nothing with --validation-examples 0"
        ) from None


def check_sources(store: Store, rows: Sequence[TrainingRow]) -> None:
    """Whether every recording lies where it may be read. Raises AssetError `forbidden_uri` for the first that does not.

    Only what URIs say is looked at: a recording that is gone costs its examples, and not the run.
    """
    for row in rows:
        for sound in row.stems or (row,):
            for uri in (sound.uri, sound.mask_uri):
                if uri is not None:
                    store.locate_media(uri)


def fit(config: TrainingConfig) -> bool:
    """Run Ray Train to the end. False when it gave up; its message has been printed."""
    try:
        import tensorboardX  # noqa: F401  # workers write curves with it
    except ImportError:
        raise JobConfigError("training needs the packages of the extra `train`: pip install -e '.[train]'") from None
    connect(config)
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import LoggingConfig
    from ray.train.v2.api.exceptions import TrainingFailedError

    from pipeline.training_progress import Progress
    from pipeline.training_worker import train_worker

    gpus = config.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if ray.cluster_resources().get("GPU", 0) >= config.workers else 0.0
    resources = {"CPU": 1.0, **({"GPU": gpus} if gpus else {})}
    values = config.model_dump(mode="json")
    if not gpus and not os.environ.get("RAY_ADDRESS"):
        values["threads"] = max(1, (os.cpu_count() or 1) // config.workers)
    with tempfile.TemporaryDirectory(prefix="ray-train-") as scratch, Progress(config.steps) as speaker:
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={**values, "speaker": speaker},
            scaling_config=ScalingConfig(
                num_workers=config.workers, use_gpu=bool(gpus), resources_per_worker=resources
            ),
            # Only Ray's own notes go there: checkpoints are in the lake, where a new driver finds them as well.
            run_config=RunConfig(
                name=config.run,
                storage_path=scratch,
                failure_config=FailureConfig(max_failures=config.max_failures),
                logging_config=LoggingConfig(log_level="ERROR"),  # type: ignore[call-arg]
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            cause = str(error).strip().splitlines()
            print(
                f"{NAME}: training stopped: {redact(cause[-1] if cause else type(error).__name__)[:500]}\n"
                "Run the same command again: it goes on from its newest checkpoint.",
                file=sys.stderr,
            )
            return False
    return True


def connect(config: TrainingConfig) -> None:
    """Join the cluster that RAY_ADDRESS names, or start one on this machine."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    # A worker holds one core and feeds its model; examples are made on the rest.
    cluster.join(max(2, os.cpu_count() or 1) + config.workers)


def report(store: TrainingStore) -> None:
    """Print the figures of a run that has ended."""
    for name, value in store.figures().items():
        print(f"{name:36} {value if isinstance(value, str) else f'{value:,.6g}'}")
    print(f"model in {redact(store.url('model'))}: give it as --model; curves: tensorboard --logdir <run>/curves")
