"""deploy/kubernetes: kubectl renders every folder, the schemas of Kubernetes accept it, and it says what it should."""

from __future__ import annotations

import json
import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

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
SERVERS = ("base", "overlays/models", "overlays/gpu", "overlays/production")
"""Folders that are a whole; the others add something to one."""
PARTS = ("parts/autoscaling", "parts/monitoring", "parts/tracing")
DASHBOARD = "../grafana"
RELEASES = ("1.25", "1.37")
"""Of Kubernetes, the oldest and newest whose schemas are at hand."""
SCHEMAS = {path.stem: json.loads(path.read_text()) for path in Path(__file__).with_name("schemas").glob("*.json")}
"""Kind -> schema, of what is not part of Kubernetes."""
SECRETS = {"LIGHTLLM_MP_API_KEYS", "LIGHTLLM_MP_ADMIN_KEYS"}


@cache
def rendered(folder: str) -> list[dict[str, Any]]:
    return [found for found in yaml.safe_load_all(output(KUBECTL, "kustomize", MANIFESTS / folder)) if found]


def one(folder: str, kind: str, name: str = r"lightllm-mp(-\w{10})?") -> dict[str, Any]:
    """The object of this kind; the name of a map may end with kustomize's digest."""
    (found,) = (o for o in rendered(folder) if o["kind"] == kind and re.fullmatch(name, o["metadata"]["name"]))
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
    assert found == {*SERVERS, *PARTS}


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("folder", [*SERVERS, *PARTS, DASHBOARD])
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
    monitor = json.loads(json.dumps(one("parts/monitoring", "PodMonitor")))
    monitor["spec"]["podMetricsEndpoints"][0]["paht"] = "/metrics"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(monitor, SCHEMAS["PodMonitor"])


@pytest.mark.parametrize("folder", SERVERS)
def test_every_variable_is_a_setting(folder: str) -> None:
    given = settings(folder)
    assert {name.removeprefix(ENV_PREFIX).lower() for name in given} <= set(fields())
    notes: list[str] = []
    assert len(from_environment(given, notes)) == len(given)
    assert notes == []


@pytest.mark.parametrize("folder", SERVERS)
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
    written = {path for path, mount in mounts.items() if not mount.get("readOnly")}
    assert written == {"/dev/shm", "/tmp"} | (
        {"/cache"} if "nvidia.com/gpu" in server["resources"]["limits"] else set()
    )
    assert volumes[mounts["/dev/shm"]["name"]]["emptyDir"]["medium"] == "Memory"
    assert {mount["name"] for mount in mounts.values()} == set(volumes)
    assert settings(folder)["LIGHTLLM_MP_API_KEY_FILE"].startswith("/run/secrets/lightllm-mp/")
    assert not SECRETS & settings(folder).keys()


@pytest.mark.parametrize("folder", SERVERS)
def test_there_is_time_to_drain(folder: str) -> None:
    given = settings(folder)
    drain = float(given["LIGHTLLM_MP_DRAIN_DELAY"]) + float(given["LIGHTLLM_MP_DRAIN_TIMEOUT"])
    assert float(given["LIGHTLLM_MP_DRAIN_DELAY"]) >= 10
    assert pod(folder)["terminationGracePeriodSeconds"] >= drain + 15


@pytest.mark.parametrize("folder", SERVERS)
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
    assert container("base")["image"] == "lightllm-mp:cpu"
    assert container("base")["command"] == ["lightllm-mp", "serve"]
    claim = next(v for v in pod("overlays/models")["volumes"] if v["name"] == "models")["persistentVolumeClaim"]
    assert one("overlays/models", "PersistentVolumeClaim", claim["claimName"])
    assert settings("overlays/models")["LIGHTLLM_MP_MODEL_DIR"].startswith("/models/")


def test_gpus_are_as_many_as_ranks() -> None:
    resources = container("overlays/gpu")["resources"]
    ranks = settings("overlays/gpu")["LIGHTLLM_MP_TP"]
    assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == ranks
    assert resources["limits"] == resources["requests"]
    assert container("overlays/gpu")["image"] == "lightllm-mp:cuda"


def test_spans_have_a_way_out() -> None:
    rules = one("overlays/production", "NetworkPolicy", "lightllm-mp-collector")["spec"]["egress"]
    endpoint = urlsplit(settings("overlays/production")["LIGHTLLM_MP_OTLP_TRACES_ENDPOINT"])
    assert {port["port"] for rule in rules for port in rule["ports"]} == {endpoint.port, 53}


def test_the_autoscaler_asks_for_what_the_adapter_gives() -> None:
    autoscaler, deployment = (one("overlays/production", kind) for kind in ("HorizontalPodAutoscaler", "Deployment"))
    assert "replicas" not in deployment["spec"]
    assert autoscaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    asked = {metric["pods"]["metric"]["name"] for metric in autoscaler["spec"]["metrics"]}
    rules = yaml.safe_load((MANIFESTS / "parts" / "autoscaling" / "adapter-rules.yaml").read_text())
    given = {rule.get("name", {}).get("as") or rule["seriesQuery"].split("{")[0] for rule in rules["rules"]["custom"]}
    assert asked == given


def test_the_overlay_of_the_page(tmp_path: Path) -> None:
    shutil.copytree(MANIFESTS, tmp_path, dirs_exist_ok=True)
    page = (ROOT / "docs" / "operations.md").read_text("utf-8")
    (example,) = re.findall(r"```yaml\n(.*?kind: Kustomization.*?)```", page, re.DOTALL)
    own = tmp_path / "overlays" / "qwen"
    own.mkdir()
    (own / "kustomization.yaml").write_text(example)
    found = {o["kind"]: o for o in yaml.safe_load_all(output(KUBECTL, "kustomize", own)) if o}
    assert found["ConfigMap"]["data"]["LIGHTLLM_MP_MODEL_DIR"] == "/models/qwen3-8b"
    deployment = found["Deployment"]
    assert deployment["metadata"]["namespace"] == "serving"
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == "registry.example.org/lightllm-mp:1"
    assert "PodMonitor" in found
