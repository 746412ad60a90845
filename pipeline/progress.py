"""What a person sees of a run: progress while it goes on, and a summary at its end."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TextIO

from tqdm import tqdm

from pipeline import metrics

# Log files get a line this often; a terminal is redrawn twice a second.
LOG_SECONDS = 10.0


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}"


@dataclass
class Progress:
    """Counts of one run. `total_items` and `total_seconds` are of the work that was open when it began."""

    total_items: int
    total_seconds: float
    shown: bool = True
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    committed: int = 0
    failed: int = 0
    audio_seconds: float = 0.0
    windows: int = 0
    windows_skipped: int = 0
    gpus: float | None = None
    causes: Counter[str] = field(default_factory=Counter)
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._ended = threading.Event()
        self._bar = None
        if self.shown and self.stream.isatty():
            self._bar = tqdm(total=round(self.total_seconds), file=self.stream, bar_format="{l_bar}{bar:20}| {postfix}")

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def line(self) -> str:
        speed = self.audio_seconds / self.elapsed
        left = max(self.total_seconds - self.audio_seconds, 0)
        eta = clock(left / speed) if speed > 0 else "?"
        return (
            f"{self.committed + self.failed}/{self.total_items} items, "
            f"{self.audio_seconds / 3600:.2f}/{self.total_seconds / 3600:.2f} h audio, "
            f"{speed:.1f} x real time, {self.failed} failed, ETA {eta}"
        )

    def publish(self) -> None:
        """What is left, and that something arrived, for the monitoring system."""
        metrics.gauge("items_open", self.total_items - self.committed - self.failed)
        metrics.gauge("audio_open_seconds", max(self.total_seconds - self.audio_seconds, 0))
        metrics.gauge("last_result_timestamp_seconds", time.time())

    def __enter__(self) -> Progress:
        """Show the line at a steady pace, also while nothing arrives: a silent start looks like a hang."""
        if self.shown:
            threading.Thread(target=self._tick, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self.shown:
            self._show()
        if self._bar is not None:
            self._bar.close()

    def _tick(self) -> None:
        while not self._ended.wait(LOG_SECONDS if self._bar is None else 0.5):
            self._show()

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.n = min(round(self.audio_seconds), self._bar.total)
            self._bar.set_postfix_str(self.line())
        else:
            print(f"[{clock(self.elapsed)}] {self.line()}", file=self.stream, flush=True)

    def summary(self, *, skipped: int, lake: str, run_id: str, why: str = "that were committed before") -> str:
        causes = ", ".join(f"{cause} {count}" for cause, count in self.causes.most_common()) or "none"
        return "\n".join(
            [
                f"run {run_id}: {clock(self.elapsed)}",
                f"  committed {self.committed} items ({2 * self.committed} stems), {self.audio_seconds / 3600:.2f} h "
                f"of audio at {self.audio_seconds / self.elapsed:.1f} x real time",
                f"  skipped   {skipped} items {why}",
                *self._saved(),
                f"  failed    {self.failed} items; causes: {causes}",
                f"  stems     {lake}/stems",
                f"  tables    {lake}/tables/stems, failures, runs",
            ]
        )

    def _saved(self) -> list[str]:
        if not self.windows_skipped:
            return []
        share = self.windows_skipped / self.windows
        return [f"  saved     {share:.0%} of the windows ({self.windows_skipped}), where the sound was not heard"]
