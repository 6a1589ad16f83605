"""Spans of requests: what is in them and what is not, whose trace they continue, and a collector that is away."""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from lightllm_mp import messages as say
from lightllm_mp.actors.http.trace_endpoint import EXPORTER, check_endpoint
from lightllm_mp.actors.http.traces import RepairTimes, Traces
from lightllm_mp.errors import ConfigError
from tests.actors.http.collector import Collector, attributes, collecting
from tests.actors.http.harness import Engine, Site, run

SECRET = "a-prompt-nobody-may-read"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
BODY = {"inputs": SECRET, "parameters": {"max_new_tokens": 5, "stop_sequences": [SECRET]}}
CHAT = {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 5, "temperature": 0.5, "model": "any"}


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collecting(monkeypatch) as found:
        yield found


def traced(collector: Collector, body, **options) -> Collector:
    """Run a test body against a site that is traced."""
    traces = Traces(collector.endpoint, options.pop("repairs", RepairTimes()))
    try:
        run(body, traces=traces, **options)
    finally:
        traces.close()
    return collector


def test_a_request_is_a_span_with_its_stages(collector: Collector) -> None:
    async def body(s: Site) -> None:
        answer = s.post("/v1/chat/completions", CHAT, headers={"X-Request-Id": "one"})
        async with asyncio.TaskGroup() as group:
            asked = group.create_task(answer)
            await s.settled(lambda: bool(s.engine.running))
            (rid,) = s.engine.running
            now = time.monotonic()
            await asyncio.sleep(0.04)
            s.frontend.deliver(say.Scheduled(rid, tokenized=now + 0.02, embedded=now + 0.01, compiled=now + 0.03))
            await asyncio.sleep(0.01)
            s.engine.paused = False
        assert asked.result()[0] == 200

    before = time.time_ns()
    root = traced(collector, body, engine=Engine(paused=True)).root("one")
    assert root.name == "chat fake"
    assert root.parent_span_id == b""
    found = attributes(root)
    assert found["gen_ai.operation.name"] == "chat"
    assert found["gen_ai.usage.input_tokens"] == 7
    assert found["gen_ai.usage.cache_read.input_tokens"] == 3
    assert found["gen_ai.usage.output_tokens"] == 5
    assert found["gen_ai.response.finish_reasons"] == ["length"]
    assert found["gen_ai.request.temperature"] == 0.5
    assert found["gen_ai.request.max_tokens"] == 5
    assert found["http.route"] == "/v1/chat/completions"
    assert found["http.response.status_code"] == 200
    assert 0 < found["gen_ai.latency.time_to_first_token"] < found["gen_ai.latency.e2e"]
    assert collector.resources[0]["service.name"] == "lightllm-mp"
    stages = collector.children(root)
    assert {name: attributes(span)["lightllm_mp.actor"] for name, span in stages.items()} == {
        "receive": "http",
        "tokenize": "tokenizer",
        "encode_images": "visual",
        "compile_guide": "guide",
        "queue": "router",
        "prefill": "worker",
        "decode": "worker",
        "deliver": "http",
    }
    for span in stages.values():
        assert span.trace_id == root.trace_id
        assert (
            root.start_time_unix_nano <= span.start_time_unix_nano < span.end_time_unix_nano <= root.end_time_unix_nano
        )
    order = ("receive", "tokenize", "compile_guide", "queue", "prefill", "decode", "deliver")
    for earlier, later in itertools.pairwise(order):
        assert stages[earlier].end_time_unix_nano == stages[later].start_time_unix_nano
    assert before - 10**9 < root.start_time_unix_nano < time.time_ns()


def test_no_text_is_in_a_span(collector: Collector) -> None:
    async def body(s: Site) -> None:
        await s.post("/generate", BODY)
        await s.events(BODY)
        await s.post("/v1/chat/completions", CHAT | {"stop": SECRET, "user": SECRET})
        await s.post("/generate?" + SECRET, b"{" + SECRET.encode())
        await s.get("/" + SECRET)

    bodies = traced(collector, body).bodies
    assert bodies
    assert not any(SECRET.encode() in found or "é".encode() in found for found in bodies)


def test_the_trace_of_the_client_goes_on(collector: Collector) -> None:
    async def body(s: Site) -> None:
        for name, flags in (("sampled", "01"), ("not sampled", "00")):
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-{flags}", "tracestate": "a=b", "X-Request-Id": name[:3]}
            await s.post("/generate", BODY, headers=headers)
        await s.post("/generate", BODY, headers={"traceparent": "00-nonsense", "X-Request-Id": "own"})

    traced(collector, body)
    root = collector.root("sam")
    assert (root.trace_id.hex(), root.parent_span_id.hex(), root.trace_state) == (TRACE, PARENT, "a=b")
    assert collector.root("own").parent_span_id == b""
    assert {attributes(span)["lightllm_mp.request_id"] for span in collector.roots()} == {"sam", "own"}


def test_a_body_of_several_prompts_is_one_span(collector: Collector) -> None:
    async def body(s: Site) -> None:
        asked = {"model": "any", "prompt": ["a", "b", "c"], "max_tokens": 5}
        assert (await s.post("/v1/completions", asked, headers={"X-Request-Id": "three"}))[0] == 200
        await s.post("/v1/embeddings", {"model": "any", "input": ["a", "b"]})

    root = traced(collector, body).root("three")
    assert root.name == "text_completion fake"
    assert attributes(root)["gen_ai.usage.output_tokens"] == 15
    assert attributes(root)["gen_ai.response.finish_reasons"] == ["length"] * 3
    assert {"receive", "decode", "deliver"} <= collector.children(root).keys()
    assert len(collector.roots()) == 2


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_TRACES_SAMPLER", "always_off"), ("OTEL_SDK_DISABLED", "true")], ids=["sampler", "off"]
)
def test_variables_of_opentelemetry_count(collector: Collector, monkeypatch, name: str, value: str) -> None:
    async def body(s: Site) -> None:
        assert (await s.post("/generate", BODY))[0] == 200

    monkeypatch.setenv(name, value)
    assert traced(collector, body).spans == []


def test_errors(collector: Collector) -> None:
    async def body(s: Site) -> None:
        for name in ("first", "second"):
            status = (await s.post("/generate", BODY, headers={"X-Request-Id": name}))[0]
            assert status == (503 if name == "first" else 400)
            s.engine.reject = say.ErrorInfo(400, "no", "invalid_request_error", "invalid_request")
        await s.post("/generate", b"{", headers={"X-Request-Id": "broken"})

    engine = Engine(reject=say.ErrorInfo(503, "away", "unavailable", "unavailable"))
    traced(collector, body, engine=engine)
    for name, code, failed in (
        ("first", "unavailable", True),
        ("second", "invalid_request", False),
        ("broken", "invalid_request", False),
    ):
        root = collector.root(name)
        assert attributes(root)["error.type"] == code
        assert (root.status.code == root.status.STATUS_CODE_ERROR) == failed
    assert collector.root("broken").name == "POST /generate"


def test_health_and_metrics_are_not_traced(collector: Collector) -> None:
    async def body(s: Site) -> None:
        for path in ("/health", "/readiness", "/metrics"):
            await s.get(path)
        await s.get("/v1/models")

    assert [span.name for span in traced(collector, body).roots()] == ["GET /v1/models"]


def test_a_repair_and_a_client_that_comes_back_are_events(collector: Collector) -> None:
    repairs = RepairTimes()

    async def body(s: Site) -> None:
        headers = {"X-Request-Id": "one"}
        async with s.session.post("/generate_stream", json=BODY, headers=headers) as response:
            await response.content.readany()
            repairs.stopped()
            s.engine.crash()
            repairs.began(("worker0",))
            s.engine.begin()
            await response.content.readany()
            response.close()
        async with s.session.get("/requests/one", headers={"X-Request-Id": "two"}) as response:
            assert response.status == 200
            await response.read()
        await s.post("/generate", BODY, headers={"X-Request-Id": "three"})

    traced(collector, body, engine=Engine(pace=0.02), repairs=repairs)
    (event,) = collector.root("one").events
    assert event.name == "repaired"
    assert attributes(event)["lightllm_mp.restarted"] == ["worker0"]
    (event,) = collector.root("two").events
    assert (event.name, attributes(event)) == ("resumed", {"lightllm_mp.first_request": "one"})
    assert "receive" not in collector.children(collector.root("two"))
    assert not collector.root("three").events


def test_a_collector_that_is_away_costs_no_time(caplog: pytest.LogCaptureFixture, monkeypatch) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "64")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "16")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "0.2")
    slowest = []

    async def body(s: Site) -> None:
        for _ in range(60):
            begin = time.monotonic()
            assert (await s.post("/generate", BODY))[0] == 200
            slowest.append(time.monotonic() - begin)
        await s.settled(lambda: any(record.name == "lightllm_mp.traces" for record in caplog.records))

    with socket.create_server(("127.0.0.1", 0), backlog=1) as silent, caplog.at_level(logging.WARNING):
        for number in range(2):
            slowest.clear()
            port = silent.getsockname()[1] if number else 9  # it accepts and says nothing; it is refused
            traces = Traces(f"http://127.0.0.1:{port}/v1/traces", RepairTimes())
            run(body, traces=traces)
            begin = time.monotonic()
            traces.close()
            assert time.monotonic() - begin < 4
            assert sorted(slowest)[len(slowest) // 2] < 0.2
            assert [r.getMessage() for r in caplog.records if r.name == "lightllm_mp.traces"] == [
                "the collector of traces does not take them: they are lost"
            ]
            caplog.clear()


@pytest.mark.parametrize("endpoint", ["collector:4318", "grpc://collector:4317", "http://", "/v1/traces"])
def test_a_wrong_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="expected a URL of OTLP over HTTP"):
        check_endpoint(endpoint)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_endpoint(None)
    monkeypatch.setitem(sys.modules, EXPORTER, None)
    with pytest.raises(ConfigError, match=r"pip install 'lightllm-mp\[tracing\]'"):
        check_endpoint("http://localhost:4318/v1/traces")


def test_nothing_is_imported_without_an_endpoint() -> None:
    program = (
        "import sys, lightllm_mp.actors.http.actor; print([n for n in sys.modules if n.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_only_repairs_within_a_request_count() -> None:
    repairs = RepairTimes()
    repairs.began(("http",))  # the first epoch
    repairs.stopped()
    repairs.began(("router",))
    repairs.stopped()
    repairs.began(())  # nobody was replaced
    now = time.monotonic()
    assert [repair.actors for repair in repairs.within(now - 60, now)] == [("router",)]
    assert list(repairs.within(now + 1, now + 2)) == []
