"""What every stage of a run is given, and how an error becomes a row."""

from __future__ import annotations

import errno
import logging
import platform
import tempfile
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from operators.describe import ModelFacts
from operators.errors import AssetError
from operators.segments import Segment, cut
from pipeline.config import JobConfig
from pipeline.items import Item, Work
from pipeline.plan import core_and_halo
from pipeline.schema import FailureRow, utc_now
from pipeline.storage import StorageError, Store
from pipeline.uris import redact

if TYPE_CHECKING:
    from operators.separator import SeparatorOptions

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Context:
    """What every stage needs; small, and sent to every worker. Only what concerns the model imports torch."""

    config: JobConfig
    lake: str
    read_prefixes: tuple[str, ...]
    facts: ModelFacts
    config_hash: str
    run_id: str
    # Whether any item has a masked video; without one no model loads its image tower.
    video: bool = True

    @property
    def store(self) -> Store:
        return Store(self.lake, self.read_prefixes)

    @property
    def options(self) -> SeparatorOptions:
        import torch

        from operators.separator import SeparatorOptions

        config = self.config
        return SeparatorOptions(
            solver=config.solver,
            channels=config.channels,
            residual=config.residual,
            predict_spans=config.predict_spans,
            skip_inactive=config.skip_inactive,
            span_predictor=config.span_predictor,
            judge=config.judge_name,
            candidates=config.candidates,
            ranker=config.ranker,
            rerank_below=config.rerank_below,
            dtype=getattr(torch, config.precision),
        )

    def cut(self, item: Item, total_frames: int) -> list[Segment]:
        return cut(total_frames, *core_and_halo(self.config, self.facts, item.mask_uri is not None))

    def core_seconds(self, work: Work) -> float:
        """Duration of a work's core; 0 when its parts are only to be joined."""
        if work.segment is None:
            return 0.0
        frames = work.segment.core_end - work.segment.core_start
        return frames * self.facts.hop_length / self.facts.sample_rate

    def failure(self, item: Item, stage: str, error: Exception, attempt: int = 1) -> FailureRow:
        """The failures row of an item; anything but an AssetError is our fault and is said to be."""
        error = machine_fault(error) or error
        if not isinstance(error, AssetError):
            trace = "".join(traceback.format_exception(error))
            log.error("item %s failed in %s\n%s", item.item_id, stage, redact(trace))  # errors may quote URLs and keys
            error = AssetError(
                "internal_error",
                f"{type(error).__name__}: {redact(str(error))[:500]}",
                "this is a fault of the pipeline or its machine: run the job again, and report it if it stays",
            )
        return failure_row(self.run_id, item, stage, error, attempt)


def machine_fault(error: Exception) -> AssetError | None:
    """What the store or the machine did to an item that may be whole: another run can do it."""
    if isinstance(error, StorageError):
        return AssetError("storage_error", str(error), "check the store, then run the job again")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return AssetError(
            "disk_full",
            f"the disk of {platform.node()} is full: {tempfile.gettempdir()} holds stems while they are written",
            "free or enlarge it, or set TMPDIR to a larger disk on every machine; then run the job again",
        )
    return None


def failure_row(run_id: str, item: Any, stage: str, error: AssetError, attempt: int = 1) -> FailureRow:
    """`item` is an Item or a Rejected: what has item_id, asset_id, uri and metadata_json."""
    return FailureRow(
        run_id=run_id,
        item_id=item.item_id,
        asset_id=item.asset_id,
        uri=redact(item.uri),
        stage=stage,
        cause=error.cause,
        message=redact(error.message),
        remedy=redact(error.remedy),
        attempt=attempt,
        failed_at=utc_now(),
        metadata_json=item.metadata_json,
    )
