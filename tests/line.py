"""A job's stages as plain functions in this process: its plan, and the work on it without Ray."""

from __future__ import annotations

from pipeline.config import JobConfig
from pipeline.context import Context
from pipeline.items import Work
from pipeline.job import open_job
from pipeline.manifest import read_manifest
from pipeline.plan import Plan, Planner
from pipeline.schema import StemRow
from pipeline.stages import DecodeStage, SeparateStage
from pipeline.write import WriteStage


class Line:
    """The stages of one run of a job, and what passes between them."""

    def __init__(self, config: JobConfig) -> None:
        job = open_job(config)
        self.store = job.store
        self.context = Context(config, job.store.root, config.read_prefixes, job.facts, job.config_hash, "run-1")
        self.planner = Planner(config, job.store, job.facts, job.config_hash, set())

    def plan(self) -> Plan:
        return self.planner.plan(read_manifest(self.context.config.manifest))

    def separated(self, works: list[Work]) -> list[dict]:
        decoded = [DecodeStage(self.context)({"work": work.to_json()}) for work in works]
        batch = {name: [row[name] for row in decoded] for name in decoded[0]}
        rows = SeparateStage(self.context)(batch)
        return [{name: values[0] for name, values in row.items()} for row in rows]

    def write(self, rows: list[dict]) -> list[dict]:
        return [WriteStage(self.context)(row) for row in rows]

    def committed(self) -> list[StemRow]:
        """Do everything; the committed rows."""
        results = self.write(self.separated(self.plan().todo))
        return [StemRow.model_validate_json(result["row"]) for result in results if result["kind"] == "stem"]
