"""Make a RayJob of a manifest and stay until it has ended: what the CronJob's `Forbid` counts as running.

python start_rayjob.py rayjob.yaml

A run of the same name that has not ended is waited for instead of beginning another one: this pod may have been moved,
or someone began a run by hand. Exit code 0: the run succeeded. 1: it failed, or its outcome cannot be known. Any other:
Kubernetes could not be asked, try again. It speaks to the API server by the pod's service account, which may get, list
and create RayJobs and nothing else.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

import yaml

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
NAME_LABEL = "app.kubernetes.io/name"
SUCCEEDED, FAILED, UNREACHABLE = 0, 1, 3
POLL_SECONDS = 20.0
# The API server is restarted now and then; a run of days must not be given up for that.
PATIENCE_SECONDS = 900.0

Call = Callable[[str, str, dict[str, Any] | None], dict[str, Any]]


def cluster_call(server: str, account: Path) -> Call:
    """Calls to the RayJobs of this pod's namespace. The token is read anew each time: Kubernetes rotates it."""
    namespace = (account / "namespace").read_text().strip()
    root = f"{server}/apis/ray.io/v1/namespaces/{namespace}/rayjobs"
    trust = ssl.create_default_context(cafile=str(account / "ca.crt")) if server.startswith("https:") else None

    def call(method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        token = (account / "token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        data = json.dumps(body).encode() if body is not None else None
        request = Request(root + path, data=data, headers=headers, method=method)
        with urlopen(request, timeout=30, context=trust) as answer:
            return json.load(answer)

    return call


def ended(run: dict[str, Any]) -> bool:
    return run.get("status", {}).get("jobDeploymentStatus") in ("Complete", "Failed")


def begin(call: Call, manifest: dict[str, Any]) -> str:
    """The name of the run that is under way, or of a new one."""
    of = f"{NAME_LABEL}={manifest['metadata']['labels'][NAME_LABEL]}"
    for run in call("GET", f"?labelSelector={quote(of)}", None)["items"]:
        if not ended(run):
            print(f"waiting for {run['metadata']['name']}, which has not ended", flush=True)
            return str(run["metadata"]["name"])
    name = str(call("POST", "", manifest)["metadata"]["name"])
    print(f"began {name}", flush=True)
    return name


def outcome(call: Call, name: str) -> int | None:
    """Exit code of a run; None while it goes on."""
    try:
        run = call("GET", f"/{quote(name)}", None)
    except HTTPError as error:
        if error.code != 404:
            raise
        print(f"{name} was deleted before it ended", flush=True)
        return FAILED
    if not ended(run):
        return None
    status = run["status"]
    print(f"{name}: {status.get('jobStatus', '')} {status.get('reason', '')} {status.get('message', '')}", flush=True)
    good = status["jobDeploymentStatus"] == "Complete" and status.get("jobStatus") == "SUCCEEDED"
    return SUCCEEDED if good else FAILED


def follow(call: Call, manifest: dict[str, Any], poll: float = POLL_SECONDS, patience: float = PATIENCE_SECONDS) -> int:
    """Begin or find the run and wait for its end; errors of the API server are outlasted for `patience` seconds."""
    name: str | None = None
    answered = time.monotonic()
    while True:
        try:
            if name is None:
                name = begin(call, manifest)
            code = outcome(call, name)
            answered = time.monotonic()
            if code is not None:
                return code
        except (URLError, TimeoutError, ConnectionError, json.JSONDecodeError) as error:
            refused = isinstance(error, HTTPError) and error.code in (400, 401, 403, 404, 422)
            detail = error.read().decode(errors="replace")[:1000] if isinstance(error, HTTPError) else ""
            print(f"{type(error).__name__}: {error} {detail}", file=sys.stderr, flush=True)
            if refused or time.monotonic() - answered > patience:
                return UNREACHABLE
        time.sleep(poll)


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    manifest = yaml.safe_load(Path(sys.argv[1]).read_text())
    server = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"
    return follow(cluster_call(server, ACCOUNT), manifest)


if __name__ == "__main__":
    sys.exit(main())
