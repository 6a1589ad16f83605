"""Answers of gpt-oss, which are messages with channels, in every API."""

from __future__ import annotations

import json
from typing import Any

from msgspec.structs import replace

from lightllm_mp.facts import ChatFacts
from tests.actors.http import test_anthropic as anthropic
from tests.actors.http import test_chat as chat
from tests.actors.http import test_responses as responses
from tests.actors.http.harness import FACTS, Engine, Site, resumed_at_every_event, run

MARKERS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>", "<|constrain|>")
HARMONY = replace(
    FACTS,
    chat=ChatFacts(
        template=True,
        tool_calls="gpt_oss",
        reasoning="gpt_oss",
        special_markers={marker: 200000 + i for i, marker in enumerate(MARKERS)},
    ),
)
CALLING = [
    *("<|channel|>", "analysis", "<|message|>", "I should", " look", "<|end|>"),
    *("<|start|>", "assistant", "<|channel|>", "commentary", "<|message|>", "Let me see.", "<|end|>"),
    *("<|start|>", "assistant", " to=functions.weather", "<|channel|>", "commentary", " json", "<|message|>"),
    *('{"city": "Par', 'is"}', "<|call|>"),
]
ANSWERING = [
    *("<|channel|>", "analysis", "<|message|>", "Sun", "ny", "<|end|>"),
    *("<|start|>", "assistant", "<|channel|>", "final", "<|message|>", "It is", " sunny.", "<|return|>"),
]


def test_chat_completions():
    async def body(s: Site):
        asked = {"messages": chat.HELLO, "tools": [chat.WEATHER]}
        found = chat.summed(await chat.stream(s, asked))
        assert (found["content"], found["reasoning"], found["finish"]) == ("Let me see.", "I should look", "tool_calls")
        ((_, _, name, arguments),) = found["calls"]
        assert (name, json.loads(arguments)) == ("weather", {"city": "Paris"})
        _, answer, _ = await s.post(chat.CHAT, asked)
        message = answer["choices"][0]["message"]
        assert (message["content"], message["reasoning_content"]) == ("Let me see.", "I should look")
        assert message["tool_calls"][0]["function"] == {"name": "weather", "arguments": arguments}
        assert chat.request(s).terms.output.skip_special_tokens is False
        await resumed_at_every_event(s, chat.CHAT, asked, chat.chunks)

    run(body, engine=Engine(facts=HARMONY, script=CALLING))


def test_without_tools_and_without_reasoning():
    """Channels are told apart whatever the client wants to see."""

    async def body(s: Site):
        for more, reasoning in (({}, "Sunny"), ({"include_reasoning": False}, "")):
            found = chat.summed(await chat.stream(s, {"messages": chat.HELLO} | more))
            assert (found["content"], found["reasoning"], found["finish"]) == ("It is sunny.", reasoning, "stop")

    run(body, engine=Engine(facts=HARMONY, script=ANSWERING))


def test_responses():
    async def body(s: Site):
        asked = responses.ASKED | {"tools": [responses.WEATHER]}
        streamed = responses.summed(await responses.stream(s, asked))
        _, whole, _ = await s.post(responses.RESPONSES, asked)
        for response in (streamed, whole):
            thought, text, call = response["output"]
            assert thought["content"][0]["text"] == "I should look"
            assert text["content"][0]["text"] == "Let me see."
            assert (call["name"], json.loads(call["arguments"])) == ("weather", {"city": "Paris"})

    run(body, engine=Engine(facts=HARMONY, script=CALLING))


def test_messages():
    async def body(s: Site):
        asked = anthropic.ASKED | {"tools": [anthropic.WEATHER], "thinking": {"type": "enabled", "budget_tokens": 1024}}
        asked |= {"max_tokens": 2048}
        streamed = anthropic.summed(await anthropic.stream(s, asked))
        _, whole, _ = await s.post(anthropic.MESSAGES, asked)
        for message in (streamed, whole):
            thought, text, call = message["content"]
            assert thought["thinking"] == "I should look"
            assert text["text"] == "Let me see."
            assert (call["name"], call["input"]) == ("weather", {"city": "Paris"})
            assert message["stop_reason"] == "tool_use"

    run(body, engine=Engine(facts=HARMONY, script=CALLING))


def test_a_turn_goes_back_with_its_thought():
    async def body(s: Site):
        asked: dict[str, Any] = {"messages": chat.HELLO, "tools": [chat.WEATHER]}
        _, answer, _ = await s.post(chat.CHAT, asked)
        message = answer["choices"][0]["message"]
        result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "sunny"}
        await s.post(chat.CHAT, asked | {"messages": [*chat.HELLO, message, result]})
        sent = chat.request(s).chat
        assert sent is not None
        _, assistant, _ = json.loads(sent.messages)
        assert (assistant["content"], assistant["reasoning_content"]) == ("Let me see.", "I should look")

    run(body, engine=Engine(facts=HARMONY, script=CALLING))
