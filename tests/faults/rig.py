"""What every scenario stands on: three Ray nodes, an archive and lakes behind the proxy, drivers, and the verdict."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import s3fs
import soundfile as sf
from ledger import Outcome, report
from proxy import Fault, Proxy
from ray.cluster_utils import Cluster

from jobs.build_manifest import main as build_manifest
from jobs.collect_garbage import main as collect_garbage
from pipeline.cluster import KEEP_WORKERS
from pipeline.storage import Store
from pipeline.tables import Tables

ROOT = Path(__file__).parents[2]
NODE = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": 300 << 20, "include_dashboard": False}
HEAD = {**NODE, "num_gpus": 0}
# One step of the 24-bit files: threads may add up floats in another order.
TOLERANCE = 2.5e-7
# What a run may record of a good asset while the store or a machine fails it: another run does it.
PASSING = {"storage_error", "disk_full"}


class Nodes:
    """A Ray cluster of processes on this machine: a head without a GPU and two nodes with one each."""

    def __init__(self, environment: dict[str, str]) -> None:
        # Not pytest's folder: Ray's sockets have long names, and 107 characters is all there is.
        self.folder = tempfile.mkdtemp(prefix="rf-")
        self.environment = environment
        self.cluster = Cluster(initialize_head=True, head_node_args=self._arguments(HEAD))
        self.workers: list[Any] = []
        for _ in range(2):
            self.add()

    def _arguments(self, node: dict[str, Any], **more: str) -> dict[str, Any]:
        return {**node, "temp_dir": self.folder, "env_vars": {**self.environment, **more}}

    def add(self, **environment: str) -> Any:
        node = self.cluster.add_node(**self._arguments(NODE, **environment))
        self.workers.append(node)
        return node

    def lose(self, node: Any) -> None:
        """kill -9 of a node's raylet: its workers go with it, and nobody says goodbye."""
        self.workers.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.cluster.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)


class Driver:
    """One execution of the job, in a process group of its own: a kill takes what a lost machine would take."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.log, self.started = log, time.monotonic()
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=file, env=environment, start_new_session=True, cwd=ROOT
            )

    def kill(self, _: int = 0) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, 9)

    def wait(self, seconds: float) -> int:
        """The exit code. AssertionError, with what the run said, when it takes longer than `seconds`."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            self.process.wait()
            raise AssertionError(f"hung: no end within {seconds:.0f} s\n{self.said()}") from None

    def said(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]


class Rig:
    """An archive at `s3://media/<id>`, a model, and the cluster. `bound_seconds`: what no run may take longer than."""

    def __init__(self, folder: Path, endpoint: str, files: list[Path], model: Path, bound_seconds: float) -> None:
        self.folder, self.model, self.bound = folder, model, bound_seconds
        self.reports = True
        self.proxy = Proxy(int(endpoint.rpartition(":")[2]))
        self.environment = {"AWS_ENDPOINT_URL": self.proxy.url, "OMP_NUM_THREADS": "1", **KEEP_WORKERS}
        self.media = f"s3://media/{uuid.uuid4().hex[:12]}"
        self.fs = s3fs.S3FileSystem(endpoint_url=endpoint, use_listings_cache=False)
        for path in files:
            self.fs.put_file(str(path), f"{self.media}/{path.name}")
        self.manifest = f"{self.media}/manifest.parquet"
        # As a user would: what the manifest says needs no probing later.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert build_manifest(["--media", self.media, "--out", self.manifest]) == 0
        self._drivers: list[Driver] = []
        self._nodes: Nodes | None = None
        self._reference: dict[str, dict[str, Any]] | None = None
        self.undisturbed_seconds = 0.0

    @property
    def nodes(self) -> Nodes:
        if self._nodes is None:
            self._nodes = Nodes(self.environment)
        return self._nodes

    def whole(self) -> None:
        """Two good nodes again, whatever a scenario left."""
        while len(self.nodes.workers) < 2:
            self.nodes.add()

    def close(self) -> None:
        for driver in self._drivers:  # those that a failed test, or who interrupted it, has left
            if driver.process.poll() is None:
                driver.kill()
        if self._nodes is not None:
            self._nodes.close()
        self.proxy.close()

    def lake(self) -> str:
        return f"s3://lake/{uuid.uuid4().hex[:12]}"

    def start(self, lake: str, *more: str, manifest: str | None = None, **environment: str) -> Driver:
        command = [sys.executable, str(ROOT / "jobs" / "dialogue_extract.py"), "--lake", lake]
        command += ["--manifest", manifest or self.manifest, "--allowed-read-prefixes", self.media]
        command += ["--model", str(self.model), "--segment-seconds", "600", "--decoders", "2", "--writers", "2"]
        command += ["--separators", "2", "--gpus-per-separator", "0.5", "--commit-every-seconds", "5"]
        command += ["--stall-seconds", "100", *more]
        variables = os.environ | self.environment | {"RAY_ADDRESS": self.nodes.cluster.address} | environment
        self._drivers.append(Driver(command, variables, self.folder / f"run-{uuid.uuid4().hex[:8]}.log"))
        return self._drivers[-1]

    def run_to_end(self, lake: str, *more: str, tries: int = 4, first: Driver | None = None, **options: Any) -> int:
        """Run the job until a run ends well and leaves no good asset behind; how many runs that took."""
        for count in range(1, tries + 1):
            driver = first or self.start(lake, *more, **options)
            first = None
            code = driver.wait(self.bound)
            if code == 0 and not (PASSING & {row["cause"] for row in last_failures(lake)}):
                return count
        raise AssertionError(f"not done after {tries} runs (exit code {code})\n{driver.said()}")

    @property
    def reference(self) -> dict[str, dict[str, Any]]:
        """Row, and digests of both stems, of every asset, from a run that nothing disturbed."""
        if self._reference is None:
            lake = self.lake()
            self.proxy.faults = []
            driver = self.start(lake)
            assert driver.wait(self.bound * 2) == 0, driver.said()
            self.undisturbed_seconds = time.monotonic() - driver.started
            assert not last_failures(lake), last_failures(lake)
            self._reference = {row["asset_id"]: row for row in with_digests(lake)}
        return self._reference

    @contextlib.contextmanager
    def faults(self, *faults: Fault) -> Iterator[None]:
        self.proxy.faults = list(faults)
        try:
            yield
        finally:
            self.proxy.faults = []

    def judge(
        self,
        scenario: str,
        lake: str,
        *,
        tried: int,
        runs: int,
        began: float,
        hits: list[float],
        bad: dict[str, str] | None = None,
    ) -> Outcome:
        """Compare the lake with the undisturbed run, collect its garbage, and compare once more."""
        ended = time.monotonic()
        bad = bad or {}
        expected = {name: row for name, row in self.reference.items() if name not in bad}
        outcome = Outcome(scenario, tried, runs, len(expected) + len(bad), 0, 0, 0.0, round(ended - began, 1))
        outcome.recover_seconds = round(self._recovery(hits, ended), 1)
        try:
            self._check(lake, outcome, expected, bad)
            outcome.passed = True
        finally:
            if self.reports:
                report(outcome)
        return outcome

    def _check(self, lake: str, outcome: Outcome, expected: dict[str, dict[str, Any]], bad: dict[str, str]) -> None:
        store, tables = Store(lake), Tables(Store(lake))
        rows = with_digests(lake)
        count = Counter(row["asset_id"] for row in rows)
        outcome.lost = len(expected.keys() - count.keys())
        outcome.doubled = sum(n - 1 for n in count.values())
        failures = tables.read("failures").to_pylist()
        outcome.doubled += len(failures) - len({(row["run_id"], row["item_id"]) for row in failures})
        outcome.failures = dict(Counter(row["cause"] for row in failures if row["asset_id"] not in bad))
        assert not outcome.lost and not outcome.doubled
        assert not outcome.failures.keys() - PASSING, failures
        assert {row["asset_id"]: row["cause"] for row in last_failures(lake)} == bad
        assert count.keys() == expected.keys()
        assert len(store.list("commits")) == len(expected)
        for row in rows:
            self._compare(row, expected[row["asset_id"]])
        outcome.garbage = self._collect(lake, rows, bad)

    def _recovery(self, hits: list[float], ended: float) -> float:
        commits = [*self.proxy.commits, ended]
        return max((min(c for c in commits if c >= hit) - hit for hit in hits), default=0.0)

    def _compare(self, row: dict[str, Any], expected: dict[str, Any]) -> None:
        for stem in ("target", "residual"):
            if row[f"{stem}_digest"] == expected[f"{stem}_digest"]:
                continue
            found, wanted = (self._samples(which[f"{stem}_uri"]) for which in (row, expected))
            assert found.shape == wanted.shape, row["asset_id"]
            np.testing.assert_allclose(found, wanted, atol=TOLERANCE, err_msg=row["asset_id"])

    def _samples(self, url: str) -> np.ndarray:
        return sf.read(io.BytesIO(self.fs.cat_file(url)), dtype="float32", always_2d=True)[0]

    def _collect(self, lake: str, rows: list[dict[str, Any]], bad: dict[str, str]) -> int:
        """Delete all garbage: every stem of a row stays, and besides stems, markers and tables hardly anything does."""
        store = Store(lake)
        time.sleep(1.1)  # S3 dates objects to the second
        out = self.folder / "garbage.json"
        command = ["--lake", lake, "--delete", "--grace-hours", "0", "--lease-seconds", "5", "--json", str(out)]
        with contextlib.redirect_stdout(io.StringIO()):
            assert collect_garbage(command) == 0
        found = json.loads(out.read_text())
        assert found["markers_without_stems"] == found["rows_without_marker"] == []
        stems = sorted(store.key_of(row[column]) for row in rows for column in ("target_uri", "residual_uri"))
        assert store.list("stems") == stems
        assert store.list("parts") == []
        # Notes of an item that keeps killing its worker are what stops it from doing so for ever.
        killers = {row["item_id"] for row in last_failures(lake) if row["cause"] == "worker_died"}
        assert {key.split("/")[1] for key in store.list("attempts")} <= killers
        return sum(kind["objects"] for kind in found["kinds"].values())


def last_failures(lake: str) -> list[dict[str, Any]]:
    """Failures of the latest run that ended."""
    tables = Tables(Store(lake))
    runs = [row for row in tables.read("runs").to_pylist() if row["status"] == "done"]
    if not runs:
        return []
    last = max(runs, key=lambda row: row["started_at"])["run_id"]
    return [row for row in tables.read("failures").to_pylist() if row["run_id"] == last]


def with_digests(lake: str) -> list[dict[str, Any]]:
    """Rows of the stems table with the digests of both stems, each of which must be there."""
    store = Store(lake)
    rows = Tables(store).read("stems").to_pylist()
    keys = [store.key_of(row[f"{stem}_uri"]) for row in rows for stem in ("target", "residual")]
    digests = {key: hashlib.sha256(content).hexdigest() for key, content in store.read_many(keys)}
    for row in rows:
        for stem in ("target", "residual"):
            row[f"{stem}_digest"] = digests[store.key_of(row[f"{stem}_uri"])]
    return rows


def wait_for(condition: Callable[[], Any], driver: Driver, seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        assert driver.process.poll() is None, f"the run ended before it could be disturbed\n{driver.said()}"
        time.sleep(0.1)
    driver.kill()
    raise AssertionError(f"what should be disturbed did not happen within {seconds:.0f} s\n{driver.said()}")


def add_rows(rig: Rig, names: dict[str, dict[str, Any]], url: str) -> None:
    """The archive's manifest and further rows, which say what probing would have found."""
    table = pq.read_table(rig.manifest, filesystem=rig.fs)
    rows = [{"asset_id": name, "uri": f"{rig.media}/{name}", **values} for name, values in names.items()]
    more = pa.Table.from_pylist(rows, schema=table.schema)
    with rig.fs.open(url, "wb") as file:
        pq.write_table(pa.concat_tables([table, more]), file)
