"""Runs hostile cases through the pipeline's own planning and decoding, and says what became of each.

A case ends well when it is decoded, or refused with a cause and a remedy; within the time limit, and the memory limit.
"""

from __future__ import annotations

import json
import resource
import shutil
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from operators.errors import AssetError
from operators.segments import Segment
from pipeline.config import JobConfig
from pipeline.context import Context
from pipeline.decode import limits_for, masked_video
from pipeline.items import Work
from pipeline.job import open_job
from pipeline.plan import Planner
from pipeline.schema import FailureRow
from pipeline.stages import DecodeStage

MAX_SECONDS = 60.0
# What reading a file may take in its own process (the setting's default), and what the rest may grow by meanwhile: the
# sound of a segment at the model's rate, and its copies while it is resampled.
MEMORY_GB = 4.0
GOOD = "GOOD"  # stands in rows for the path of the good recording
# Causes that stand for a fault of ours, or for a limit that had to step in.
FAULTS = ("internal_error", "no_answer", "no_remedy", "wrong_count")
LIMITS = ("decoder_hung", "decoder_died", "decoder_memory")


@dataclass(frozen=True)
class Case:
    """`content`: a path or the bytes of a file called `name`, what makes them in a folder, or a manifest's records."""

    group: str
    name: str
    content: Any

    @property
    def key(self) -> str:
        return f"{self.group}/{self.name}"


@dataclass(frozen=True)
class Outcome:
    """`causes` counts answers; `decoded` among them. Peak memory is that of the process that read the file."""

    key: str
    group: str
    causes: dict[str, int]
    seconds: float
    peak_gb: float


class Line:
    """A job's planning and decoding over files in one folder; the lake is empty and stays so.

    `film` is a good recording with a picture: what masks and rows that are wrong in other ways belong to.
    """

    def __init__(self, root: Path, film: bytes, **settings: Any) -> None:
        self.root, self.media = root, root / "media"
        self.media.mkdir(parents=True, exist_ok=True)
        self.film = self.media / "film.mkv"
        self.film.write_bytes(film)
        lake = root / "lake"
        config = JobConfig(
            manifest=str(root / "m.parquet"),
            lake=str(lake),
            descriptions=("speech",),
            segment_seconds=300,
            allowed_read_prefixes=(str(self.media),),
            **{"decode_seconds": MAX_SECONDS - 10, "decode_memory_gb": MEMORY_GB, **settings},
        )
        job = open_job(config)
        self.context = Context(config, job.store.root, config.read_prefixes, job.facts, job.config_hash, "fuzz")
        self.planner = Planner(config, job.store, job.facts, job.config_hash, set())
        self.decode = DecodeStage(self.context)

    def answers(self, records: Iterable[dict[str, Any]], most_segments: int = 2) -> Counter[str]:
        """What becomes of each item; of long assets the first and the last segments stand for all."""
        plan = self.planner.plan(records)
        causes = Counter[str](refused(rejected.error) for rejected in plan.rejected)
        by_asset: dict[str, list[Work]] = defaultdict(list)
        for work in plan.todo:
            by_asset[work.asset.item_id].append(work)
        for works in by_asset.values():
            chosen = works if len(works) <= most_segments else [works[0], works[-1]]
            answer = next((cause for cause in map(self._segment, chosen) if cause != "decoded"), "decoded")
            causes[answer] += len(works[0].items)  # prompts on one asset share its sound
        if sum(causes.values()) != plan.items - plan.skipped:
            causes["wrong_count"] += 1
        return causes

    def _segment(self, work: Work) -> str:
        row = self.decode({"work": work.to_json()})
        if row["failure"]:
            failure = FailureRow.model_validate_json(row["failure"])
            return refused(AssetError(failure.cause, failure.message, failure.remedy))
        return "decoded" if row["audio"].size else "no_answer"

    def masks(self, video: Path, mask: Path) -> Counter[str]:
        """Masks do not need a model with a vision tower to be read."""
        facts, store = self.context.facts, self.context.store
        segment = Segment(index=0, count=1, core_start=0, core_end=40, start=0, end=40)
        try:
            frames = masked_video(
                store, str(video), str(mask), limits_for(self.context.config, 0),
                start=segment.start, end=segment.end, hop_length=facts.hop_length, sample_rate=facts.sample_rate,
                image_size=32, interpolation="BICUBIC", masked="black",
            )  # fmt: skip
        except AssetError as error:
            return Counter([refused(error)])
        except Exception as error:
            return Counter([refused(AssetError("internal_error", f"{type(error).__name__}: {error}", "-"))])
        return Counter(["decoded" if frames else "no_answer"])


def refused(error: AssetError) -> str:
    if error.cause == "internal_error":
        return f"internal_error: {error.message[:160]}"
    return error.cause if error.message and error.remedy else "no_remedy"


def run_case(line: Line, case: Case) -> Outcome:
    """Run one case. The helper processes' peak memory is counted from its beginning."""
    path = None if isinstance(case.content, list) else _stored(line, case)
    for process in _helpers():
        _forget_peak(process)
    begun = time.monotonic()
    if path is not None and case.group.startswith("masks"):
        causes = line.masks(line.film, path)
    elif isinstance(case.content, list):
        good = str(line.film)
        causes = line.answers([row | ({"uri": good} if row.get("uri") == GOOD else {}) for row in case.content])
    else:
        causes = line.answers([{"asset_id": case.name, "uri": str(path)}])
    seconds = time.monotonic() - begun
    if path is not None:
        path.unlink()
    peak = max([_peak_gb(process) for process in _helpers()], default=0.0)
    return Outcome(case.key, case.group, dict(causes), round(seconds, 3), round(peak, 3))


def _stored(line: Line, case: Case) -> Path:
    path = line.media / case.name
    content = case.content(line.root / "made") if callable(case.content) else case.content
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        shutil.copyfile(content, path)
    return path


def _helpers() -> list[int]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "operators.sandbox_helper" in process.cmdline():
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def _forget_peak(pid: int) -> None:
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    except OSError:
        return


def _peak_gb(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    line = next((line for line in status.splitlines() if line.startswith("VmHWM")), "VmHWM: 0 kB")
    return int(line.split()[1]) / 2**20


def run_all(line: Line, cases: Iterable[Case], log: Path | None = None) -> Iterator[Outcome]:
    """Outcomes of all cases; those that `log` (JSON lines) holds are not run again."""
    known = {}
    if log is not None and log.exists():
        for text in log.read_text().splitlines():
            try:
                outcome = Outcome(**json.loads(text))
            except (ValueError, TypeError):
                continue  # the last line of a run that was killed
            known[outcome.key] = outcome
    for case in cases:
        outcome = known.get(case.key)
        if outcome is None:
            outcome = run_case(line, case)
            if log is not None:
                with log.open("a") as file:
                    file.write(json.dumps(asdict(outcome)) + "\n")
        yield outcome


def faults(outcome: Outcome) -> list[str]:
    """What a case must not do."""
    found = [cause for cause in outcome.causes if cause.partition(":")[0] in FAULTS]
    if outcome.seconds > MAX_SECONDS:
        found.append(f"took {outcome.seconds:.0f} s")
    if outcome.peak_gb > MEMORY_GB + 0.25:  # libraries and other mapped files come on top of the limit
        found.append(f"took {outcome.peak_gb:.1f} GiB")
    return found


def report(outcomes: list[Outcome]) -> dict[str, Any]:
    """Figures of all cases, by group: what is written to JSON and printed."""
    groups: dict[str, dict[str, Any]] = {}
    for outcome in outcomes:
        group = groups.setdefault(
            outcome.group, {"cases": 0, "causes": Counter(), "slowest_seconds": 0.0, "peak_gb": 0.0}
        )
        group["cases"] += 1
        group["causes"].update({cause.partition(":")[0]: count for cause, count in outcome.causes.items()})
        group["slowest_seconds"] = max(group["slowest_seconds"], outcome.seconds)
        group["peak_gb"] = max(group["peak_gb"], outcome.peak_gb)
    slowest = max(outcomes, key=lambda o: o.seconds)
    largest = max(outcomes, key=lambda o: o.peak_gb)
    return {
        "cases": len(outcomes),
        "items": sum(sum(o.causes.values()) for o in outcomes),
        "causes": dict(sum((g["causes"] for g in groups.values()), Counter()).most_common()),
        "groups": {name: {**g, "causes": dict(g["causes"].most_common())} for name, g in groups.items()},
        "seconds": round(sum(o.seconds for o in outcomes), 1),
        "slowest": {"case": slowest.key, "seconds": slowest.seconds},
        "largest": {"case": largest.key, "gib": largest.peak_gb},
        # Of this process, which plans and resamples; its libraries included.
        "own_peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "stopped_by_a_limit": [o.key for o in outcomes if set(o.causes) & set(LIMITS)],
        "faults": {o.key: faults(o) for o in outcomes if faults(o)},
    }


def show(figures: dict[str, Any]) -> None:
    """Print the table."""
    print(f"\n{'group':18} {'cases':>6} {'slowest':>9} {'memory':>9}  answers")
    for name, group in figures["groups"].items():
        answers = ", ".join(f"{cause} {count:,}" for cause, count in group["causes"].items())
        print(f"{name:18} {group['cases']:6,} {group['slowest_seconds']:7.1f} s {group['peak_gb']:5.2f} GiB  {answers}")
    print(f"{'all':18} {figures['cases']:6,} {figures['seconds']:7.0f} s in all; {figures['items']:,} items answered")
    slow, large = figures["slowest"], figures["largest"]
    print(f"slowest            {slow['case']} ({slow['seconds']:.1f} s; limit {MAX_SECONDS:.0f} s)")
    print(f"most memory        {large['case']} ({large['gib']:.2f} GiB; limit {MEMORY_GB:.0f} GiB)")
    print(f"the stage itself   {figures['own_peak_gib']:.2f} GiB, Python and torch included")
    print(f"stopped by a limit {', '.join(figures['stopped_by_a_limit']) or 'none'}")
    print(f"faults             {figures['faults'] or 'none'}")


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """The most resident bytes of this process inside the `with`, measured twenty times a second."""
    peak, over = [0], threading.Event()

    def watch() -> None:
        process = psutil.Process()
        while not over.wait(0.05):
            peak[0] = max(peak[0], process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()
