"""X-Request-Timeout, --max-queue-seconds, and the share of each key."""

from __future__ import annotations

import asyncio
from hashlib import sha256

import pytest

from lightllm_mp import messages as say
from lightllm_mp.actors.http.security.keys import ApiKeys
from tests.actors.http.harness import Engine, Site, parse, run

BODY = {"inputs": "hello", "parameters": {"max_new_tokens": 3}}
KEYS = ApiKeys(frozenset(sha256(key).digest() for key in (b"greedy", b"other")))


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def timeout(seconds: str) -> dict[str, str]:
    return {"X-Request-Timeout": seconds}


def test_an_answer_that_is_not_complete_in_time_is_a_504() -> None:
    async def body(s: Site):
        status, answer, headers = await s.post("/generate", BODY, headers=timeout("0.05"))
        assert (status, answer["error"]["code"]) == (504, "deadline_exceeded")
        assert "Retry-After" not in headers
        assert any(isinstance(message, say.Abort) for message in s.engine.router)
        s.engine.paused = False
        assert (await s.post("/generate", BODY, headers=timeout("60")))[0] == 200

    run(body, engine=Engine(paused=True))


def test_a_stream_that_is_not_complete_in_time_ends_with_an_error_event() -> None:
    async def body(s: Site):
        more = {"inputs": "hello", "parameters": {"max_new_tokens": 1000}}
        async with s.session.post("/generate_stream", json=more, headers=timeout("1")) as response:
            events = parse(await response.read())
        assert response.status == 200
        assert "token" in events[0]
        assert events[-1]["error"]["code"] == "deadline_exceeded"

    run(body, engine=Engine(pace=0.01))


def test_a_request_whose_turn_does_not_come_is_a_503() -> None:
    async def body(s: Site):
        status, answer, headers = await s.post("/generate", BODY)
        assert (status, answer["error"]["code"]) == (503, "queue_timeout")
        assert int(headers["Retry-After"]) >= 1
        _, metrics, _ = await s.get("/metrics")
        assert 'reason="queue_timeout"} 1.0' in metrics

    run(body, engine=Engine(paused=True), max_queue_seconds=0.05)


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "1e9", "soon", "", "1" * 100, "\u0661"])
def test_a_time_that_is_none_is_a_400(value: str) -> None:
    async def body(s: Site):
        head = f"POST /generate HTTP/1.1\r\nHost: x\r\nX-Request-Timeout: {value}\r\nConnection: close\r\n"
        got = await s.raw(f"{head}Content-Length: 2\r\n\r\n{{}}".encode())
        assert got.startswith(b"HTTP/1.1 400 ")
        assert b"X-Request-Timeout" in got

    run(body)


def test_a_greedy_key_is_refused_while_another_one_is_served() -> None:
    async def body(s: Site):
        async def ask(key: str) -> int:
            return (await s.post("/generate", BODY, headers=bearer(key)))[0]

        greedy = [asyncio.create_task(ask("greedy")) for _ in range(20)]
        await s.settled(lambda: s.frontend.live == 6)  # 8: two are kept for each key, four for whoever comes
        status, answer, headers = await s.post("/generate", BODY, headers=bearer("greedy"))
        assert (status, answer["error"]["code"]) == (429, "overloaded")
        assert "share" in answer["error"]["message"]
        assert "Retry-After" in headers
        other = [asyncio.create_task(ask("other")) for _ in range(2)]
        await s.settled(lambda: s.frontend.live == 8)
        assert await ask("other") == 429
        tenants = {message.terms.tenant for message in s.engine.tokenizer}
        assert len(tenants) == 2
        s.engine.paused = False
        assert [await task for task in other] == [200, 200]
        assert sorted([await task for task in greedy]) == [200] * 6 + [429] * 14

    run(body, engine=Engine(paused=True), keys=KEYS, max_live_requests=8)


def test_nothing_of_a_request_is_read_that_is_refused_anyway() -> None:
    async def body(s: Site):
        waiting = asyncio.create_task(s.post("/generate", BODY))
        await s.settled(lambda: s.frontend.live == 1)
        head = b"POST /generate HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1000000\r\n\r\n"
        got = await s.raw(head, until_close=False)  # and no body at all
        assert got.startswith(b"HTTP/1.1 429 ")
        s.engine.paused = False
        assert (await waiting)[0] == 200

    run(body, engine=Engine(paused=True), max_live_requests=1)
