"""Clients that come back over HTTP: event ids, Last-Event-ID, /requests/{id}; large answers are sent in pieces."""

from __future__ import annotations

import asyncio
import json
import logging

from lightllm_mp.actors.http import delivery
from lightllm_mp.actors.http.security.keys import ApiKeys, digest
from tests.actors.http.harness import Engine, Site, numbered, run, word

BODY = {"inputs": "a", "parameters": {"max_new_tokens": 30, "return_details": True, "logprobs": 2}}
WHOLE = "".join(word(i)[1] for i in range(30))


async def broken_stream(s: Site, *, events: int, **options) -> tuple[str, list]:
    """Read so many events and break the connection; the request's id, and (number, event) of each."""
    async with s.session.post("/generate_stream", json=BODY, **options) as response:
        assert response.status == 200
        data = b""
        while data.count(b"\n\n") < events:
            data += await response.content.readany()
        response.close()
    whole = data[: data.rindex(b"\n\n") + 2]
    return response.headers["X-Request-Id"], numbered(whole)


async def rest(s: Site, path: str, last: int, **options) -> list:
    headers = {"Last-Event-ID": str(last), **options.pop("headers", {})}
    async with s.session.get(path, headers=headers, **options) as response:
        assert response.status == 200, await response.text()
        return numbered(await response.read())


def test_a_broken_stream_is_read_to_its_end_exactly_once():
    async def body(s: Site):
        name, seen = await broken_stream(s, events=5)
        await s.settled(lambda: not s.engine.running)  # aborted as ever
        for _ in range(2):  # it can be read again
            more = await rest(s, f"/requests/{name}", seen[-1][0])
            assert [number for number, _ in seen + more] == list(range(1, 31))
            assert "".join(event["token"]["text"] for _, event in seen + more) == WHOLE
            assert more[-1][1]["finish_reason"] == "length"

    run(body, engine=Engine(pace=0.01))


def test_the_access_log_names_the_request_that_is_resumed(caplog):
    names: list[str] = []

    async def body(s: Site):
        name, seen = await broken_stream(s, events=5)
        await rest(s, f"/requests/{name}", seen[-1][0])
        names.append(name)

    with caplog.at_level(logging.INFO, "lightllm_mp.access"):
        run(body, engine=Engine(pace=0.01))
    lines = [r.getMessage() for r in caplog.records if f" GET /requests/{names[0]} 200 " in r.getMessage()]
    assert len(lines) == 1
    assert f"resumed={names[0]}" in lines[0]
    assert "=-" not in lines[0]  # no time before its own beginning


def test_an_event_source_that_sends_its_request_again_gets_the_rest():
    async def body(s: Site):
        mine = {"X-Request-Id": "mine"}
        _, seen = await broken_stream(s, events=3, headers=mine)
        headers = {**mine, "Last-Event-ID": str(seen[-1][0])}
        async with s.session.post("/generate_stream", json=BODY, headers=headers) as response:
            more = numbered(await response.read())
        assert [number for number, _ in seen + more] == list(range(1, 31))
        headers["X-Request-Id"] = "never was"
        async with s.session.post("/generate_stream", json=BODY, headers=headers) as response:
            assert response.status == 404

    run(body, engine=Engine(pace=0.01))


def test_a_whole_answer_is_fetched_by_its_id():
    async def body(s: Site):
        s.engine.paused = True
        asking = asyncio.create_task(s.post("/generate", BODY, headers={"X-Request-Id": "mine"}))
        await s.settled(lambda: bool(s.engine.running))
        asking.cancel()
        await s.settled(lambda: not s.engine.running)
        s.engine.paused = False
        status, text, _ = await s.get("/requests/mine")
        assert status == 200
        assert json.loads(text)["generated_text"] == [WHOLE]
        assert "cached_tokens" in json.loads(text)
        assert "logprobs" in json.loads(text)

    run(body, engine=Engine(pace=0.01))


def test_another_key_learns_nothing():
    async def body(s: Site):
        mine, other = ({"Authorization": f"Bearer {key}"} for key in ("mine", "other"))
        name, _ = await broken_stream(s, events=2, headers=mine)
        for method in ("GET", "DELETE"):
            async with s.session.request(method, f"/requests/{name}", headers=other) as response:
                assert response.status == 404
                assert (await response.json())["error"]["code"] == "not_found"
            async with s.session.request(method, f"/requests/{name}") as response:
                assert response.status == 401
        async with s.session.delete(f"/requests/{name}", headers=mine) as response:
            assert response.status == 204
        async with s.session.get(f"/requests/{name}", headers=mine) as response:
            assert response.status == 404

    keys = ApiKeys(users=frozenset({digest("mine"), digest("other")}))
    run(body, engine=Engine(pace=0.01), keys=keys)


def test_bad_numbers_and_unknown_ids():
    async def body(s: Site):
        name, _ = await broken_stream(s, events=2)
        for last in ("x", "-1", "31", "99999999999999"):
            status, text, _ = await s.get(f"/requests/{name}", headers={"Last-Event-ID": last})
            assert status == 400
            assert "Last-Event-ID" in text
        assert (await s.get("/requests/unknown"))[0] == 404

    run(body, engine=Engine(pace=0.01))


def test_without_a_window_nothing_is_kept():
    async def body(s: Site):
        name, _ = await broken_stream(s, events=2)
        await s.settled(lambda: not s.engine.running)
        assert (await s.get(f"/requests/{name}"))[0] == 404

    run(body, engine=Engine(pace=0.01), resume_window=0)


def test_a_large_answer_is_sent_while_others_are_served(monkeypatch):
    async def body(s: Site):
        monkeypatch.setattr(delivery, "JSON_BYTES", 1000)
        _, small, _ = await s.post("/generate", {"inputs": "a", "parameters": {"max_new_tokens": 1}})
        assert small["generated_text"] == [word(0)[1]]
        parameters = {"max_new_tokens": 600, "n": 3, "return_details": True, "logprobs": 2, "prompt_logprobs": 1}
        async with s.session.post("/generate", json={"inputs": "a", "parameters": parameters}) as response:
            assert "Content-Length" not in response.headers
            answer = await response.json()
        assert answer["generated_text"] == ["".join(word(i)[1] for i in range(600))] * 3
        assert answer["count_output_tokens"] == [600] * 3
        assert [[token["id"] for token in tokens] for tokens in answer["tokens"]] == [list(range(100, 700))] * 3
        assert [len(ranked) for ranked in answer["logprobs"]] == [600] * 3
        assert len(answer["prompt_token_ids"]) == len(answer["prompt_logprobs"]) == 3
        assert answer["prompt_logprobs"][0] is None

    run(body)
