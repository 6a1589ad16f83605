"""POST /v1/completions: prompts of every kind, echo, logprobs, best_of, suffix."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from lightllm_mp import messages as say
from lightllm_mp.facts import ChatFacts
from lightllm_mp.messages import Generate
from tests.actors.http.harness import FACTS, Engine, Site, column, run, word
from tests.actors.http.test_chat import chunks, request

PATH = "/v1/completions"


def words(n: int) -> str:
    return "".join(word(i)[1] for i in range(n))


async def stream(s: Site, body: dict[str, Any]) -> list[Any]:
    async with s.session.post(PATH, json=body | {"stream": True}) as response:
        assert response.status == 200, await response.text()
        return chunks(await response.read())


def summed(found: list[Any], index: int) -> dict[str, Any]:
    choices = [choice for chunk in found for choice in chunk["choices"] if choice["index"] == index]
    return {
        "text": "".join(choice["text"] for choice in choices),
        "finish_reason": [c["finish_reason"] for c in choices if c["finish_reason"]],
        "token_ids": [token for choice in choices for token in choice.get("token_ids", [])],
        "logprobs": {
            name: [value for choice in choices for value in choice["logprobs"][name]]
            for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
            if choices[0]["logprobs"]
        },
    }


def test_an_answer():
    async def body(s: Site):
        status, answer, headers = await s.post(PATH, {"model": "any", "prompt": "Once"})
        assert status == 200
        assert answer["choices"] == [{"index": 0, "text": words(16), "logprobs": None, "finish_reason": "length"}]
        assert answer["usage"] == {
            "prompt_tokens": 7,
            "completion_tokens": 16,
            "total_tokens": 23,
            "prompt_tokens_details": {"cached_tokens": 3},
        }
        assert (answer["id"], answer["object"]) == ("cmpl-" + headers["X-Request-Id"], "text_completion")
        assert request(s).text == "Once"
        assert request(s).terms.sampling.temperature == 1.0

    run(body)


@pytest.mark.parametrize(
    ("prompt", "sent"),
    [
        ("a", ["a"]),
        ([5, 6], [column("i", [5, 6])]),
        (["a", "b", "c"], ["a", "b", "c"]),
        ([[5, 6], [7]], [column("i", [5, 6]), column("i", [7])]),
    ],
)
@pytest.mark.parametrize("n", [1, 2])
def test_prompts_of_every_kind(prompt: Any, sent: list[Any], n: int):
    async def body(s: Site):
        asked = {"prompt": prompt, "max_tokens": 3, "n": n, "stream_options": {"include_usage": True}}
        found = await stream(s, asked)
        del asked["stream_options"]
        _, whole, _ = await s.post(PATH, asked)
        generated = [m for m in s.engine.tokenizer if isinstance(m, Generate)]
        assert [m.text if m.ids is None else m.ids for m in generated] == sent * 2
        assert [choice["index"] for choice in whole["choices"]] == list(range(n * len(sent)))
        for choice in whole["choices"]:
            assert choice["text"] == words(3)
            streamed = summed(found, choice["index"])
            assert (streamed["text"], streamed["finish_reason"]) == (words(3), ["length"])
        assert whole["usage"]["completion_tokens"] == 3 * n * len(sent)
        assert whole["usage"]["prompt_tokens"] == 7 * len(sent)
        assert found[-1]["usage"] == whole["usage"]
        _, timed, _ = await s.post(PATH, asked | {"return_timings": True})
        timings = timed["timings"]
        assert (timings["prompt_n"], timings["predicted_n"]) == (7 * len(sent), 3 * n * len(sent))
        assert s.frontend.live == 0

    run(body)


def test_256_prompts_with_16_answers_each_are_one_answer():
    facts = replace(FACTS, engine=replace(FACTS.engine, rows=4096))

    async def body(s: Site):
        status, answer, _ = await s.post(PATH, {"prompt": ["x"] * 256, "max_tokens": 1, "n": 16})
        assert status == 200, answer
        assert [choice["index"] for choice in answer["choices"]] == list(range(4096))
        status, answer, _ = await s.post(PATH, {"prompt": ["x"] * 257, "max_tokens": 1})
        assert (status, answer["error"]["param"]) == (400, "prompt")

    run(body, engine=Engine(facts=facts), seconds=60.0)


def test_a_group_that_finds_no_room_leaves_nothing():
    async def body(s: Site):
        status, answer, headers = await s.post(PATH, {"prompt": ["x"] * 9, "max_tokens": 1})
        assert (status, answer["error"]["code"]) == (429, "overloaded")
        assert "Retry-After" in headers
        assert s.frontend.live == 0
        await s.settled(lambda: not s.engine.running)

    run(body, max_live_requests=8)


def test_a_group_whose_client_leaves_is_aborted():
    async def body(s: Site):
        s.engine.pace = 0.02
        asked = {"prompt": ["a", "b"], "max_tokens": 1000, "stream": True}
        async with s.session.post(PATH, json=asked) as response:
            await response.content.readuntil(b"\n\n")
            assert s.frontend.live == 2
        await s.settled(lambda: not s.frontend.live and not s.engine.running)

    run(body)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_group_in_which_one_prompt_fails(streamed: bool):
    async def body(s: Site):
        s.engine.pace = 0.02
        asked = {"prompt": ["a", "b"], "max_tokens": 1000, "stream": streamed}
        async with asyncio.TaskGroup() as group:
            answer = group.create_task(answered(s, asked))
            await s.settled(lambda: len(s.engine.running) == 2)
            s.frontend.deliver(say.Rejected(min(s.engine.running), say.ErrorInfo(400, "no", "x", "invalid_request")))
        assert "invalid_request" in answer.result()
        await s.settled(lambda: not s.frontend.live and s.engine.router)

    run(body)


async def answered(s: Site, body: dict[str, Any]) -> str:
    async with s.session.post(PATH, json=body) as response:
        return await response.text()


def echo_facts(text: str) -> Engine:
    """An engine whose prompts have logprobs with texts."""
    engine = Engine()
    start = engine.start

    def begin(m: Generate) -> None:
        if m.terms.output.prompt_texts:
            ids, logprobs = column("i", [4, 5, 6]), column("f", [-1, -2])
            n = m.terms.sampling.prompt_logprobs
            top = column("i", [5, 9][: 2 * n] if n else [])
            piece = say.PromptLogprobs(
                m.rid,
                ids,
                logprobs,
                n,
                top,
                column("f", [-1, -0.25][: 2 * n] if n else []),
                texts=tuple(text),
                top_texts=("b", "x")[: 2 * n],
            )
            engine.later(piece)
            asyncio.get_running_loop().call_soon(engine.go, m)  # tokens come after it
        else:
            start(m)

    engine.start = begin  # type: ignore[method-assign]
    return engine


@pytest.mark.parametrize("prompt", ["abc", [4, 5, 6]])
@pytest.mark.parametrize("logprobs", [None, 0, 1])
@pytest.mark.parametrize("most", [0, 2])
def test_echo(prompt: Any, logprobs: int | None, most: int):
    async def body(s: Site):
        asked = {"prompt": prompt, "echo": True, "max_tokens": most, "logprobs": logprobs}
        _, answer, _ = await s.post(PATH, asked)
        choice = answer["choices"][0]
        assert choice["text"] == "abc" + words(most)
        assert answer["usage"]["completion_tokens"] == most
        streamed = summed(await stream(s, asked), 0)
        assert streamed["text"] == choice["text"]
        if logprobs is None:
            assert choice["logprobs"] is None
            return
        found = choice["logprobs"]
        assert streamed["logprobs"] == found
        assert found["tokens"] == ["a", "b", "c", *(word(i)[1] for i in range(most))]
        assert found["token_logprobs"] == [None, -1, -2] + [-0.5] * most
        assert found["top_logprobs"][:3] == [None, {"b": -1}, {"c": -2} | ({"x": -0.25} if logprobs else {})]
        assert found["text_offset"] == [0, 1, 2, 3, 3 + len(word(0)[1])][: 3 + most]

    run(body, engine=echo_facts("abc"))


def test_logprobs_and_ids():
    async def body(s: Site):
        asked = {"prompt": "a", "max_tokens": 2, "logprobs": 2, "return_token_ids": True}
        _, answer, _ = await s.post(PATH, asked)
        choice = answer["choices"][0]
        assert choice["token_ids"] == [word(0)[0], word(1)[0]]
        assert choice["logprobs"]["top_logprobs"][0] == {word(0)[1]: -0.5, "one": -0.25}
        assert choice["logprobs"]["text_offset"] == [0, len(word(0)[1])]
        streamed = summed(await stream(s, asked), 0)
        assert (streamed["logprobs"], streamed["token_ids"]) == (choice["logprobs"], choice["token_ids"])

    run(body)


def test_the_best_of_several():
    async def body(s: Site):
        _, answer, _ = await s.post(PATH, {"prompt": "a", "max_tokens": 2, "n": 2, "best_of": 5})
        assert [choice["index"] for choice in answer["choices"]] == [0, 1]
        assert answer["usage"]["completion_tokens"] == 10
        assert request(s).terms.n == 5

    run(body)


@pytest.mark.parametrize(
    ("path", "long", "param"),
    [
        (PATH, {"prompt": [5] * 2001}, "prompt"),
        (PATH, {"prompt": "x" * 32001}, "prompt"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * (1 << 21)}]}, "messages"),
    ],
)
def test_a_prompt_that_is_too_long_has_openais_code(path: str, long: dict[str, Any], param: str):
    async def body(s: Site):
        status, answer, _ = await s.post(path, long)
        assert (status, answer["error"]["code"], answer["error"]["param"]) == (400, "context_length_exceeded", param)

    run(body)


def test_a_model_that_fills_in():
    facts = replace(FACTS, chat=ChatFacts(fill_in_middle=("<p>", "<s>", "<m>")))

    async def body(s: Site):
        await s.post(PATH, {"prompt": "a", "suffix": "b"})
        assert request(s).text == "<p>a<s>b<m>"
        status, answer, _ = await s.post(PATH, {"prompt": [5], "suffix": "b"})
        assert (status, answer["error"]["param"]) == (400, "suffix")

    run(body, engine=Engine(facts=facts))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("suffix", "x"),
        ("best_of", 0),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("logprobs", 21),
        ("prompt", None),
        ("prompt", []),
        ("prompt", [[]]),
        ("prompt", [-1]),
        ("prompt", ["a", 5]),
        ("prompt", [[1], "a"]),
        ("prompt", {"a": 1}),
        ("messages", []),
        ("stream_options", {}),
    ],
)
def test_what_is_not_honoured_is_refused_by_its_name(field: str, value: Any):
    async def body(s: Site):
        status, answer, _ = await s.post(PATH, {"prompt": "a"} | {field: value})
        assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
        assert answer["error"]["param"] == field, answer
        assert s.frontend.live == 0

    run(body)
