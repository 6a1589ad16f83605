"""Chats as large as a body may be, of every shape and API: decoded in pieces or refused, and others are served in
between."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from lightllm_mp.actors.http import schema
from lightllm_mp.actors.http.dialects.anthropic.anthropic_request import MessagesRequest, messages_body
from lightllm_mp.actors.http.dialects.chat_request import ChatRequest, chat_body
from lightllm_mp.actors.http.dialects.responses.response_request import read_response, response_body
from lightllm_mp.errors import InvalidRequest
from tests.actors.http.harness import FACTS
from tests.actors.http.test_large_bodies import LIMIT, SLOWEST, filled, longest_turn, named

MEMORY = 4 * LIMIT
"""Bytes of all objects that a body is decoded to."""


async def chat(data: bytes) -> None:
    asked = ChatRequest(chat_body(data), FACTS, open_templates=False)
    await pause()
    asked.prompt(await asked.read())


async def messages(data: bytes) -> None:
    body = messages_body(data)
    await pause()
    ask, found = await MessagesRequest(body, FACTS).read()
    ask.prompt(found.messages)


async def response(data: bytes) -> None:
    body = response_body(data)
    await pause()
    asked = await read_response(body, FACTS)
    asked.ask.prompt(asked.chat.messages)


async def pause() -> None:
    await asyncio.sleep(0)


APIS: dict[str, tuple[Callable[[bytes], Coroutine[Any, Any, None]], str, str, str]] = {
    "chat": (chat, '{"model":"m"', "messages", "text"),
    "messages": (messages, '{"model":"m","max_tokens":5', "messages", "text"),
    "responses": (response, '{"model":"m"', "input", "input_text"),
}
"""How a body is decoded, its beginning, the name of its messages, and of a text among their parts."""
SHAPES: dict[str, Callable[[str, str, str], bytes]] = {
    "messages": lambda head, name, _: filled(f'{head},"{name}":[', '{"role":"user","content":"a"}', "]}"),
    "numbers": lambda head, name, _: filled(f'{head},"{name}":[', "0", "]}"),
    "empty objects": lambda head, name, _: filled(f'{head},"{name}":[', "{}", "]}"),
    "long messages": lambda head, name, _: filled(
        f'{head},"{name}":[', '{"role":"user","content":"%s"}' % ("a" * 100_000), "]}"
    ),
    "one text": lambda head, name, _: filled(f'{head},"{name}":[{{"role":"user","content":"', "a" * 1000, '"}]}', ""),
    "escapes": lambda head, name, _: filled(
        f'{head},"{name}":[{{"role":"user","content":"', r"\u0061" * 1000, '"}]}', ""
    ),
    "parts": lambda head, name, part: filled(
        f'{head},"{name}":[{{"role":"user","content":[', f'{{"type":"{part}","text":"a"}}', "]}]}"
    ),
    "numbers as parts": lambda head, name, _: filled(f'{head},"{name}":[{{"role":"user","content":[', "0", "]}]}"),
    "fields of a message": lambda head, name, _: filled(
        f'{head},"{name}":[{{"role":"user","content":"a",', named, "}]}"
    ),
    "fields": lambda head, name, _: filled(f'{head},"{name}":[{{"role":"user","content":"a"}}],', named, "}"),
    "tools": lambda head, name, _: filled(f'{head},"{name}":[{{"role":"user","content":"a"}}],"tools":[', "{}", "]}"),
    "calls": lambda head, name, _: filled(
        f'{head},"{name}":[{{"role":"assistant","content":null,"tool_calls":[', '{"function":{"name":"f"}}', "]}]}"
    ),
}


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("shape", SHAPES)
def test_no_chat_keeps_others_waiting(shape: str, api: str) -> None:
    decode, *names = APIS[api]
    data = SHAPES[shape](*names)
    assert LIMIT - 300_000 < len(data) <= LIMIT

    async def whole() -> None:
        await schema.check_nesting(data)
        await pause()
        await decode(data)

    for _ in range(4):  # a busy machine has slow moments
        longest, error = longest_turn(whole())
        assert error is None or isinstance(error, InvalidRequest)
        if longest < SLOWEST:
            break
    else:
        pytest.fail(f"one turn of the loop takes {longest:.2f} s")


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("shape", ["numbers", "empty objects", "numbers as parts", "calls"])
def test_a_list_of_very_many_items_takes_little_memory(shape: str, api: str) -> None:
    decode, *names = APIS[api]
    data = SHAPES[shape](*names)
    tracemalloc.start()
    try:
        longest_turn(decode(data))
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()
