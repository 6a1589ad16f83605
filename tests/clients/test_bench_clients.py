"""What LightLLM's benchmark clients read of OpenAI's API (test/benchmark of LightLLM): they parse by hand, and count a
chunk of HTTP as a token."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from msgspec.structs import replace

from lightllm_mp.facts import ChatFacts
from tests.actors.http.harness import FACTS, Engine, Site, run, word

TOKENS = 5
WORDS = [word(position)[1] for position in range(TOKENS)]
CHAT = Engine(facts=replace(FACTS, chat=ChatFacts(template=True)), pace=0.01)


async def chunks(s: Site, path: str, body: dict[str, Any]) -> list[bytes]:
    """What aiohttp calls a chunk: what the server has sent at once."""
    async with s.session.post(path, json=body | {"model": "any", "stream": True}, headers={"Accept": "*/*"}) as reply:
        assert reply.status == 200
        return [chunk async for chunk, _ in reply.content.iter_chunks()]


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/completions", {"prompt": "hello", "max_tokens": TOKENS, "ignore_eos": True, "temperature": 0.0}),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "hello"}], "max_tokens": TOKENS, "ignore_eos": True},
        ),
    ],
)
def test_a_token_is_a_chunk(path: str, asked: dict[str, Any]):
    """benchmark_client, benchmark_qps and benchmark_prompt_cache: `data: ` or `[DONE]` in a chunk, and its JSON."""

    async def body(s: Site):
        found = [chunk.decode().strip() for chunk in await chunks(s, path, asked)]
        assert found.pop() == "data: [DONE]"
        texts = []
        for chunk in found:
            assert chunk.startswith("data: ")
            choice = json.loads(chunk.removeprefix("data: "))["choices"][0]
            texts.append(choice["text"] if "text" in choice else choice["delta"].get("content", ""))
        assert [text for text in texts if text] == WORDS

    run(body, engine=CHAT)


def test_several_turns():
    """benchmark_multiturn: the model's name, completions of token ids that are streamed, and the usage with its cached
    tokens in the last event before [DONE]."""

    async def body(s: Site):
        status, text, _ = await s.get("/v1/models")
        assert status == 200
        model = json.loads(text)["data"][0]["id"]
        ids = [5, 6, 7]
        for _ in range(2):
            asked = {"model": model, "prompt": ids, "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
            answer, usage = "", None
            asked |= {"stream_options": {"include_usage": True}}
            async with s.session.post("/v1/completions", json=asked, headers={"Accept": "*/*"}) as r:
                async for line in r.content:
                    text = line.decode().strip().removeprefix("data:").strip()
                    if not text or text == "[DONE]":
                        continue
                    event = json.loads(text)
                    answer += "".join(choice["text"] for choice in event.get("choices", []))
                    usage = event.get("usage") or usage
            assert answer == "".join(WORDS)
            assert usage is not None
            assert usage["completion_tokens"] == TOKENS
            assert usage["prompt_tokens_details"]["cached_tokens"] == 3
            ids += [1] * usage["completion_tokens"]

    run(body, engine=CHAT)


def test_many_clients_at_once():
    """benchmark_qps starts requests without waiting for answers."""

    async def body(s: Site):
        asked = {"prompt": "hello", "max_tokens": TOKENS}
        many = await asyncio.gather(*(chunks(s, "/v1/completions", asked) for _ in range(30)))
        assert {len(found) for found in many} == {TOKENS + 1}

    run(body, engine=CHAT)
