"""The manifests for a cluster: valid by the schemas of Kubernetes and KubeRay, and saying what the pages promise."""

import copy
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from pipeline.settings import load_config

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "infra" / "kuberay"
KUBERNETES = "1.37"
SCHEMA = yaml.safe_load(Path(__file__).with_name("kuberay.schema.yaml").read_text())
OURS = {"app.kubernetes.io/part-of": "sam-audio-pipeline"}


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def check(document: dict[str, Any]) -> None:
    """Raises on a field that the kind does not have, or a value that it does not take."""
    if document["apiVersion"] == "ray.io/v1":
        jsonschema.validate(document, SCHEMA)
        for template in pod_templates(document):
            check({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template})
    else:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def cluster_of(document: dict[str, Any]) -> dict[str, Any]:
    spec = document["spec"].get("jobTemplate", document["spec"])
    return spec["rayClusterSpec"]


def pod_templates(document: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = cluster_of(document)
    return [cluster["headGroupSpec"]["template"]] + [group["template"] for group in cluster["workerGroupSpecs"]]


def groups() -> dict[str, dict[str, Any]]:
    return {group["groupName"]: group for group in cluster_of(documents("rayjob.yaml")[0])["workerGroupSpecs"]}


EVERY = [
    pytest.param(document, id=f"{path.name}-{document['kind']}-{i}")
    for path in sorted(FOLDER.glob("*.yaml"))
    if path.name not in ("kustomization.yaml", "nightly.yaml")
    for i, document in enumerate(documents(path.name))
]


@pytest.mark.parametrize("document", EVERY)
def test_manifest_is_valid_by_its_kinds_schema(document):
    check(document)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["spec", "rayClusterSpec", "authOptions", "mode"], "tokens"),
        (["spec", "rayClusterSpec", "workerGroupSpecs", 1, "minReplica"], 0),
        (["spec", "rayClusterSpec", "workerGroupSpecs", 1, "minReplicas"], "0"),
        (["spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0, "imagee"], "x"),
        (["spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0, "ports"], [{"name": "x"}]),
        (["spec", "shutdownAfterJobFinishes"], False),
        (["spec", "ttl"], 3),
    ],
)
def test_misspelt_or_mistyped_field_is_refused(path, value):
    job = copy.deepcopy(documents("rayjob.yaml")[0])
    place = job
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(job)


def test_cron_job_never_runs_two_at_a_time_and_may_only_begin_ray_jobs():
    cron, _, role, binding = documents("cronjob.yaml")
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"
    assert role["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["get", "list", "create"]}]
    pod = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert (
        pod["serviceAccountName"] == binding["subjects"][0]["name"] and binding["roleRef"]["name"] == "rayjob-starter"
    )


def test_ray_cron_job_starts_the_same_job_as_the_ray_job():
    (job,), (cron,) = documents("rayjob.yaml"), documents("raycronjob.yaml")
    assert cron["spec"]["jobTemplate"] == job["spec"]
    assert cron["spec"]["schedule"] == documents("cronjob.yaml")[0]["spec"]["schedule"]


def test_token_authentication_is_on():
    cluster = cluster_of(documents("rayjob.yaml")[0])
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"


def test_rays_own_autoscaler_reads_gpu_groups_that_grow_from_nothing_spot_first():
    cluster = cluster_of(documents("rayjob.yaml")[0])
    cluster_resource = {"metadata": {"name": "x", "namespace": "x"}, "spec": cluster}
    types = _derive_autoscaling_config_from_ray_cr(cluster_resource)["available_node_types"]
    gpus = {name: kind for name, kind in types.items() if kind["resources"].get("GPU")}
    assert {name: (kind["min_workers"], kind["resources"]["GPU"]) for name, kind in gpus.items()} == {
        "gpu-spot": (0, 1),
        "gpu-on-demand": (0, 1),
    }
    assert gpus["gpu-spot"]["priority"] > gpus["gpu-on-demand"]["priority"]
    assert gpus["gpu-spot"]["labels"] == {"ray.io/market-type": "spot"}
    head = next(kind for name, kind in types.items() if "head" in name)
    assert head["resources"]["CPU"] == 0, "a task on the head could take the driver along"


def test_job_settings_load_and_ask_for_no_more_than_the_groups_may_become(monkeypatch):
    for name in ("SAM_PIPELINE_CONFIG", "SAM_PIPELINE_LAKE"):
        monkeypatch.delenv(name, raising=False)
    config = load_config(["--config", str(FOLDER / "nightly.yaml")])
    found = groups()
    assert config.separators == found["gpu-spot"]["maxReplicas"] + found["gpu-on-demand"]["maxReplicas"]
    cpus = sum(
        group["maxReplicas"] * int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
        for group in found.values()
    )
    assert config.decoders is not None and config.writers is not None
    assert config.decoders + 0.5 * config.writers <= cpus
    # The cluster has no GPU when the driver asks it what it has.
    assert config.device == "cuda" and config.gpus_per_separator == 1


def test_no_pod_runs_as_root_or_gains_privileges():
    starter = documents("cronjob.yaml")[0]["spec"]["jobTemplate"]["spec"]["template"]
    for template in [*pod_templates(documents("rayjob.yaml")[0]), starter]:
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"].keys() >= {"cpu", "memory"}


def test_workers_carry_no_kubernetes_token():
    for group in groups().values():
        assert group["template"]["spec"]["automountServiceAccountToken"] is False


def test_network_is_closed_but_for_named_peers():
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in documents("network-policy.yaml")}
    closed = policies["deny-all"]
    assert closed == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for name, policy in policies.items():
        for rule in policy.get("ingress", []):
            assert rule["from"], f"{name}: an empty `from` lets everyone in"
            assert all("ipBlock" not in peer for peer in rule["from"])
    outside = [
        peer["ipBlock"]
        for rule in policies["ray-cluster"]["egress"]
        for peer in rule["to"]
        if "ipBlock" in peer
    ]  # fmt: skip
    assert all("169.254.0.0/16" in block["except"] for block in outside), "the metadata service hands out keys"


def test_policies_select_the_pods_of_the_manifests():
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in documents("network-policy.yaml")}
    # What KubeRay adds to its pods, beside the template's own labels.
    added = {"ray.io/is-ray-node": "yes", "ray.io/node-type": "head"}
    head = pod_templates(documents("rayjob.yaml")[0])[0]["metadata"]["labels"] | added
    for name in ("ray-cluster", "ray-head"):
        assert policies[name]["podSelector"]["matchLabels"].items() <= head.items()
    starter = documents("cronjob.yaml")[0]["spec"]["jobTemplate"]["spec"]["template"]["metadata"]["labels"]
    assert policies["rayjob-starter"]["podSelector"]["matchLabels"].items() <= starter.items()
    for template in pod_templates(documents("rayjob.yaml")[0]):
        assert template["metadata"]["labels"].items() >= OURS.items()


def test_versions_agree_with_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    cluster = cluster_of(documents("rayjob.yaml")[0])
    assert f"ray[data]=={cluster['rayVersion']}" in project["dependencies"]
    images = set(re.findall(r"image: .*?(\S+:\S+)$", "\n".join(p.read_text() for p in FOLDER.glob("*.yaml")), re.M))
    assert images == {f"{project['name']}:{project['version']}"}


def test_kustomization_names_files_that_exist_and_config_maps_that_are_mounted():
    (kustomization,) = documents("kustomization.yaml")
    maps = {generated["name"]: generated["files"] for generated in kustomization["configMapGenerator"]}
    for file in [*kustomization["resources"], *(file for files in maps.values() for file in files)]:
        assert (FOLDER / file).is_file(), file
    starter = documents("cronjob.yaml")[0]["spec"]["jobTemplate"]["spec"]["template"]
    volumes = [v for t in [*pod_templates(documents("rayjob.yaml")[0]), starter] for v in t["spec"]["volumes"]]
    mounted = {volume["configMap"]["name"] for volume in volumes if "configMap" in volume}
    assert mounted == set(maps)
    # What the pods are told to run is in the config maps.
    assert "nightly.yaml" in maps["sam-audio-settings"] and "start_rayjob.py" in maps["sam-audio-rayjob"]
    entrypoint = documents("rayjob.yaml")[0]["spec"]["entrypoint"].split()
    assert (ROOT / entrypoint[1]).is_file() and entrypoint[-1] == "/etc/sam-audio/nightly.yaml"
