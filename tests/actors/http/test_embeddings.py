"""POST /v1/embeddings: every field, many inputs in one body, and who answers what."""

from __future__ import annotations

import asyncio
import base64
import json
import math
from array import array
from typing import Any

import pytest
from msgspec.structs import replace

from lightllm_mp import messages as say
from lightllm_mp.facts import Facts, PooledFacts
from lightllm_mp.messages import Generate
from tests.actors.http.harness import FACTS, Engine, Site, column, run

PATH = "/v1/embeddings"
WIDTH = 4


def numbers(request: Generate) -> list[float]:
    """A row that depends on the prompt, of length 1."""
    size = len(request.text or "") + len(request.ids or b"") // 4
    norm = math.sqrt(size * size + 1 + 4 + 9)
    return [size / norm, 1 / norm, 2 / norm, 3 / norm]


def facts(**changes: Any) -> Facts:
    return replace(FACTS, engine=replace(FACTS.engine, pooled=PooledFacts(**changes)))


def embedder(**changes: Any) -> Engine:
    return Engine(facts=facts(**{"task": "embed", "width": WIDTH, "shorter": (), **changes}), row=numbers)


def asked(s: Site) -> list[Generate]:
    return [message for message in s.engine.tokenizer if isinstance(message, Generate)]


def rows(answer: dict[str, Any]) -> list[list[float]]:
    assert [entry["index"] for entry in answer["data"]] == list(range(len(answer["data"])))
    return [entry["embedding"] for entry in answer["data"]]


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("Hi", ["Hi"]),
        (["Hi", "Hello", "Hi"], ["Hi", "Hello", "Hi"]),
        ([5, 6, 7], [column("i", [5, 6, 7])]),
        ([[5, 6, 7], [8]], [column("i", [5, 6, 7]), column("i", [8])]),
        (["one"], ["one"]),
    ],
)
def test_inputs(given, prompts):
    async def body(s: Site):
        status, answer, _ = await s.post(PATH, {"model": "any", "input": given, "user": "u"})
        assert (status, answer["object"], answer["model"]) == (200, "list", "fake")
        assert [r.text if r.text is not None else r.ids for r in asked(s)] == prompts
        assert {r.terms.task for r in asked(s)} == {"embed"}
        assert {entry["object"] for entry in answer["data"]} == {"embedding"}
        for found, request in zip(rows(answer), asked(s), strict=True):
            assert found == pytest.approx(numbers(request))
        tokens = 7 * len(prompts)
        assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
        assert s.frontend.live == 0

    run(body, engine=embedder())


def test_base64_is_the_same_numbers():
    async def body(s: Site):
        plain = (await s.post(PATH, {"input": ["a", "bcd"], "encoding_format": "float"}))[1]
        coded = (await s.post(PATH, {"input": ["a", "bcd"], "encoding_format": "base64"}))[1]
        assert [array("f", base64.b64decode(text)).tolist() for text in rows(coded)] == rows(plain)

    run(body, engine=embedder())


def test_dimensions_cut_and_normalise_again():
    async def body(s: Site):
        answer = (await s.post(PATH, {"input": "abc", "dimensions": 2}))[1]
        assert rows(answer)[0] == pytest.approx([3 / math.sqrt(10), 1 / math.sqrt(10)])
        whole = (await s.post(PATH, {"input": "abc", "dimensions": WIDTH}))[1]
        assert rows(whole)[0] == pytest.approx(numbers(asked(s)[-1]))

    run(body, engine=embedder())


@pytest.mark.parametrize(
    ("shorter", "dimensions", "reason"),
    [
        (None, 2, "may not be cut: it is no Matryoshka model"),
        ((), 5, "dimensions must be between 1 and 4"),
        ((1, 2), 3, "dimensions must be one of 1, 2"),
        ((), 0, "dimensions: Expected `int` >= 1"),
    ],
)
def test_dimensions_that_are_refused(shorter, dimensions, reason):
    async def body(s: Site):
        status, answer, _ = await s.post(PATH, {"input": "a", "dimensions": dimensions})
        assert (status, answer["error"]["param"]) == (400, "dimensions")
        assert reason in answer["error"]["message"]

    run(body, engine=embedder(shorter=shorter))


@pytest.mark.parametrize(
    ("fields", "param", "reason"),
    [
        ({}, "input", "missing required field `input`"),
        ({"input": []}, "input", "length >= 1"),
        ({"input": [[]]}, "input", "length >= 1"),
        ({"input": ["a", [1]]}, "input", "list of one kind"),
        ({"input": 5}, "input", "Expected `str`"),
        ({"input": [5.5]}, "input", "Expected `int`"),
        ({"input": [1000]}, "input", "token ids must lie between 0 and 999"),
        ({"input": ["a"] * 2049}, "input", "length 2048"),
        ({"input": [1] * 2001}, "input", "longest possible one"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "Invalid enum value"),
        ({"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "-1 or at least 1"),
        ({"input": "a", "truncate_prompt_tokens": -2}, "truncate_prompt_tokens", ">= -1"),
        ({"input": "a", "colour": 1}, "colour", "'colour' is not a field that this server knows"),
        ({"input": "a", "messages": []}, "messages", "'messages' is not a field"),
    ],
)
def test_bodies_that_are_refused(fields, param, reason):
    async def body(s: Site):
        status, answer, _ = await s.post(PATH, fields)
        assert (status, answer["error"]["param"]) == (400, param), answer
        assert reason in answer["error"]["message"]
        assert s.frontend.live == 0

    run(body, engine=embedder())


def test_fields_for_the_engine():
    async def body(s: Site):
        extra = {"priority": -3, "cache_salt": "s", "add_special_tokens": False, "request_id": "r", "dimensions": None}
        status, _, _ = await s.post(PATH, {"input": "a"} | extra)
        terms = asked(s)[0].terms
        assert (status, terms.priority, len(terms.cache_salt)) == (200, 3, 16)
        assert not asked(s)[0].add_special_tokens

    run(body, engine=embedder())


@pytest.mark.parametrize(("asked_for", "most"), [(5, 5), (-1, 2**31 - 1), (None, 0)])
def test_truncation(asked_for, most):
    async def body(s: Site):
        given = ["a" * 100_000, "b"] if asked_for else ["a", "b"]
        status, _, _ = await s.post(PATH, {"input": given, "truncate_prompt_tokens": asked_for})
        assert status == 200
        assert {r.terms.most_tokens for r in asked(s)} == {most}

    run(body, engine=embedder())


def test_many_inputs_take_few_places():
    """All are answered in order although the engine answers a few at a time, and another client is not refused."""

    async def body(s: Site):
        s.engine.at_once = 7
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, s.frontend.live)
                await asyncio.sleep(0)

        watching = asyncio.create_task(watch())
        inputs = ["x" * (i % 50 + 1) for i in range(2048)]
        status, answer, _ = await s.post(PATH, {"input": inputs})
        watching.cancel()
        assert status == 200
        assert [row[0] / row[1] for row in rows(answer)] == pytest.approx([len(text) for text in inputs], rel=1e-5)
        assert most <= 128
        assert answer["usage"]["total_tokens"] == 7 * 2048
        assert s.frontend.live == 0
        assert s.frontend.answer_bytes == 0

    run(body, engine=embedder(), max_live_requests=1000)


def test_an_error_of_one_input_is_the_error_of_all():
    async def body(s: Site):
        s.engine.paused = True
        waiting = asyncio.create_task(s.post(PATH, {"input": [f"a{i}" for i in range(200)]}))
        await s.settled(lambda: len(s.engine.running) > 5)
        live = list(s.engine.running)[4]
        s.frontend.deliver(
            say.Rejected(live, say.ErrorInfo(400, "too long", "invalid_request_error", "prompt_too_long"))
        )
        s.engine.paused = False
        status, answer, _ = await waiting
        assert (status, answer["error"]["message"]) == (400, "prompt is too long: too long")
        await s.settled(lambda: s.frontend.live == 0)
        assert s.frontend.answer_bytes == 0

    run(body, engine=embedder(), max_live_requests=1000)


def test_a_client_that_leaves_frees_everything():
    async def body(s: Site):
        s.engine.paused = True
        asking = asyncio.create_task(s.post(PATH, {"input": [f"a{i}" for i in range(300)]}))
        await s.settled(lambda: len(s.engine.running) > 5)
        asking.cancel()
        await s.settled(lambda: s.frontend.live == 0)
        assert s.frontend.answer_bytes == 0
        aborted = {m.rid for m in s.engine.router if isinstance(m, say.Abort)}
        assert aborted == {m.rid for m in asked(s)}

    run(body, engine=embedder(), max_live_requests=1000)


def test_a_deadline_for_all_inputs():
    async def body(s: Site):
        s.engine.at_once, s.engine.pace = 1, 0.05
        status, answer, _ = await s.post(PATH, {"input": ["a"] * 500}, headers={"X-Request-Timeout": "0.3"})
        assert (status, answer["error"]["code"]) == (504, "deadline_exceeded")
        await s.settled(lambda: s.frontend.live == 0)

    run(body, engine=embedder(), max_live_requests=1000)


def test_a_crash_costs_time_and_no_input():
    async def body(s: Site):
        s.engine.at_once = 3
        waiting = asyncio.create_task(s.post(PATH, {"input": ["x" * (i + 1) for i in range(300)]}))
        for _ in range(2):
            await s.settled(lambda: bool(s.engine.running))
            s.engine.crash()
            s.engine.begin()
        status, answer, _ = await waiting
        assert status == 200
        assert [round(row[0] / row[1]) for row in rows(answer)] == [i + 1 for i in range(300)]

    run(body, engine=embedder(), max_live_requests=1000)


def test_no_place_at_all():
    async def body(s: Site):
        s.engine.paused = True
        others = [asyncio.create_task(s.post(PATH, {"input": "a"})) for _ in range(4)]
        await s.settled(lambda: s.frontend.live == 4)
        status, answer, headers = await s.post(PATH, {"input": ["a", "b"]})
        assert (status, answer["error"]["code"]) == (429, "overloaded")
        assert "Retry-After" in headers
        s.engine.paused = False
        assert {(await other)[0] for other in others} == {200}

    run(body, engine=embedder(), max_live_requests=4)


def test_few_places_are_enough():
    async def body(s: Site):
        status, answer, _ = await s.post(PATH, {"input": ["x" * (i + 1) for i in range(40)]})
        assert (status, len(rows(answer))) == (200, 40)

    run(body, engine=embedder(), max_live_requests=2)


@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions", "/v1/completions", "/get_score", "/v1/rerank"])
def test_an_embedding_model_does_nothing_else(path):
    async def body(s: Site):
        bodies = {
            "/generate": {"inputs": "a", "parameters": {}},
            "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
            "/v1/completions": {"prompt": "a"},
            "/get_score": {"chat": "a"},
            "/v1/rerank": {"query": "a", "documents": ["b"]},
        }
        status, answer, _ = await s.post(path, bodies[path])
        assert status == 400
        assert "embedding" in answer["error"]["message"]

    run(body, engine=embedder())


def test_other_models_embed_nothing():
    async def body(s: Site):
        status, answer, _ = await s.post(PATH, {"input": "a"})
        message = "/v1/embeddings needs an embedding model, this one produces text"
        assert (status, answer["error"]["message"]) == (400, message)

    run(body)


def test_a_single_answer_can_be_fetched_again():
    async def body(s: Site):
        headers = {"X-Request-Id": "mine"}
        first = await s.post(PATH, {"input": "abc"}, headers=headers)
        again = await s.get("/requests/mine")
        assert again[0] == 200
        assert json.loads(again[1]) == first[1]

    run(body, engine=embedder(), resume_window=30.0)
