"""What every job starts from: its settings, the model's facts, and the lake."""

from __future__ import annotations

from dataclasses import dataclass

from operators.describe import ModelFacts, describe
from pipeline.config import JobConfig, JobConfigError
from pipeline.storage import Store
from pipeline.tables import Tables


@dataclass(frozen=True)
class Job:
    """Settings, and what follows from them."""

    config: JobConfig
    facts: ModelFacts
    config_hash: str
    store: Store
    tables: Tables


def open_job(config: JobConfig) -> Job:
    """Read the model's facts and open the lake; writes nothing. Raises JobConfigError or CheckpointError."""
    if not config.lake:
        raise JobConfigError("lake is empty; give a folder or URL")
    facts = describe(config.model, config.solver, predict_spans=config.predict_spans)
    store = Store(config.lake, config.read_prefixes)
    return Job(config, facts, config.config_hash(facts.version), store, Tables(store))
