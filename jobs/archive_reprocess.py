"""Bring a lake up to date with its archive: what is new, what changed, what failed and may go now, and on demand what
an older model made. For a schedule: it holds a lease, so a second one that starts meanwhile ends at once.

python jobs/archive_reprocess.py --config nightly.yaml
python jobs/archive_reprocess.py --manifest m.parquet --lake lake --descriptions speech --stale older-than-model
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence

from operators.errors import AssetError
from operators.sam_audio.checkpoint import CheckpointError
from operators.sam_audio.config import ConfigError
from pipeline.config import JobConfig, JobConfigError
from pipeline.job import Job
from pipeline.lease import Lease, LeaseLost
from pipeline.run import BROKEN, OK, WRONG_CONFIG, run
from pipeline.settings import load_config
from pipeline.stale import Selection, selections
from pipeline.storage import StorageError, Store
from pipeline.superseded import drop

NAME = "archive_reprocess"


def main(argv: Sequence[str] | None = None) -> int:
    """0: done, or another one is at work. 1: the run broke, or its lease was lost. 2: the settings are wrong."""
    try:
        config = load_config(sys.argv[1:] if argv is None else argv, prog=f"{NAME}.py", description=__doc__)
        return reprocess(config)
    except (JobConfigError, ConfigError, CheckpointError, AssetError) as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return WRONG_CONFIG
    except (LeaseLost, StorageError) as error:
        print(f"{NAME}: {error}\nRun the same command again: what is committed stays.", file=sys.stderr)
        return BROKEN


def reprocess(config: JobConfig) -> int:
    """One scheduled run. Raises JobConfigError, CheckpointError, LeaseLost and StorageError; else the exit code."""
    if not config.lake:
        raise JobConfigError("lake is empty; give a folder or URL")
    print(f"{NAME}: {'; '.join(selections(config))}", file=sys.stderr)
    if config.dry_run:
        return run(config, NAME, Selection)
    lease = Lease(Store(config.lake), lease_name(config), config.lease_seconds, NAME)
    if not lease.acquire():
        print(f"{NAME}: nothing done, another one is at work: {lease.holder()}", file=sys.stderr)
        return OK
    with lease:
        print(f"{NAME}: holds lease {lease.name}, token {lease.token}", file=sys.stderr)
        opened: list[tuple[Job, Selection]] = []

        def select(job: Job) -> Selection:
            opened.append((job, Selection(job)))
            return opened[0][1]

        code = run(config, NAME, select, lease.check)
        if code == OK and config.superseded == "drop":
            job, selection = opened[0]
            old = selection.superseded(job.tables.committed_item_ids(job.config_hash))
            dropped = drop(job.store, job.tables, old, job.config_hash, lease.token, lease.confirm)
            said = f"{NAME}: dropped {dropped} superseded items; jobs/collect_garbage.py deletes their stems"
            print(said, file=sys.stderr)
        return code


def lease_name(config: JobConfig) -> str:
    """One a job and manifest unless a name is given: schedules of different archives do not wait for each other."""
    return config.lease or f"{NAME}-{hashlib.sha256(config.manifest.encode()).hexdigest()[:12]}"


if __name__ == "__main__":
    sys.exit(main())
