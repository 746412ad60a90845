"""The CronJob's program against a server that answers as Kubernetes' API does for RayJobs."""

import importlib.util
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "infra" / "kuberay"
MANIFEST = yaml.safe_load((FOLDER / "rayjob.yaml").read_text())
PATH = "/apis/ray.io/v1/namespaces/sam-audio/rayjobs"
TOKEN = "token-of-the-pod"

spec = importlib.util.spec_from_file_location("start_rayjob", FOLDER / "start_rayjob.py")
assert spec is not None and spec.loader is not None
start_rayjob = importlib.util.module_from_spec(spec)
spec.loader.exec_module(start_rayjob)


class Kubernetes:
    """RayJobs by name, and the states that each goes through, one a request."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.course: list[dict[str, str]] = []
        self.failures: list[int] = []  # status codes for the next requests
        self.created = 0

    def answer(self, method: str, url: str, body: dict[str, Any] | None, token: str | None) -> tuple[int, Any]:
        if token != f"Bearer {TOKEN}":
            return 401, {}
        if self.failures:
            return self.failures.pop(0), {"message": "try again"}
        path = urlsplit(url)
        if not path.path.startswith(PATH):
            return 404, {}
        name = path.path[len(PATH) + 1 :]
        if method == "POST" and body is not None:
            self.created += 1
            name = f"{body['metadata']['generateName']}{self.created:05d}"
            self.runs[name] = {**body, "metadata": {**body["metadata"], "name": name}, "status": {}}
            return 201, self.runs[name]
        if not name:
            label, value = parse_qs(path.query)["labelSelector"][0].split("=")
            return 200, {"items": [r for r in self.runs.values() if r["metadata"]["labels"].get(label) == value]}
        if name not in self.runs:
            return 404, {}
        if self.course:
            self.runs[name]["status"] = self.course.pop(0)
        return 200, self.runs[name]


@pytest.fixture
def kubernetes() -> Iterator[Kubernetes]:
    state = Kubernetes()

    class Handler(BaseHTTPRequestHandler):
        def reply(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            code, value = state.answer(self.command, self.path, body, self.headers.get("Authorization"))
            self.send_response(code)
            self.end_headers()
            self.wfile.write(json.dumps(value).encode())

        do_GET = do_POST = reply

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.address = f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
    yield state
    server.shutdown()


@pytest.fixture
def call(kubernetes, tmp_path):
    (tmp_path / "namespace").write_text("sam-audio")
    (tmp_path / "token").write_text(TOKEN + "\n")
    return start_rayjob.cluster_call(kubernetes.address, tmp_path)


RUNNING = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
DONE = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
BROKEN = {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed"}


def follow(call, patience: float = 5.0) -> int:
    return start_rayjob.follow(call, MANIFEST, poll=0.01, patience=patience)


def test_program_stays_until_the_run_has_succeeded(kubernetes, call):
    kubernetes.course = [{}, RUNNING, RUNNING, DONE]
    assert follow(call) == 0
    assert kubernetes.course == [] and kubernetes.created == 1
    assert next(iter(kubernetes.runs.values()))["spec"] == MANIFEST["spec"]


@pytest.mark.parametrize("end", [BROKEN, {"jobDeploymentStatus": "Complete", "jobStatus": "FAILED"}])
def test_failed_run_is_exit_code_1_for_the_pod_failure_policy(kubernetes, call, end):
    kubernetes.course = [RUNNING, end]
    assert follow(call) == 1


def test_run_under_way_is_waited_for_and_no_second_one_begun(kubernetes, call):
    kubernetes.answer("POST", PATH, MANIFEST, f"Bearer {TOKEN}")
    kubernetes.course = [RUNNING, DONE]
    assert follow(call) == 0
    assert kubernetes.created == 1


def test_ended_runs_do_not_keep_a_new_one_from_beginning(kubernetes, call):
    kubernetes.answer("POST", PATH, MANIFEST, f"Bearer {TOKEN}")
    kubernetes.runs["archive-nightly-00001"]["status"] = BROKEN
    kubernetes.course = [DONE]
    assert follow(call) == 0
    assert kubernetes.created == 2


def test_restart_of_the_api_server_is_outlasted_and_begins_nothing_twice(kubernetes, call):
    kubernetes.failures = [503, 500]
    kubernetes.course = [RUNNING, DONE]
    assert follow(call) == 0
    assert kubernetes.created == 1


def test_deleted_run_is_failed(kubernetes, call):
    kubernetes.course = []
    name = start_rayjob.begin(call, MANIFEST)
    del kubernetes.runs[name]
    assert start_rayjob.outcome(call, name) == 1


def test_refusal_by_kubernetes_ends_at_once_and_is_neither_success_nor_a_failed_run(kubernetes, call):
    kubernetes.failures = [403]
    assert follow(call) == 3


def test_silent_api_server_is_given_up_after_the_stated_patience(kubernetes, call):
    kubernetes.failures = [503] * 1000
    assert follow(call, patience=0.2) == 3
