"""Metrics of a live run as a real Prometheus sees them; rules and dashboard checked by Prometheus' own tools."""

import json
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest
import yaml
from archive import write_good, write_manifest
from line import Line

from pipeline.config import JobConfig
from pipeline.keys import attempt_key
from pipeline.metrics import MEASURES, PREFIX

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "infra" / "monitoring"
RAY = str(Path(sys.executable).with_name("ray"))
PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
needs_prometheus = pytest.mark.skipif(
    not (PROMETHEUS and PROMTOOL), reason="prometheus and promtool are missing: apt-get install prometheus"
)
SEGMENT_SECONDS = 4.0
STEPS = 100  # slow enough for several scrapes between the first result and the last: a speed is made of two
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
EXPRESSIONS = [
    (f"{panel['title']}: {target['legendFormat']}", target["expr"])
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", [])
]


def free_ports(count: int) -> list[int]:
    """Above the ports of Ray's workers, and below those that the kernel gives to whoever connects."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            if port not in found and probe.connect_ex(("127.0.0.1", port)):
                found.append(port)
    return found


def written_names() -> set[str]:
    """Every name under which Prometheus finds one of our metrics."""
    suffixes = {"histogram": ("_bucket", "_sum", "_count")}
    return {
        f"ray_{PREFIX}{name}{suffix}"
        for name, measure in MEASURES.items()
        for suffix in suffixes.get(measure.kind, ("",))
    }


def test_dashboard_and_alerts_use_only_metrics_that_exist():
    texts = [expression for _, expression in EXPRESSIONS] + [(MONITORING / "alerts.yml").read_text()]
    used = {name for text in texts for name in re.findall(rf"ray_{PREFIX}\w+", text)}
    assert used and used <= written_names()


def test_every_metric_is_on_the_dashboard():
    shown = " ".join(expression for _, expression in EXPRESSIONS)
    assert [name for name in MEASURES if f"ray_{PREFIX}{name}" not in shown] == []


def test_every_alert_points_to_a_heading_of_the_runbook():
    headings = re.findall(r"^#+ (.+)$", (ROOT / "infra" / "RUNBOOK.md").read_text(), re.M)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    groups = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    named = {rule["annotations"]["runbook"] for group in groups for rule in group["rules"]}
    assert {name.split("#")[0] for name in named} == {"infra/RUNBOOK.md"}
    assert {name.split("#")[1] for name in named} <= anchors


def test_panels_have_ids_of_their_own_and_do_not_overlap():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells) and max(x for x, _ in cells) < 24


@needs_prometheus
def test_alerts_fire_when_they_should_and_only_then(tmp_path):
    for source in (MONITORING / "alerts.yml", Path(__file__).with_name("alerts.test.yml")):
        shutil.copy(source, tmp_path)
    for command in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts.test.yml"]):
        done = subprocess.run([str(PROMTOOL), *command], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def local_config(folder: Path, target: str) -> Path:
    """The committed configuration, with a target as Kubernetes would describe it instead of Kubernetes' discovery."""
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(MONITORING / "alerts.yml")]
    (scrape,) = config["scrape_configs"]
    del scrape["kubernetes_sd_configs"]  # Debian's build has no Kubernetes discovery
    pod = {"pod_name": "head-0", "pod_container_port_name": "metrics", "pod_label_ray_io_group": "headgroup"}
    pod |= {"pod_label_app_kubernetes_io_part_of": "sam-audio-pipeline", "pod_label_ray_io_cluster": "run-1"}
    labels = {f"__meta_kubernetes_{name}": value for name, value in pod.items()}
    stranger = labels | {"__meta_kubernetes_pod_label_app_kubernetes_io_part_of": "another"}
    scrape["static_configs"] = [
        {"targets": [target], "labels": labels},
        {"targets": ["127.0.0.1:1"], "labels": stranger},
    ]
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    return path


@contextmanager
def process(
    command: list[str], log: Path, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        # A session of its own: Ray's clean stop takes half a minute, and leaves some of its processes behind.
        running = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
        try:
            yield running
        finally:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()


def wait_for(ready: Callable[[], object], what: str, running: subprocess.Popen[bytes] | None = None) -> None:
    """Raises AssertionError after 90 s, or as soon as the process that should answer has ended."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and (running is None or running.poll() is None):
        try:
            if ready():
                return
        except OSError:
            pass
        time.sleep(0.3)
    raise AssertionError(f"{what} did not answer")


@contextmanager
def ray_head(options: list[str], metrics: int, log: Path, environment: dict[str, str]) -> Iterator[None]:
    """Ray's head, serving its metrics. It gives up when its start takes 30 s, as on a busy machine: then another."""
    command = [RAY, "start", "--head", "--block", "--disable-usage-stats", f"--metrics-export-port={metrics}", *options]
    with ExitStack() as stack:
        for last in (False, False, True):
            running = stack.enter_context(process(command, log, environment))
            try:
                wait_for(lambda: urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=5), "Ray's agent", running)
                break
            except AssertionError:
                if last:
                    raise
                stack.close()
        yield


class Queries:
    """Asks a Prometheus server. `job_server` and `gcs` are the addresses of the cluster that it watches."""

    def __init__(self, root: str, job_server: str, gcs: str) -> None:
        self.root, self.job_server, self.gcs = root, job_server, gcs

    def get(self, path: str, **parameters: str) -> Any:
        with urlopen(f"{self.root}/api/v1/{path}?{urlencode(parameters)}", timeout=10) as answer:
            return json.load(answer)["data"]

    def drawn(self, expression: str) -> list[list[float]]:
        """What a panel over the last five minutes draws: a line a series, of the samples that are numbers."""
        now = time.time()
        found = self.get("query_range", query=expression, start=str(now - 300), end=str(now), step="1")["result"]
        lines = ([float(value) for _, value in series["values"]] for series in found)
        return [line for line in ([v for v in values if v == v] for values in lines) if line]

    def last(self, expression: str) -> float:
        (line,) = self.drawn(expression)
        return line[-1]


@pytest.fixture(scope="module")
def live(tmp_path_factory) -> Iterator[Queries]:
    """Prometheus after a run over two good recordings and a broken one, one segment having died once before."""
    folder = tmp_path_factory.mktemp("live")
    media, lake = folder / "media", folder / "lake"
    good = [name for name in write_good(media) if name != "long.flac"]
    (media / "text.wav").write_text("a shopping list\n" * 99)
    manifest = write_manifest(media, [*good, "text.wav"], folder / "m.parquet")
    config = JobConfig(
        manifest=str(manifest), lake=str(lake), descriptions=("speech",), segment_seconds=SEGMENT_SECONDS,
        solver_method="midpoint", solver_steps=STEPS,
    )  # fmt: skip
    leave_a_note_of_a_dead_worker(config)

    gcs, dashboard, agent, client, metrics, prometheus = free_ports(6)
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "AWS_ENDPOINT_URL")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    # Ray forgets a gauge that was not reported for two intervals: the nodes' must come more often than that.
    environment |= {"RAY_metrics_report_interval_ms": "2000", "REPORTER_UPDATE_INTERVAL_MS": "1000"}
    head = ["--num-cpus=2", "--num-gpus=1", f"--port={gcs}", f"--dashboard-port={dashboard}"]
    head += [f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"]
    server = [str(PROMETHEUS), f"--config.file={local_config(folder, f'127.0.0.1:{metrics}')}"]
    server += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{prometheus}"]
    job = [sys.executable, str(ROOT / "jobs" / "separate.py"), "--manifest", str(manifest), "--lake", str(lake)]
    job += ["--segment-seconds", str(SEGMENT_SECONDS), "--segments-per-batch", "1", "--descriptions", "speech"]
    job += ["--solver-method", "midpoint", "--solver-steps", str(STEPS)]
    queries = Queries(f"http://127.0.0.1:{prometheus}", f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{gcs}")
    with ray_head(head, metrics, folder / "ray.log", environment), process(server, folder / "prometheus.log"):
        wait_for(lambda: queries.drawn("sum(ray_node_mem_total)"), "Ray's metrics through Prometheus")
        ran = subprocess.run(
            job, env=environment | {"RAY_ADDRESS": f"127.0.0.1:{gcs}"}, capture_output=True, text=True, timeout=200
        )
        assert ran.returncode == 0, ran.stderr
        # The last report of every process, and a scrape of it.
        wait_for(lambda: queries.drawn(f"ray_{PREFIX}items_committed_total == 2"), "the last metrics of the run")
        yield queries


def leave_a_note_of_a_dead_worker(config: JobConfig) -> None:
    """What a worker leaves that died in the first segment of an item."""
    line = Line(config)
    line.store.write_bytes(attempt_key(next(iter(line.plan().open_items)), 0, "separate"), b"")


@needs_prometheus
def test_every_panel_of_the_dashboard_has_data_of_a_live_run(live):
    empty = []
    for title, expression in EXPRESSIONS:
        drawn = expression.replace("$__rate_interval", "60s").replace("$cluster", "run-1")
        if not live.drawn(drawn):
            empty.append(title)
    assert empty == []


@needs_prometheus
def test_counters_agree_with_the_run(live):
    def total(name: str, **labels: str) -> float:
        chosen = ",".join(f'{label}="{value}"' for label, value in labels.items())
        return live.last(f"sum(ray_{PREFIX}{name}{{{chosen}}})")

    assert total("items_committed_total") == 2
    assert total("items_failed_total", cause="mislabelled", stage="plan") == 1
    assert total("items_open") == 0
    assert total("audio_seconds_total") == pytest.approx(9 + 10, abs=1)
    # The cut depends on the model's window grid; that every stage saw every segment does not.
    segments = total("segments_total", stage="decode")
    assert segments >= 4
    assert total("segments_total", stage="separate") == segments == total("segments_total", stage="write")
    assert total("stage_seconds_count", stage="separate") == segments
    assert total("windows_total", outcome="integrated") >= segments
    assert total("retries_total", stage="separate") == 1
    assert total("bytes_total", direction="read") > 1e6 and total("bytes_total", direction="written") > 1e6
    assert total("separator_seconds_total", state="busy") > 0


@needs_prometheus
def test_driver_and_actors_export_from_processes_of_their_own(live):
    def workers(metric: str) -> set[str]:
        return {series["WorkerId"] for series in live.get("series", **{"match[]": f"ray_{PREFIX}{metric}"})}

    driver, actor = workers("items_open"), workers("separator_seconds_total")
    assert len(driver) == 1 and len(actor) == 1 and driver != actor


@needs_prometheus
def test_committed_scrape_configuration_keeps_our_pods_and_their_names(live):
    (target,) = live.get("targets")["activeTargets"]
    assert target["health"] == "up"
    assert target["labels"].items() >= {"pod": "head-0", "group": "headgroup", "ray_cluster": "run-1"}.items()
    names = set(live.get("label/__name__/values"))
    assert "ray_grpc_server_req_finished_total" not in names and "ray_node_mem_used" in names
    assert "otel_scope_name" not in live.get("labels")


@needs_prometheus
def test_rules_are_loaded_and_a_good_run_raises_no_alarm(live):
    rules = [rule for group in live.get("rules")["groups"] for rule in group["rules"]]
    assert len(rules) == 11 and {rule["health"] for rule in rules} == {"ok"}
    ours = [a["labels"]["alertname"] for a in live.get("alerts")["alerts"] if a["state"] == "firing"]
    # The machine of the tests may itself be full.
    assert [name for name in ours if not name.startswith("SamPipelineNode")] == []


@needs_prometheus
@pytest.mark.parametrize("token", [None, "0" * 64])
def test_ray_refuses_who_has_not_its_token(live, token):
    body = json.dumps({"entrypoint": "touch /tmp/owned"}).encode()
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    with pytest.raises(HTTPError) as refused:
        urlopen(Request(f"{live.job_server}/api/jobs/", data=body, headers=headers), timeout=10)
    assert refused.value.code in (401, 403)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {"RAY_AUTH_MODE": "disabled"}
    asked = subprocess.run([RAY, "status", "--address", live.gcs], env=environment, capture_output=True, text=True)
    assert asked.returncode != 0 and "AuthenticationError" in asked.stderr
