"""Every error is one JSON object with the right status, and says nothing about our insides."""

from __future__ import annotations

import asyncio
import json

from lightllm_mp import messages as say
from lightllm_mp.actors.http import responses
from tests.actors.http.harness import Engine, Site, parse, run

BODY = {"inputs": "a", "parameters": {"max_new_tokens": 3}}


def error_of(text: str | dict) -> dict:
    error = (json.loads(text) if isinstance(text, str) else text)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_unknown_paths_and_methods():
    async def body(s: Site):
        for path in ("/nope", "/generate/", "/v1/nope", "/%00"):
            status, text, _ = await s.get(path)
            assert (status, error_of(text)["code"]) == (404, "not_found"), path
        status, text, headers = await s.get("/generate")
        assert (status, headers["Allow"]) == (405, "POST")
        assert error_of(text)["code"] == "method_not_allowed"
        async with s.session.put("/health") as response:
            assert (response.status, response.headers["Allow"]) == (405, "GET,HEAD")
        async with s.session.options("/generate") as response:
            assert response.status == 405

    run(body)


def test_bodies_that_are_not_json():
    bad = [b"", b"{", b"[]", b"null", b"1", b'"a"', b'{"inputs":NaN}', b'{"inputs":"\\ud800"}', b"\xff\xfe", b"{} {}"]
    bad += [b'{"inputs":"\xff"}', b'{"parameters":{}}', b'{"inputs":null}', b'{"inputs":{"a":1}}']
    bad += [b"[" * 50_000, b'{"inputs":"a","parameters":{"x":' + b"[" * 50_000, b'{"x":' * 50_000]
    bad += [b'{"inputs":"a","parameters":[]}', b'{"inputs":"a","parameters":{"temperature":1e999}}']

    async def check(s: Site):
        for data in bad:
            status, answer, _ = await s.post("/generate", data)
            assert status == 400, data[:60]
            error_of(answer)
            assert s.frontend.live == 0

    run(check)


def test_any_content_type():
    async def body(s: Site):
        for kind in ("application/x-www-form-urlencoded", "text/plain", "application/json; charset=utf-8", ""):
            status, answer, _ = await s.post("/generate", BODY, headers={"Content-Type": kind})
            assert (status, answer["count_output_tokens"]) == (200, 3)

    run(body)


def test_compressed_bodies_are_refused():
    async def body(s: Site):
        for coding in ("gzip", "deflate", "br", "zstd", "GZIP", "identity, gzip"):
            status, answer, _ = await s.post("/generate", b"\x1f\x8b" + bytes(10), headers={"Content-Encoding": coding})
            assert (status, error_of(answer)["code"]) == (415, "unsupported_media_type")

    run(body)


def test_body_limit_declared_and_chunked():
    async def chunks():
        for _ in range(10):
            yield b" " * 500

    async def body(s: Site):
        status, answer, _ = await s.post("/generate", b" " * 2000)
        assert (status, error_of(answer)["code"]) == (413, "payload_too_large")
        async with s.session.post("/generate", data=chunks()) as response:
            assert (response.status, error_of(await response.text())["code"]) == (413, "payload_too_large")
        assert (await s.post("/generate", BODY))[0] == 200

    run(body, max_body_bytes=1000)


def test_a_rejected_request_keeps_its_type():
    info = say.ErrorInfo(400, "the prompt has too many tokens", "invalid_request_error", "prompt_too_long", "inputs")

    async def body(s: Site):
        for path in ("/generate", "/generate_stream"):
            status, answer, _ = await s.post(path, BODY)
            assert status == 400
            assert error_of(answer)["message"] == "the prompt has too many tokens"
            assert answer["error"]["code"] == "prompt_too_long"
            assert s.frontend.live == 0

    run(body, engine=Engine(reject=info))


def test_an_error_after_the_stream_began_is_an_event():
    async def body(s: Site):
        s.engine.paused = True
        reading = asyncio.create_task(s.session.post("/generate_stream", json=BODY))
        await s.settled(lambda: bool(s.engine.running))
        s.engine.step()
        response = await reading
        [rid] = s.engine.running
        s.frontend.deliver(say.Rejected(rid, say.ErrorInfo(500, "broken", "server_error", "internal_error")))
        first, last = parse(await response.read())
        assert first["token"]["id"] == 100
        assert last == {"error": {"message": "broken", "type": "server_error", "param": None, "code": "internal_error"}}
        assert s.frontend.live == 0

    run(body)


def test_a_bug_is_a_plain_500(monkeypatch, caplog):
    def broken(*_, **__):
        raise RuntimeError("secret /etc/path")

    async def body(s: Site):
        status, answer, _ = await s.post("/generate", BODY)
        assert (status, error_of(answer)["message"]) == (500, "internal error")
        assert "secret" not in json.dumps(answer)
        await s.settled(lambda: s.frontend.live == 0)
        assert "secret /etc/path" in caplog.text  # for the operator

    monkeypatch.setattr(responses, "whole", broken)
    run(body)


def test_a_bug_in_a_stream_ends_it_with_an_event(monkeypatch):
    good = responses.event

    def broken(e, number):
        if e.count == 2:
            raise RuntimeError("secret")
        return good(e, number)

    async def body(s: Site):
        events = await s.events(BODY)
        assert events[1]["error"]["message"] == "internal error"
        assert len(events) == 2
        await s.settled(lambda: s.frontend.live == 0)
        assert not s.engine.running

    monkeypatch.setattr(responses, "event", broken)
    run(body, engine=Engine(pace=0.01))


def test_overload_is_429_with_retry_after():
    async def body(s: Site):
        s.engine.paused = True
        held = [asyncio.create_task(s.post("/generate", BODY)) for _ in range(2)]
        await s.settled(lambda: len(s.engine.running) == 2)
        for path in ("/generate", "/generate_stream", "/"):
            status, answer, headers = await s.post(path, BODY)
            assert (status, error_of(answer)["type"]) == (429, "overloaded_error")
            assert 1 <= int(headers["Retry-After"]) <= 60
        s.engine.paused = False
        assert [(await task)[0] for task in held] == [200, 200]
        assert (await s.post("/generate", BODY))[0] == 200

    run(body, max_live_requests=2)


def test_full_lane_is_429():
    async def body(s: Site):
        s.engine.room = False
        status, _, headers = await s.post("/generate", BODY)
        assert status == 429
        assert "Retry-After" in headers
        s.engine.room = True
        assert (await s.post("/generate", BODY))[0] == 200

    run(body)


def test_not_begun_is_503():
    async def body(s: Site):
        status, answer, headers = await s.post("/generate", BODY)
        assert (status, error_of(answer)["code"]) == (503, "unavailable")
        assert "Retry-After" in headers

    run(body, begun=False)


def test_malformed_http_is_answered_with_json():
    async def body(s: Site):
        for data in (
            b"NONSENSE\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET /health HTTP/1.1\r\nBad Header: x\x00\r\n\r\n",
        ):
            head, _, text = (await s.raw(data)).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.")
            assert b" 400 " in head.split(b"\r\n")[0]
            assert error_of(text.decode())["message"] == "malformed HTTP request"
        huge = b"GET /health HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n"
        assert b" 431 " in (await s.raw(huge)).split(b"\r\n")[0]

    run(body)


def test_a_body_that_is_not_encoded_as_declared():
    async def body(s: Site):
        head = b"POST /generate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        for data in (b"zz\r\n{}\r\n", b"2\r\n{}garbage\r\n", b"-1\r\n\r\n"):
            answer = await s.raw(head + data)
            assert b" 400 " in answer.split(b"\r\n")[0], answer
        assert (await s.post("/generate", BODY))[0] == 200
        assert s.frontend.live == 0

    run(body, header_timeout=2.0)


def test_bodies_together_are_bounded():
    async def body(s: Site):
        head = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
        tasks = [asyncio.create_task(s.raw(head + b" " * 999)) for _ in range(12)]
        answers = await asyncio.gather(*tasks)
        assert {answer.split(b" ")[1] for answer in answers} == {b"408", b"429"}
        assert (await s.post("/generate", BODY))[0] == 200

    run(body, max_body_bytes=1000, header_timeout=0.5)
