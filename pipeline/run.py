"""One execution of a job, from its settings to its exit code."""

from __future__ import annotations

import platform
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from typing import Any

from operators.sam_audio.checkpoint import CheckpointError
from operators.sam_audio.config import ConfigError
from pipeline import metrics
from pipeline.config import JobConfig, JobConfigError
from pipeline.context import Context, failure_row
from pipeline.job import Job, open_job
from pipeline.manifest import read_manifest
from pipeline.plan import Plan, Planner
from pipeline.progress import Progress
from pipeline.schema import FailureRow, RunRow, StemRow, utc_now
from pipeline.settings import load_config
from pipeline.stale import Selection
from pipeline.storage import StorageError
from pipeline.tables import Tables
from pipeline.uris import redact

OK, BROKEN, WRONG_CONFIG = 0, 1, 2
# Table commits between two compactions: a reader, and the next commit, open no more small files than that.
COMPACT_EVERY = 100


def main(job: str, argv: Sequence[str] | None = None, defaults: Mapping[str, Any] | None = None, doc: str = "") -> int:
    """Read the settings (command line, environment, YAML; see `--help`) and run. Returns the exit code.

    0: every item is committed or recorded as failed. 1: the run itself broke. 2: the settings are wrong.
    """
    try:
        config = load_config(sys.argv[1:] if argv is None else argv, defaults, prog=f"{job}.py", description=doc)
        return run(config, job)
    except (JobConfigError, ConfigError, CheckpointError) as error:
        print(f"{job}: {error}", file=sys.stderr)
        return WRONG_CONFIG


def run(
    config: JobConfig,
    job: str,
    select: Callable[[Job], Selection] | None = None,
    still_ours: Callable[[], None] | None = None,
) -> int:
    """Run a job. Raises JobConfigError or CheckpointError when its settings cannot be used; else the exit code.

    `select` makes, of the lake's history, what leaves items out; `still_ours` raises when another driver took over.
    """
    started = time.monotonic()
    opened = open_job(config)
    facts, config_hash, store, tables = opened.facts, opened.config_hash, opened.store, opened.tables
    run_row = RunRow(
        run_id=f"{utc_now():%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}",
        job=job,
        status="running",
        started_at=utc_now(),
        config_hash=config_hash,
        config_json=config.to_json(),
        model=redact(config.model),
        model_version=facts.version,
        package_version=version("sam-audio-pipeline"),
        ray_version=version("ray"),
        host=platform.node(),
    )
    recorder: Recorder | None = None
    try:
        if not config.dry_run:
            tables.catch_up(config_hash)
        committed = tables.committed_item_ids(config_hash)
        selection = select(opened) if select else None
        wanted = selection.wanted if selection else None
        records = read_manifest(config.manifest, config.limit)
        planner = Planner(config, store, facts, config_hash, committed, wanted)
        plan = planner.plan(selection.records(records) if selection else records)
        if selection:
            selection.prune(plan)
        print(_describe_plan(plan, job, selection), file=sys.stderr)
        if config.dry_run:
            return OK
        tables.create_missing()
        run_row = run_row.model_copy(update={"items_planned": plan.items, "items_skipped": plan.skipped})
        tables.put_run(run_row)
        video = any(item.mask_uri for item in plan.open_items.values())
        context = Context(config, store.root, config.read_prefixes, facts, config_hash, run_row.run_id, video)
        progress = Progress(len(plan.open_items) + len(plan.rejected), plan.audio_seconds, config.progress)
        progress.started = started
        recorder = Recorder(tables, config, progress, selection)
        for rejected in plan.rejected:
            recorder.failure(failure_row(context.run_id, rejected, "plan", rejected.error))
        if selection:
            selection.begin()
        unanswered = _execute(context, plan, recorder, still_ours)
    except (JobConfigError, ConfigError, CheckpointError):
        raise
    except Exception as error:  # Ray's are of many kinds
        message = redact(f"{type(error).__name__}: {error}")[:2000]
        print(f"{job}: the run broke: {message}\nRun the same command again: what is committed stays.", file=sys.stderr)
        with suppress(StorageError):  # when the store is what broke, the next run records what is committed
            if recorder is not None:
                recorder.flush()
                _finish(tables, run_row, "broken", recorder.progress, started, message)
        return BROKEN
    status = "broken" if unanswered else "done"
    _finish(tables, run_row, status, progress, started, f"{unanswered} items unanswered" if unanswered else None)
    why = "that need nothing now (listed above)" if selection else "that were committed before"
    print(progress.summary(skipped=plan.skipped, lake=store.root, run_id=run_row.run_id, why=why), file=sys.stderr)
    return BROKEN if unanswered else OK


class Recorder:
    """Takes result rows and commits them to the tables, every so many rows or seconds."""

    def __init__(
        self, tables: Tables, config: JobConfig, progress: Progress, selection: Selection | None = None
    ) -> None:
        self.tables, self.config, self.progress, self.selection = tables, config, progress, selection
        self.stems: list[StemRow] = []
        self.failures: list[FailureRow] = []
        self.answered: set[str] = set()
        self._last = time.monotonic()
        self._flushes = 0

    def stem(self, row: StemRow) -> None:
        if row.item_id not in self.answered:
            self.answered.add(row.item_id)
            self.stems.append(row)
            self.progress.committed += 1
            metrics.count("items_committed_total")
            self.progress.windows += row.windows
            self.progress.windows_skipped += row.windows_skipped
        self._flush_if_due()

    def failure(self, row: FailureRow) -> None:
        # Several segments of an item may fail: it is one failure of the item.
        if row.item_id not in self.answered:
            self.answered.add(row.item_id)
            if self.selection and (before := self.selection.history.failed.get(row.item_id)):
                row = row.model_copy(update={"attempt": before.runs + 1})
            self.failures.append(row)
            self.progress.failed += 1
            metrics.count("items_failed_total", stage=row.stage, cause=row.cause)
            self.progress.causes[row.cause] += 1
        self._flush_if_due()

    def _flush_if_due(self) -> None:
        waiting = len(self.stems) + len(self.failures)
        due = time.monotonic() - self._last >= self.config.commit_every_seconds
        if waiting >= self.config.commit_every_rows or (waiting and due):
            self.flush()

    def flush(self) -> None:
        with metrics.timed("table_commit_seconds"):
            self.tables.add_stems(self.stems)
            self.tables.add_failures(self.failures)
        self._flushes += 1
        if self._flushes % COMPACT_EVERY == 0:  # a run of a million items makes thousands of small files
            self.tables.compact("stems")
            self.tables.compact("failures")
        self.stems, self.failures, self._last = [], [], time.monotonic()


def _execute(context: Context, plan: Plan, recorder: Recorder, still_ours: Callable[[], None] | None) -> int:
    """Do the work; the number of open items that have neither a commit nor a failure in the end."""
    progress = recorder.progress
    if plan.todo:
        from pipeline import graph  # importing and starting Ray takes seconds: not for a run with nothing to do

        with progress:
            graph.connect(context.config)
            progress.gpus = graph.gpus_held(context.config)
            progress.publish()
            for result in graph.results(context, plan.todo):
                if still_ours:
                    still_ours()
                progress.audio_seconds += result["audio_seconds"]
                metrics.count("audio_seconds_total", result["audio_seconds"])
                if result["kind"] == "stem":
                    recorder.stem(StemRow.model_validate_json(result["row"]))
                elif result["kind"] == "failure":
                    recorder.failure(FailureRow.model_validate_json(result["row"]))
                progress.publish()
    recorder.flush()
    left = set(plan.open_items) - recorder.answered
    if left:  # another driver took them while we worked: its markers say so
        recorder.tables.catch_up(context.config_hash)
        left -= recorder.tables.committed_item_ids(context.config_hash)
    for name in ("stems", "failures", "runs"):
        recorder.tables.compact(name)  # type: ignore[arg-type]
    return len(left)


def _finish(tables: Tables, row: RunRow, status: str, progress: Progress, started: float, error: str | None) -> None:
    done = {
        "status": status,
        "finished_at": utc_now(),
        "elapsed_seconds": time.monotonic() - started,
        "error": error,
        "items_committed": progress.committed,
        "items_failed": progress.failed,
        "audio_seconds": progress.audio_seconds,
        "gpus": progress.gpus,
    }
    tables.put_run(row.model_copy(update=done))


def _describe_plan(plan: Plan, job: str, selection: Selection | None) -> str:
    before = "left alone" if selection else "committed before"
    said = (
        f"{job}: {plan.items} items planned, {plan.skipped} {before}, {len(plan.rejected)} rejected; "
        f"to do: {len(plan.open_items)} items in {len(plan.todo)} segments, {plan.audio_seconds / 3600:.2f} h of audio"
    )
    return f"{said}\n{selection.describe()}" if selection else said
