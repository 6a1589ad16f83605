"""Clients that leave in the middle of an answer, of every API: all that they asked for is aborted within a step."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lightllm_mp import messages as say
from tests.actors.http.harness import Engine, Site, run
from tests.actors.http.test_chat import CHAT, HELLO, WEATHER
from tests.actors.http.test_chat_tools import TOOLS
from tests.actors.http.test_connections import post
from tests.actors.http.test_embeddings import embedder

ROOM = {"max_live_requests": 8000}
LONG = {"max_tokens": 1500}
TOOL = {"name": "weather", "input_schema": {"type": "object"}}
PROMPTS = [f"prompt {number}" for number in range(256)]
ASKED: dict[str, tuple[str, dict[str, Any], int]] = {
    "chat": (CHAT, {"messages": HELLO, "n": 64, **LONG}, 64),
    "tools": (CHAT, {"messages": HELLO, "tools": [WEATHER], "tool_choice": "required", **LONG}, 1),
    "list of prompts": ("/v1/completions", {"prompt": PROMPTS, "n": 2, **LONG}, 512),
    "message": ("/v1/messages", {"model": "m", "messages": HELLO, "tools": [TOOL], **LONG}, 1),
    "response": ("/v1/responses", {"input": "Hi", "max_output_tokens": 1500}, 1),
}
"""{name: (path, body, answers)}"""


async def leave(s: Site, path: str, body: dict[str, Any], running: int) -> int:
    """The client leaves once so many answers are under way. How many steps they had after that."""
    steps, step = 0, s.engine.step

    def counted() -> None:
        nonlocal steps
        steps += bool(s.engine.running)
        step()

    s.engine.step = counted  # type: ignore[method-assign]
    _, writer = await asyncio.open_connection(*s.address)
    writer.write(post(path, body))
    await s.settled(lambda: len(s.engine.running) >= running and steps > 1)
    begun = steps
    writer.transport.abort()
    await s.settled(lambda: not s.engine.running)
    return steps - begun


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("name", ASKED)
def test_a_client_that_leaves_frees_its_slots_within_a_step(name: str, stream: bool) -> None:
    path, asked, answers = ASKED[name]

    async def body(s: Site) -> None:
        # A step may be under way when the client leaves, and one more when the front hears of it.
        assert await leave(s, path, {**asked, "stream": stream}, answers) <= 2
        await s.settled(lambda: s.frontend.live == 0)
        sent = {m.rid: m.terms.n for m in s.engine.tokenizer if isinstance(m, say.Generate)}
        rids = {rid + index for rid, n in sent.items() for index in range(n)}
        assert {m.rid for m in s.engine.router if isinstance(m, say.Abort)} == rids
        assert len(rids) == answers

    run(body, engine=Engine(pace=0.2, facts=TOOLS), **ROOM)


def test_a_client_that_leaves_2048_inputs() -> None:
    """No input that waits outside the engine comes into it any more."""

    async def body(s: Site) -> None:
        s.engine.at_once = 3
        asked = {"input": ["x"] * 2048}
        assert await leave(s, "/v1/embeddings", asked, 100) <= 2
        await s.settled(lambda: s.frontend.live == 0)
        begun = sum(isinstance(m, say.Generate) for m in s.engine.tokenizer)
        assert 100 <= begun < 300
        await asyncio.sleep(0.05)
        assert s.frontend.answer_bytes == 0
        assert begun == sum(isinstance(m, say.Generate) for m in s.engine.tokenizer)

    engine = embedder()
    engine.pace = 0.2
    run(body, engine=engine, **ROOM)
