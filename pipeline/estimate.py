"""What a plan will cost: GPU hours from a measured throughput, money from a price, and the assets that stand out."""

from __future__ import annotations

import heapq
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pipeline.config import JobConfig
from pipeline.items import Item
from pipeline.plan import Plan
from pipeline.tables import Tables
from pipeline.uris import redact

# A shorter run says more of Ray's start than of the model; shares of the longest.
LONG_ENOUGH = 0.1
# Further from the median bytes a second than this in either direction is worth a look before it is paid for.
ODD_RATE = 8.0
FEWEST_FOR_A_MEDIAN = 5
LONG_SECONDS, SHORT_SECONDS = 12 * 3600, 1.0
LOW_SAMPLE_RATE = 16_000
USUAL_CHANNELS = 2


@dataclass(frozen=True)
class Throughput:
    """Hours of audio that one GPU (without GPUs: one replica) separates in an hour; `slowest` of single runs."""

    expected: float
    slowest: float
    source: str


def throughput(tables: Tables, config: JobConfig, config_hash: str, model_version: str) -> Throughput | None:
    """From the settings, else from finished runs with this configuration, else with this model; None without any.

    Start-up counts: it is paid for. A run counts by its audio, so short ones hardly do.
    """
    if config.audio_hours_per_gpu_hour is not None:
        rate = config.audio_hours_per_gpu_hour
        return Throughput(rate, rate, "the setting audio_hours_per_gpu_hour")
    columns = ["config_hash", "model_version", "status", "audio_seconds", "elapsed_seconds", "gpus"]
    runs = [
        row
        for row in tables.read("runs", columns).to_pylist()
        if row["status"] == "done" and row["audio_seconds"] and row["elapsed_seconds"] and row["gpus"]
    ]
    for column, value, name in (
        ("config_hash", config_hash, "these settings"),
        ("model_version", model_version, "this model and other settings"),
    ):
        chosen = [run for run in runs if run[column] == value]
        if chosen:
            longest = max(run["audio_seconds"] for run in chosen)
            gpu_seconds = sum(run["elapsed_seconds"] * run["gpus"] for run in chosen)
            return Throughput(
                sum(run["audio_seconds"] for run in chosen) / gpu_seconds,
                min(
                    run["audio_seconds"] / (run["elapsed_seconds"] * run["gpus"])
                    for run in chosen
                    if run["audio_seconds"] >= LONG_ENOUGH * longest
                ),
                f"{len(chosen)} finished runs with {name}",
            )
    return None


@dataclass(frozen=True)
class Cost:
    """Money is None without a price; `at_most` are those of the slowest run."""

    gpu_hours: float
    gpu_hours_at_most: float
    money: float | None
    money_at_most: float | None


def cost(audio_hours: float, rate: Throughput, price_per_gpu_hour: float | None) -> Cost:
    expected, at_most = audio_hours / rate.expected, audio_hours / rate.slowest
    if price_per_gpu_hour is None:
        return Cost(expected, at_most, None, None)
    return Cost(expected, at_most, expected * price_per_gpu_hour, at_most * price_per_gpu_hour)


@dataclass(frozen=True)
class Odd:
    """An asset that stands out, and how."""

    asset_id: str
    uri: str
    reasons: tuple[str, ...]


@dataclass
class Survey:
    """Sums over the assets of a plan, gathered while its manifest is read. Memory: what the plan has anyway."""

    rows: int = 0
    _channels: dict[str, int] = field(default_factory=dict)
    _rates: dict[str, int] = field(default_factory=dict)
    _unreadable: dict[str, tuple[str, str]] = field(default_factory=dict)

    def watch(self, records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Hand on the records, and remember of the unusual ones what an item does not carry."""
        for record in records:
            self.rows += 1
            asset = str(record.get("asset_id"))
            channels, rate, error = (record.get(name) for name in ("channels", "sample_rate", "probe_error"))
            if isinstance(channels, int) and channels != USUAL_CHANNELS:
                self._channels[asset] = channels
            if isinstance(rate, int) and rate < LOW_SAMPLE_RATE:
                self._rates[asset] = rate
            if isinstance(error, str) and error:
                self._unreadable[asset] = (str(record.get("uri")), error)
            yield record

    def channels(self, item: Item) -> int:
        return self._channels.get(item.asset_id, USUAL_CHANNELS)

    def oddest(self, plan: Plan, count: int) -> list[Odd]:
        """At most `count`, those with most reasons first."""
        assets = assets_of(plan)
        rates = [item.size_bytes / item.duration_seconds for item in assets]
        median = statistics.median(rates) if len(rates) >= FEWEST_FOR_A_MEDIAN else None
        contents = Counter((item.etag, item.size_bytes) for item in assets)
        ids = Counter(item.asset_id for item in assets)
        odd = []
        for item, rate in zip(assets, rates, strict=True):
            reasons = []
            if item.duration_seconds > LONG_SECONDS:
                reasons.append(f"lasts {item.duration_seconds / 3600:.1f} h")
            if item.duration_seconds < SHORT_SECONDS:
                reasons.append(f"lasts {item.duration_seconds:.2f} s")
            if median and not median / ODD_RATE <= rate <= median * ODD_RATE:
                reasons.append(f"{rate / 1e3:,.0f} kB a second, the median is {median / 1e3:,.0f}")
            if contents[item.etag, item.size_bytes] > 1:
                reasons.append(f"{contents[item.etag, item.size_bytes]} assets have this content")
            if ids[item.asset_id] > 1:
                reasons.append(f"{ids[item.asset_id]} files have this asset_id")
            if self.channels(item) > USUAL_CHANNELS:
                reasons.append(f"{self.channels(item)} channels")
            if item.asset_id in self._rates:
                reasons.append(f"{self._rates[item.asset_id]} Hz")
            if item.asset_id in self._unreadable:
                reasons.append(f"could not be probed: {self._unreadable[item.asset_id][1][:120]}")
            if reasons:
                odd.append(Odd(item.asset_id, redact(item.uri), tuple(reasons)))
        return heapq.nsmallest(count, odd, key=lambda one: (-len(one.reasons), one.asset_id))

    def stem_bytes_at_most(self, plan: Plan, sample_rate: int, bytes_a_sample: int) -> int:
        """Both stems of every item as plain PCM; FLAC and Opus make less of it."""
        total = 0.0
        for item in plan.open_items.values():
            total += 2 * item.duration_seconds * sample_rate * self.channels(item) * bytes_a_sample
        return round(total)


def assets_of(plan: Plan) -> list[Item]:
    """One item of every asset that is still to be done."""
    return list({(i.asset_id, i.uri, i.etag): i for i in plan.open_items.values()}.values())


def largest(plan: Plan, count: int) -> list[Item]:
    return heapq.nlargest(count, assets_of(plan), key=lambda item: item.duration_seconds)
