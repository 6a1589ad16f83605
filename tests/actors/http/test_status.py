"""Health, load, facts, metrics, labels and the access log."""

from __future__ import annotations

import asyncio
import json
import logging
import re

from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from lightllm_mp import messages as say
from tests.actors.http.harness import FACTS, Engine, Site, run

BODY = {"inputs": "my prompt", "parameters": {"max_new_tokens": 4}}


async def metrics(s: Site) -> dict[tuple, float]:
    """{(sample name, label values but model_name...): value}"""
    status, text, headers = await s.get("/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.name.startswith("lightllm_")
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("model_name") in ("fake", "")
            assert sample.value >= 0, sample
            found[sample.name.removeprefix("lightllm_"), *labels.values()] = sample.value
    return found


def test_health_means_progress():
    async def body(s: Site):
        for path in ("/health", "/healthz"):
            status, text, _ = await s.get(path)
            assert (status, json.loads(text)) == (200, {"message": "Ok"})
            async with s.session.head(path) as response:
                assert (response.status, await response.read()) == (200, b"")
        for path in ("/liveness", "/readiness"):
            assert (await s.get(path))[1] == '{"status":"ok"}'
            assert (await s.post(path, b""))[1] == {"status": "ok"}
        s.frontend.health(say.Health(ok=False, reason="worker0 does not answer"))
        status, text, _ = await s.get("/health")
        assert (status, json.loads(text)) == (503, {"message": "Error", "reason": "worker0 does not answer"})
        assert (await s.get("/readiness"))[0] == 503
        assert (await s.get("/liveness"))[0] == 200
        s.frontend.health(say.Health(ok=True))
        assert (await s.get("/health"))[0] == 200
        s.frontend.health(say.Health(ok=True, away=("visual",)))
        status, text, _ = await s.get("/health")
        assert (status, json.loads(text)) == (200, {"message": "Ok", "unavailable": ["visual"]})
        assert (await s.get("/readiness"))[0] == 200
        assert (await s.post("/generate", BODY))[0] == 200

    run(body)


def test_nothing_is_ready_before_the_first_begin():
    async def body(s: Site):
        assert (await s.get("/health"))[0] == (await s.get("/readiness"))[0] == 503
        assert (await s.get("/liveness"))[0] == 200
        assert (await s.get("/metrics"))[0] == (await s.get("/get_server_info"))[0] == 200

    run(body, begun=False)


def test_token_load():
    numbers = {"router": {"kv_used": 1024.0, "kv_total": 4096.0, "kv_expected_peak": 2048.0, "expected_tokens": 77.0}}

    async def body(s: Site):
        want = {"current_load": 0.25, "logical_max_load": 0.5, "dynamic_max_load": 0.5, "expected_tokens": 77.0}
        assert json.loads((await s.get("/token_load"))[1]) == want

    async def unknown(s: Site):
        assert set(json.loads((await s.get("/token_load"))[1]).values()) == {0.0}

    run(body, stats=lambda: numbers)
    run(unknown)


def test_server_info_has_facts_and_no_secrets():
    async def body(s: Site):
        info = json.loads((await s.get("/get_server_info"))[1])
        assert info["model_name"] == "fake"
        assert info["facts"]["vocab_size"] == 1000
        assert info["facts"]["eos_ids"] == [2]
        assert "engine" not in info["facts"]
        assert info["authentication"] is False
        assert info["trust_remote_code"] is False
        assert "api_key" not in json.dumps(info)
        assert "model_dir" not in json.dumps(info)

    run(body, engine=Engine(facts=replace(FACTS, eos_ids=(2,))))


def test_the_models_name_as_lightllms_clients_ask_for_it():
    async def body(s: Site):
        assert json.loads((await s.get("/get_model_name"))[1]) == {"model_name": "fake"}
        assert (await s.post("/get_model_name", {}))[:2] == (200, {"model_name": "fake"})

    run(body)


def test_request_metrics():
    async def body(s: Site):
        await s.post("/generate", BODY)
        await s.events(BODY)
        await s.settled(lambda: s.frontend.live == 0)
        await s.post("/generate", {"inputs": 5})
        found = await metrics(s)
        assert found["request_count_total",] == 2
        assert found["request_success_total", "length"] == 2
        assert found["generation_tokens_total",] == 8
        assert found["prompt_tokens_total",] == 14
        assert found["prompt_tokens_cached_total",] == 6
        assert found["live_requests",] == 0
        assert found["http_responses_total", "200"] == 2
        assert found["http_responses_total", "400"] == 1
        assert found["admission_rejections_total", "max_live_requests"] == 0
        assert found["time_to_first_token_seconds_count",] == 2
        assert found["time_to_first_token_seconds_bucket", "+Inf"] == 2
        assert found["inter_token_latency_seconds_count",] == 6
        assert found["e2e_request_latency_seconds_count",] == 2
        assert found["request_generated_tokens_sum",] == 8
        assert found["request_input_length_sum",] == 14
        assert ("time_to_first_token_seconds_bucket", "0.001") in found
        assert ("num_requests_running",) not in found  # nobody reported it

    run(body)


def test_rejections_are_counted_by_reason():
    async def body(s: Site):
        s.engine.paused = True
        held = asyncio.create_task(s.post("/generate", BODY))
        await s.settled(lambda: bool(s.engine.running))
        assert (await s.post("/generate", BODY))[0] == 429
        found = await metrics(s)
        assert found["admission_rejections_total", "max_live_requests"] == 1
        assert found["live_requests",] == 1
        assert 1 <= found["retry_after_seconds",] <= 60
        s.engine.paused = False
        await held

    run(body, max_live_requests=1)


def test_numbers_of_the_other_actors_and_counters_that_never_fall():
    numbers = {
        "router": {
            "running": 3.0,
            "waiting": 2.0,
            "kv_used": 10.0,
            "kv_cached": 5.0,
            "kv_total": 40.0,
            "kv_window_used": 6.0,
            "kv_window_total": 9.0,
            "prefix_queries_tokens": 8.0,
            "prefix_hit_tokens": 6.0,
            "preemptions": 7.0,
            "invalid_logits": 5.0,
            "draft_tokens": 8.0,
            "accepted_tokens": 6.0,
        },
        "worker0": {"steps": 4.0, "step_seconds": 2.0, "last_step": 0.5},
        "supervisor": {"up.router": 1.0, "up.worker0": 0.0, "restarts.worker0": 2.0},
        "lanes": {"http->tokenizer.backlog_bytes": 64.0, "http->tokenizer.puts": 9.0, "odd": 1.0},
    }

    async def body(s: Site):
        found = await metrics(s)
        assert found["num_requests_running",] == found["batch_current_size",] == 3
        assert found["num_requests_waiting",] == found["queue_size",] == 2
        assert found["kv_cache_usage_perc",] == 0.25
        assert (found["kv_window_used_tokens",], found["kv_window_capacity_tokens",]) == (6, 9)
        assert found["cache_hit_rate",] == 0.75
        assert found["prefix_cache_queries_total",] == 8
        assert found["num_preemptions_total",] == 7
        assert found["invalid_logits_total",] == 5
        assert found["spec_decode_num_draft_tokens_total",] == 8
        assert found["spec_decode_num_accepted_tokens_total",] == 6
        assert found["spec_decode_draft_acceptance_rate",] == 0.75
        assert (found["actor_up", "router"], found["actor_up", "worker0"]) == (1, 0)
        assert found["actor_restarts_total", "worker0"] == 2
        assert (found["worker_steps_total", "worker0"], found["step_seconds_total", "worker0"]) == (4, 2)
        assert found["step_last_seconds", "worker0"] == 0.5
        assert found["queue_bytes", "http", "tokenizer"] == 64
        assert found["queue_messages_total", "http", "tokenizer"] == 9
        numbers["router"]["preemptions"] = 1.0  # the router was replaced
        numbers["lanes"]["http->tokenizer.puts"] = 0.0
        found = await metrics(s)
        assert found["num_preemptions_total",] == 8
        assert found["queue_messages_total", "http", "tokenizer"] == 9
        assert (await metrics(s))["num_preemptions_total",] == 8

    run(body, stats=lambda: numbers)


def test_labels_of_clients_are_echoed_if_harmless():
    async def body(s: Site):
        for given in ("abc-1.2:3_X", "a" * 128):
            assert (await s.post("/generate", BODY, headers={"X-Request-Id": given}))[2]["X-Request-Id"] == given
        seen = set()
        for given in ("a" * 129, "a b", "é", "<script>"):
            back = (await s.post("/generate", BODY, headers={"X-Request-Id": given}))[2]["X-Request-Id"]
            assert back != given
            seen.add(back)
        assert len(seen) == 4
        same = {"X-Request-Id": "same"}
        both = await asyncio.gather(*(s.post("/generate", BODY, headers=same) for _ in range(2)))
        assert [status for status, _, _ in both] == [200, 200]
        async with s.session.post("/generate_stream", json=BODY, headers=same) as response:
            assert response.headers["X-Request-Id"] == "same"
            assert response.headers["Server"] == "lightllm-mp"
        _, _, headers = await s.get("/nope", headers=same)
        assert (headers["X-Request-Id"], headers["Server"]) == ("same", "lightllm-mp")

    run(body)


def test_access_log_has_one_line_per_request_and_no_prompt(caplog):
    async def body(s: Site):
        await s.post("/generate", BODY, headers={"X-Request-Id": "lbl", "Authorization": "Bearer k-secret"})
        await s.events(BODY)
        await s.get("/no%0d%0ape")
        for quiet in ("/health", "/metrics", "/liveness", "/readiness"):
            await s.get(quiet)

    with caplog.at_level(logging.INFO, "lightllm_mp.access"):
        run(body)
    lines = [record.getMessage() for record in caplog.records if record.name == "lightllm_mp.access"]
    assert len(lines) == 3
    assert lines[0].startswith("lbl POST /generate 200 prompt=7 cached=3 output=4 ttft_ms=")
    assert " POST /generate_stream 200 prompt=7 cached=3 output=4 ttft_ms=" in lines[1]
    assert " GET /no%0D%0Ape 404 total_ms=" in lines[2]
    assert re.search(r" received_ms=[\d.]+ first_ms=[\d.]+ last_ms=[\d.]+ finish=length total_ms=[\d.]+$", lines[1])
    assert not any("my prompt" in line or "k-secret" in line for line in lines)


def test_access_log_says_why_a_request_failed(caplog):
    rejected = say.ErrorInfo(400, "too long", "invalid_request_error", "prompt_too_long", "inputs")

    async def body(s: Site):
        await s.post("/generate", {"inputs": 5})
        await s.post("/generate", BODY)

    with caplog.at_level(logging.INFO, "lightllm_mp.access"):
        run(body, engine=Engine(reject=rejected))
    records = [record for record in caplog.records if record.name == "lightllm_mp.access"]
    assert " 400 error=invalid_request total_ms=" in records[0].getMessage()
    assert records[0].fields["error"] == "invalid_request"
    assert (records[1].fields["status"], records[1].fields["error"]) == (400, "prompt_too_long")
    assert records[1].fields["finish"] == "none"


def test_access_log_of_a_client_that_left(caplog):
    async def body(s: Site):
        _, writer = await asyncio.open_connection(*s.address)
        data = json.dumps(BODY).encode()
        writer.write(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
        await s.settled(lambda: bool(s.engine.running))
        writer.close()
        await s.settled(lambda: s.frontend.live == 0)

    with caplog.at_level(logging.INFO, "lightllm_mp.access"):
        run(body, engine=Engine(paused=True))
    assert any(" POST /generate 499 " in record.getMessage() for record in caplog.records)


def test_access_log_can_be_switched_off(caplog):
    async def body(s: Site):
        await s.post("/generate", BODY)

    with caplog.at_level(logging.INFO, "lightllm_mp.access"):
        run(body, disable_access_log=True)
    assert not [record for record in caplog.records if record.name == "lightllm_mp.access"]
