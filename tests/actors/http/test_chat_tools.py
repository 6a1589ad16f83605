"""Tool calls and reasoning in chats, and clients that come back to them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from lightllm_mp.facts import ChatFacts
from tests.actors.http.harness import FACTS, Engine, Site, resumed_at_every_event, run
from tests.actors.http.test_chat import CHAT, HELLO, WEATHER, chunks, request, stream, summed

TOOLS = replace(FACTS, chat=ChatFacts(template=True, tool_calls="hermes", reasoning="qwen3"))
CALLING = [
    "<think>",
    "I should",
    " look",
    "</think>",
    "Let me see.",
    '<tool_call>{"name": "weather",',
    ' "arguments": {"city"',
    ': "Par',
    'is"}}',
    "</tool_call>",
]


def test_reasoning_and_calls_are_told_from_content():
    async def body(s: Site):
        asked = {"messages": HELLO, "tools": [WEATHER]}
        _, answer, _ = await s.post(CHAT, asked)
        choice = answer["choices"][0]
        message = choice["message"]
        assert message["content"] == "Let me see."
        assert message["reasoning_content"] == "I should look"
        call = message["tool_calls"][0]
        assert call["function"]["name"] == "weather"
        assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
        assert choice["finish_reason"] == "tool_calls"
        assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": 3}
        found = summed(await stream(s, asked))
        assert (found["content"], found["reasoning"]) == (message["content"], message["reasoning_content"])
        assert found["calls"] == [[0, found["calls"][0][1], "weather", call["function"]["arguments"]]]
        assert found["finish"] == "tool_calls"
        sent = request(s).chat
        assert sent is not None
        assert json.loads(sent.tools) == [WEATHER]

    run(body, engine=Engine(facts=TOOLS, script=CALLING))


@pytest.mark.parametrize(
    ("more", "content", "reasoning"),
    [
        ({"tool_choice": "none", "tools": [WEATHER]}, "Let me see." + "".join(CALLING[5:]), "I should look"),
        ({}, "Let me see." + "".join(CALLING[5:]), "I should look"),
        ({"separate_reasoning": False}, "".join(CALLING), ""),
        ({"include_reasoning": False}, "Let me see." + "".join(CALLING[5:]), ""),
    ],
)
def test_what_the_client_wants_told_apart(more: dict[str, Any], content: str, reasoning: str):
    async def body(s: Site):
        _, answer, _ = await s.post(CHAT, {"messages": HELLO} | more)
        message = answer["choices"][0]["message"]
        assert message["content"] == content
        assert message.get("reasoning_content", "") == reasoning
        assert "tool_calls" not in message
        found = summed(await stream(s, {"messages": HELLO} | more))
        assert (found["content"], found["reasoning"]) == (content, reasoning)

    run(body, engine=Engine(facts=TOOLS, script=CALLING))


@pytest.mark.parametrize(("parallel", "calls"), [(None, 2), (True, 2), (False, 1)])
def test_one_call_where_only_one_is_wanted(parallel: bool | None, calls: int):
    async def body(s: Site):
        asked = {"messages": HELLO, "tools": [WEATHER], "parallel_tool_calls": parallel}
        _, answer, _ = await s.post(CHAT, asked)
        assert len(answer["choices"][0]["message"]["tool_calls"]) == calls
        assert (answer["choices"][0]["message"]["content"] is None) is (calls == 1)
        found = summed(await stream(s, asked))
        assert len(found["calls"]) == calls
        assert found["content"] == ("" if calls == 1 else "more")

    run(body, engine=Engine(facts=TOOLS, script=[*CALLING[5:], *CALLING[5:], "more"]))


def test_a_prompt_that_ends_within_reasoning():
    facts = replace(TOOLS, chat=replace(TOOLS.chat, thinking=(True, True, False)))

    async def body(s: Site):
        for kwargs, reasoning in (({}, "so"), ({"enable_thinking": True}, "so"), ({"enable_thinking": False}, None)):
            _, answer, _ = await s.post(CHAT, {"messages": HELLO, "chat_template_kwargs": kwargs})
            message = answer["choices"][0]["message"]
            assert message.get("reasoning_content") == reasoning

    run(body, engine=Engine(facts=facts, script=["so", "</think>", "yes"]))


def test_special_markers_are_shown_to_the_parser_only_where_one_reads():
    facts = replace(TOOLS, chat=replace(TOOLS.chat, reasoning=None, special_markers={"<tool_call>": 7}))

    async def body(s: Site):
        for more, skipped in (({}, True), ({"tools": [WEATHER]}, False)):
            await s.post(CHAT, {"messages": HELLO} | more)
            assert request(s).terms.output.skip_special_tokens is skipped

    run(body, engine=Engine(facts=facts, script=["x"]))


def test_a_conversation_goes_back_as_clients_got_it():
    async def body(s: Site):
        _, answer, _ = await s.post(CHAT, {"messages": HELLO, "tools": [WEATHER]})
        message = answer["choices"][0]["message"] | {"annotations": [], "audio": None, "function_call": None}
        call = message["tool_calls"][0]
        result = {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}
        status, answer, _ = await s.post(CHAT, {"messages": [*HELLO, message, result], "tools": [WEATHER]})
        assert status == 200, answer
        chat = request(s).chat
        assert chat is not None
        _, assistant, tool = json.loads(chat.messages)
        assert assistant["content"] == "Let me see."
        assert assistant["reasoning_content"] == "I should look"
        assert assistant["tool_calls"][0]["function"] == call["function"]
        assert tool == result

    run(body, engine=Engine(facts=TOOLS, script=CALLING))


def test_a_client_that_comes_back_gets_the_rest():
    async def body(s: Site):
        asked = {"messages": HELLO, "tools": [WEATHER], "stream_options": {"include_usage": True}}
        await resumed_at_every_event(s, CHAT, asked, chunks)

    run(body, engine=Engine(facts=TOOLS, script=CALLING))


def test_a_whole_answer_for_a_client_that_comes_back():
    async def body(s: Site):
        _, first, _ = await s.post(CHAT, {"messages": HELLO, "max_tokens": 3}, headers={"X-Request-Id": "mine"})
        status, again, _ = await s.get("/requests/mine")
        assert status == 200
        assert json.loads(again) == first

    run(body)
