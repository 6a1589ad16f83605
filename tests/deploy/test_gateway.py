"""deploy/gateway-api: an endpoint picker is told gauges that we have, and the pool has our pods."""

from __future__ import annotations

from typing import Any

import yaml

from lightllm_mp.actors.http.routes.prometheus import GAUGES, RATIOS
from tests.deploy.programs import output, program
from tests.paths import ROOT

FOLDER = ROOT / "deploy" / "gateway-api"


def picker() -> dict[str, Any]:
    return yaml.safe_load((FOLDER / "endpoint-picker.yaml").read_text())


def test_the_picker_is_told_our_gauges() -> None:
    (extractor,) = (plugin for plugin in picker()["plugins"] if plugin["type"] == "core-metrics-extractor")
    parameters = extractor["parameters"]
    (engine,) = parameters["engineConfigs"]
    assert engine.pop("name") == parameters["defaultEngine"]
    assert engine.keys() == {"queuedRequestsSpec", "runningRequestsSpec", "kvUsageSpec"}
    gauges = {f"lightllm_{name}" for name in (*RATIOS, *(name for names in GAUGES.values() for name in names))}
    assert set(engine.values()) <= gauges


def test_every_plugin_that_is_used_is_declared() -> None:
    config = picker()
    declared = {plugin.get("name", plugin["type"]) for plugin in config["plugins"]}
    used = {plugin["pluginRef"] for profile in config["schedulingProfiles"] for plugin in profile["plugins"]}
    for source in config["dataLayer"]["sources"]:
        used |= {source["pluginRef"], *(extractor["pluginRef"] for extractor in source["extractors"])}
    assert used == declared


def test_the_pool_has_our_pods() -> None:
    pool, route = yaml.safe_load_all((FOLDER / "inference-pool.yaml").read_text())
    base = yaml.safe_load_all(output(program("kubectl"), "kustomize", ROOT / "deploy" / "kubernetes" / "base"))
    (deployment,) = (found for found in base if found["kind"] == "Deployment")
    template = deployment["spec"]["template"]
    assert pool["spec"]["selector"]["matchLabels"] == template["metadata"]["labels"]
    assert pool["spec"]["targetPorts"] == [{"number": template["spec"]["containers"][0]["ports"][0]["containerPort"]}]
    (backend,) = route["spec"]["rules"][0]["backendRefs"]
    assert (backend["kind"], backend["name"]) == (pool["kind"], pool["metadata"]["name"])
