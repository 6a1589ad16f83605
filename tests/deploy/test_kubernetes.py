"""deploy/kubernetes: kubectl renders every folder, the schemas of Kubernetes accept it, and it says what it should."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from lightllm_mp.cli.flags.fields import ENV_PREFIX, fields
from lightllm_mp.cli.flags.sources import from_environment
from lightllm_mp.config import SupervisorConfig
from tests.deploy.programs import output, program
from tests.paths import ROOT

kubernetes_validate = pytest.importorskip("kubernetes_validate")

KUBECTL = program("kubectl")
MANIFESTS = ROOT / "deploy" / "kubernetes"
FOLDERS = ("base", "overlays/gpu", "overlays/autoscaling", "overlays/monitoring")
RELEASES = ("1.25", "1.37")
"""Of Kubernetes, the oldest and newest whose schemas are at hand."""
SCHEMAS = {path.stem: json.loads(path.read_text()) for path in Path(__file__).with_name("schemas").glob("*.json")}
"""Kind -> schema, of what is not part of Kubernetes."""
FACTS = {"LIGHTLLM_MP_API_KEYS", "LIGHTLLM_MP_ADMIN_KEYS"}


@cache
def rendered(folder: str) -> list[dict[str, Any]]:
    return [found for found in yaml.safe_load_all(output(KUBECTL, "kustomize", MANIFESTS / folder)) if found]


def one(folder: str, kind: str, name: str = "lightllm-mp") -> dict[str, Any]:
    (found,) = (o for o in rendered(folder) if o["kind"] == kind and o["metadata"]["name"].startswith(name))
    return found


def pod(folder: str) -> dict[str, Any]:
    return one(folder, "Deployment")["spec"]["template"]["spec"]


def container(folder: str) -> dict[str, Any]:
    (found,) = pod(folder)["containers"]
    return found


def settings(folder: str) -> dict[str, str]:
    return one(folder, "ConfigMap")["data"]


def test_every_folder_is_known_here() -> None:
    found = {str(path.parent.relative_to(MANIFESTS)) for path in MANIFESTS.rglob("kustomization.yaml")}
    assert found == set(FOLDERS)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("folder", FOLDERS)
def test_schemas_accept_every_object(folder: str, release: str) -> None:
    for manifest in rendered(folder):
        if manifest["kind"] in SCHEMAS:
            jsonschema.validate(manifest, SCHEMAS[manifest["kind"]])
        else:
            kubernetes_validate.validate(manifest, release, strict=True)


def test_a_wrong_field_is_found() -> None:
    manifest = json.loads(json.dumps(one("base", "Deployment")))
    manifest["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, RELEASES[0], strict=True)
    monitor = json.loads(json.dumps(one("overlays/monitoring", "PodMonitor")))
    monitor["spec"]["podMetricsEndpoints"][0]["paht"] = "/metrics"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(monitor, SCHEMAS["PodMonitor"])


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_variable_is_a_setting(folder: str) -> None:
    given = settings(folder)
    assert {name.removeprefix(ENV_PREFIX).lower() for name in given} <= set(fields())
    notes: list[str] = []
    assert len(from_environment(given, notes)) == len(given)
    assert notes == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_pod_is_restricted(folder: str) -> None:
    """The level `restricted` of the pod security standards, and more."""
    found, server = pod(folder), container(folder)
    assert found["automountServiceAccountToken"] is False
    assert found["enableServiceLinks"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & found.keys()
    assert found["securityContext"]["runAsNonRoot"] is True
    assert found["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert server["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounts = {mount["mountPath"]: mount for mount in server["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in found["volumes"]}
    cache = {"/cache"} if "gpu" in folder else set()  # of compiled kernels, as docker/cuda.Dockerfile says
    assert {path for path, mount in mounts.items() if not mount.get("readOnly")} == {"/dev/shm", "/tmp"} | cache
    assert server["command"] == ["lightllm-mp", "serve"]  # the images have no entry point
    assert volumes[mounts["/dev/shm"]["name"]]["emptyDir"]["medium"] == "Memory"
    assert {mount["name"] for mount in mounts.values()} == set(volumes)
    assert settings(folder)["LIGHTLLM_MP_API_KEY_FILE"].startswith("/run/secrets/lightllm-mp/")
    assert not FACTS & settings(folder).keys()


@pytest.mark.parametrize("folder", FOLDERS)
def test_there_is_time_to_drain(folder: str) -> None:
    given = settings(folder)
    drain = float(given["LIGHTLLM_MP_DRAIN_DELAY"]) + float(given["LIGHTLLM_MP_DRAIN_TIMEOUT"])
    assert float(given["LIGHTLLM_MP_DRAIN_DELAY"]) >= 10
    assert pod(folder)["terminationGracePeriodSeconds"] >= drain + 15


@pytest.mark.parametrize("folder", FOLDERS)
def test_probes(folder: str) -> None:
    server = container(folder)
    (port,) = server["ports"]
    assert str(port["containerPort"]) == settings(folder)["LIGHTLLM_MP_PORT"]

    def seconds(name: str) -> int:
        assert server[name]["httpGet"]["port"] == port["name"]
        return server[name]["periodSeconds"] * server[name]["failureThreshold"]

    paths = {name: server[name]["httpGet"]["path"] for name in server if name.endswith("Probe")}
    assert paths == {"startupProbe": "/readiness", "readinessProbe": "/readiness", "livenessProbe": "/liveness"}
    defaults = SupervisorConfig()
    assert seconds("startupProbe") > defaults.start_timeout + 30  # the server ends by itself before
    assert seconds("readinessProbe") >= 10  # a repair does not empty the Service
    assert seconds("livenessProbe") > 2 * defaults.watchdog_timeout  # the supervisor repairs first


def test_names_fit_together() -> None:
    found = {o["kind"]: o for o in rendered("base")}
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert found["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert found["Service"]["spec"]["selector"] == labels
    assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    assert found["NetworkPolicy"]["spec"]["egress"] == []
    assert pod("base")["serviceAccountName"] == found["ServiceAccount"]["metadata"]["name"]
    assert container("base")["envFrom"] == [{"configMapRef": {"name": found["ConfigMap"]["metadata"]["name"]}}]
    claim = next(v for v in pod("base")["volumes"] if v["name"] == "models")["persistentVolumeClaim"]
    assert claim["claimName"] == found["PersistentVolumeClaim"]["metadata"]["name"]
    assert container("base")["image"] == "lightllm-mp:cpu"


def test_gpus_are_as_many_as_ranks() -> None:
    resources = container("overlays/gpu")["resources"]
    ranks = settings("overlays/gpu")["LIGHTLLM_MP_TP"]
    assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == ranks
    assert resources["limits"] == resources["requests"]
    assert container("overlays/gpu")["image"] == "lightllm-mp:cuda"


def test_the_autoscaler_asks_for_what_the_adapter_gives() -> None:
    assert "replicas" not in one("overlays/autoscaling", "Deployment")["spec"]
    asked = {
        m["pods"]["metric"]["name"] for m in one("overlays/autoscaling", "HorizontalPodAutoscaler")["spec"]["metrics"]
    }
    rules = yaml.safe_load((MANIFESTS / "overlays" / "autoscaling" / "adapter-rules.yaml").read_text())
    given = {rule.get("name", {}).get("as") or rule["seriesQuery"].split("{")[0] for rule in rules["rules"]["custom"]}
    assert asked == given
