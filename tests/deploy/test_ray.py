"""deploy/ray: the application is what build_app takes, and a replica has time and room for what its flags say."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
import yaml

from lightllm_mp.actors.http.security.keys import ENVIRONMENT, RELAY_ENVIRONMENT
from lightllm_mp.cli.flags import resolve
from tests.paths import ROOT

kubernetes_validate = pytest.importorskip("kubernetes_validate")

SERVICE: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "ray" / "rayservice.yaml").read_text())
CLUSTER = SERVICE["spec"]["rayClusterConfig"]
(APPLICATION,) = yaml.safe_load(SERVICE["spec"]["serveConfigV2"])["applications"]
(ENGINES,) = CLUSTER["workerGroupSpecs"]
GROUPS = (CLUSTER["headGroupSpec"], ENGINES)
CONFIG = resolve(shlex.split(APPLICATION["args"]["flags"]), {})[0]


@pytest.mark.parametrize("group", GROUPS, ids=("head", "engines"))
def test_pods_are_valid_and_have_the_keys(group: dict[str, Any]) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": group["template"]["spec"]}
    kubernetes_validate.validate(pod, "1.37", strict=True)
    (container,) = pod["spec"]["containers"]
    assert {entry["name"] for entry in container["env"]} == {RELAY_ENVIRONMENT, ENVIRONMENT}
    assert pod["spec"]["terminationGracePeriodSeconds"] > CONFIG.supervisor.drain_timeout


def test_the_application_fits_the_cluster() -> None:
    arguments = APPLICATION["args"]
    assert APPLICATION["import_path"] == "lightllm_mp.ray:build_app"
    assert set(arguments) <= {"flags", "replicas", "fronts", "cpus", "gpus", "application"}
    assert ENGINES["minReplicas"] <= arguments["replicas"] == ENGINES["replicas"] <= ENGINES["maxReplicas"]
    (container,) = ENGINES["template"]["spec"]["containers"]
    assert int(container["resources"]["limits"]["nvidia.com/gpu"]) == CONFIG.engine.tp
    assert CONFIG.model.model_dir is not None
    assert any(CONFIG.model.model_dir.startswith(mount["mountPath"]) for mount in container["volumeMounts"])
