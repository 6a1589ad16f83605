"""A real server that is scraped by a real Prometheus and sends its traces to a collector: every query of the dashboard,
the rules and the autoscaler has data, and every stage has a span."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from lightllm_mp import Server
from lightllm_mp.config import HttpConfig, MultimodalConfig
from tests.actors.embedded import write_byte_tokenizer
from tests.actors.http.collector import Collector, attributes, collecting
from tests.deploy.programs import program
from tests.deploy.prometheus_server import PrometheusServer, scraping
from tests.end_to_end.image_served import GOOD, asking, base64_image, http, serving, tcp, url
from tests.end_to_end.served import get, post, stream
from tests.end_to_end.test_served_model import children
from tests.paths import GOLDENS, ROOT
from tests.vision.image_files import encoded, noise
from tools.operations import grafana_dashboard

program("prometheus")
DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus" / "lightllm-mp.rules.yaml"
DASHBOARD = json.loads(grafana_dashboard.FILE.read_text())
PATIENCE = 20.0
"""Seconds until every query has a value."""
ASKED = 17
"""Requests of `load`."""
LONG = {"max_new_tokens": 600, "ignore_eos": True}
NOT_OURS = {"lightllm_requests_in_pod", "lightllm_mp"}
"""What prometheus-adapter makes of ours, and our own name."""


def panels() -> list[dict]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def asked(expr: str) -> str:
    """What Grafana asks for, over the last minutes: `load` may be long ago on a busy machine."""
    window = expr.replace("$__rate_interval", "5m").replace("[1m]", "[5m]")
    return window.replace("$model", ".*").replace("$instance", ".*")


def load(server: Server) -> None:
    """Text, streams, images of each kind, constrained answers, and a process that is replaced."""
    image = base64_image(GOOD)
    text = {"inputs": "hello " * 8, "parameters": {"max_new_tokens": 24, "ignore_eos": True}}
    guided = {"inputs": "hello", "parameters": {"max_new_tokens": 8, "regular_constraint": "(yes|no|maybe)"}}
    with tcp(http(encoded(noise(40, 40), "PNG"))) as port, ThreadPoolExecutor(8) as pool:
        fetched = asking(url(f"http://127.0.0.1:{port}/x.png"))
        repaired = pool.submit(stream, server, {**text, "parameters": LONG}, name="repaired")
        while get(server, "/token_load")["current_load"] == 0:
            time.sleep(0.005)
        os.kill(children(server)["detokenizer"], signal.SIGKILL)
        repaired.result(60)
        for _ in range(2):
            works = [pool.submit(stream, server, text) for _ in range(4)]
            works += [pool.submit(post, server, "/generate", body) for body in (asking(image), fetched, guided, text)]
            for work in works:
                work.result(60)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with pytest.MonkeyPatch.context() as environment, collecting(environment) as found:
        yield found


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[PrometheusServer]:
    """Of a tiny LLaVA whose tokens are bytes."""
    folder = tmp_path_factory.mktemp("llava")
    for file in ("config.json", "model.safetensors", "preprocessor_config.json"):
        shutil.copy(GOLDENS / "llava_hf" / file, folder)
    multimodal = MultimodalConfig(enable_multimodal=True, cache_capacity=10, allow_media_host=("127.0.0.1",))
    front = HttpConfig(port=0, disable_access_log=True, otlp_traces_endpoint=collector.endpoint)
    with serving(write_byte_tokenizer(folder), multimodal=multimodal, http=front) as server:
        target = server.base_url.removeprefix("http://")
        with scraping(target, RULES, tmp_path_factory.mktemp("prometheus")) as found:
            until(found, "lightllm_actor_up")
            load(server)
            yield found


def until(prometheus: PrometheusServer, query: str) -> list[float]:
    """The query's values, as soon as one of them is a number."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found = prometheus.values(query)
        if any(map(math.isfinite, found)):
            return found
        assert time.monotonic() < deadline, f"{query} gives {found}"
        time.sleep(0.2)


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_every_query_has_data(prometheus: PrometheusServer, panel: dict) -> None:
    for target in panel["targets"]:
        assert until(prometheus, asked(target["expr"])), target["expr"]


def test_the_annotation_and_the_variables(prometheus: PrometheusServer) -> None:
    (restarts,) = DASHBOARD["annotations"]["list"]
    assert until(prometheus, asked(restarts["expr"])) == [1.0]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            series, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"]).groups()
            assert prometheus.get(f"label/{label}/values", **{"match[]": asked(series)})


def test_rules_are_evaluated(prometheus: PrometheusServer) -> None:
    """All recorded series are there, and no alert fires for a server that is well but for one repair."""
    groups = prometheus.get("rules")["groups"]
    deadline = time.monotonic() + PATIENCE
    while any(rule["health"] != "ok" for group in groups for rule in group["rules"]):
        assert time.monotonic() < deadline, groups
        time.sleep(0.5)
        groups = prometheus.get("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["name"] for rule in rules if rule.get("state") == "firing"} == set()
    for rule in rules:
        if rule["type"] == "recording":
            until(prometheus, rule["name"])


def test_the_adapter_asks_for_what_there_is(prometheus: PrometheusServer) -> None:
    text = (DEPLOY / "kubernetes" / "parts" / "autoscaling" / "adapter-rules.yaml").read_text()
    for rule in yaml.safe_load(text)["rules"]["custom"]:
        query = rule["metricsQuery"].replace("<<.GroupBy>>", "instance").replace("<<.LabelMatchers>>", "")
        assert len(until(prometheus, query)) == 1


def test_every_stage_has_a_span(prometheus: PrometheusServer, collector: Collector) -> None:
    """`queue` is missing where a request begins in the turn in which its parts have come, and `decode` where all tokens
    come at once."""
    sometimes = {"queue", "decode"}
    deadline = time.monotonic() + PATIENCE
    while len(roots := collector.roots("text_completion ")) < ASKED:
        assert time.monotonic() < deadline, len(roots)
        time.sleep(0.05)
    found = [collector.children(root).keys() for root in roots]
    always = {"receive", "tokenize", "prefill", "detokenize", "deliver"}
    assert [stages for stages in found if not always <= stages] == []
    assert {frozenset(stages - always - sometimes) for stages in found} == {
        frozenset(),
        frozenset({"encode_images"}),
        frozenset({"compile_guide"}),
    }
    assert sometimes <= {stage for stages in found for stage in stages}


def test_the_repair_is_an_event_of_what_ran(prometheus: PrometheusServer, collector: Collector) -> None:
    (event,) = collector.root("repaired").events
    assert attributes(event)["lightllm_mp.restarted"] == ["detokenizer"]
    assert 0 < attributes(event)["lightllm_mp.pause"] < 60


def test_every_metric_named_in_deploy_is_ours(prometheus: PrometheusServer) -> None:
    there = set(prometheus.get("label/__name__/values"))
    for file in sorted(DEPLOY.rglob("*.*")):
        named = set(re.findall(r"\blightllm_[a-z0-9_]+", file.read_text("utf-8"))) - NOT_OURS
        assert named - there == set(), file


def test_the_file_is_what_the_tool_writes() -> None:
    told = "run python -m tools.operations.grafana_dashboard --write"
    assert grafana_dashboard.FILE.read_text() == grafana_dashboard.dashboard(), told


def test_panels_lie_beside_one_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < grafana_dashboard.WIDTH
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
