"""What POST /v1/messages and /v1/messages/count_tokens ask of the engine, and what they refuse."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lightllm_mp.messages import Count, Counted
from tests.actors.http.harness import Engine, Site, run
from tests.actors.http.test_anthropic import ASKED, HELLO, MESSAGES, WEATHER, request
from tests.actors.http.test_chat_tools import TOOLS

NO = [{"type": "text", "text": "no"}]


async def rendered(s: Site, **body: Any) -> list[dict[str, Any]]:
    status, answer, _ = await s.post(MESSAGES, ASKED | body)
    assert status == 200, answer
    chat = request(s).chat
    assert chat is not None
    return json.loads(chat.messages)


def test_every_parameter_reaches_the_engine():
    async def body(s: Site):
        asked = {
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 7,
            "stop_sequences": ["a"],
            "system": [{"type": "text", "text": "Be brief", "cache_control": {"type": "ephemeral"}}],
            "thinking": {"type": "disabled"},
            "output_config": {"effort": "low"},
            "metadata": {"user_id": "me"},
            "service_tier": "auto",
            "tools": [WEATHER | {"cache_control": {"type": "ephemeral"}, "type": "custom", "strict": True}],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
            "container": None,
            "mcp_servers": [],
            "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
            "cache_control": {"type": "ephemeral"},
        }
        headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "a,b"}
        status, answer, _ = await s.post(MESSAGES + "?beta=true", ASKED | asked, headers=headers)
        assert status == 200, answer
        found = request(s)
        sampling = found.terms.sampling
        assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_new_tokens) == (0.5, 0.9, 7, 64)
        assert found.terms.guide is not None
        assert found.terms.guide.kind == "lark"
        assert found.chat is not None
        assert json.loads(found.chat.kwargs) == {"reasoning_effort": "low", "enable_thinking": False}
        assert json.loads(found.chat.messages) == [{"role": "system", "content": "Be brief"}, *HELLO]
        assert json.loads(found.chat.tools)[0]["function"]["strict"] is True
        assert found.terms.guide is not None
        _, _, headers = await s.post(MESSAGES, ASKED)
        assert request(s).terms.sampling.temperature == 1.0
        assert request(s).chat.kwargs == b""  # type: ignore[union-attr]

    run(body, engine=Engine(facts=TOOLS))


def test_a_conversation_as_templates_take_it():
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "x"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "Let me see."},
                {"type": "tool_use", "id": "a", "name": "weather", "input": {"city": "Paris"}},
                {"type": "tool_use", "id": "b", "name": "weather", "input": {}, "toolset_name": None},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "a", "content": "sunny"},
                {
                    "type": "tool_result",
                    "tool_use_id": "b",
                    "is_error": True,
                    "content": [{"type": "text", "text": "no"}],
                },
                {"type": "tool_result", "tool_use_id": "c"},
                {"type": "text", "text": "So"},
                {"type": "text", "text": "what?"},
            ],
        },
    ]

    async def body(s: Site):
        status, answer, headers = await s.post(MESSAGES, ASKED | {"messages": turns, "tools": [WEATHER]})
        assert status == 200, answer
        assert headers["X-LightLLM-Warning"] == "ignored parameters: redacted_thinking"
        chat = request(s).chat
        assert chat is not None
        call = {"function": {"name": "weather", "arguments": '{"city": "Paris"}'}, "id": "a", "type": "function"}
        assert json.loads(chat.messages) == [
            {"role": "user", "content": "Hi"},
            {
                "role": "assistant",
                "content": "Let me see.",
                "reasoning_content": "hm",
                "tool_calls": [call, call | {"id": "b", "function": {"name": "weather", "arguments": "{}"}}],
            },
            {"role": "tool", "content": "sunny", "tool_call_id": "a"},
            {"role": "tool", "content": "Error: no", "tool_call_id": "b"},
            {"role": "tool", "content": "", "tool_call_id": "c"},
            {"role": "user", "content": [{"type": "text", "text": "So"}, {"type": "text", "text": "what?"}]},
        ]
        assert not chat.continue_final

    run(body)


def test_a_note_to_anthropic_is_no_prompt():
    async def body(s: Site):
        system = ["x-anthropic-billing-header: cc_version=2; cch=ab12;", "You are", "brief"]
        found = await rendered(s, system=[{"type": "text", "text": text} for text in system])
        assert found[0] == {"role": "system", "content": "You are\nbrief"}
        assert await rendered(s, system="Be brief") == [{"role": "system", "content": "Be brief"}, *HELLO]

    run(body)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temprature", 1),
        ("max_tokens", None),
        ("max_tokens", 0),
        ("model", None),
        ("temperature", -1),
        ("top_k", -1),
        ("stop_sequences", ["x"] * 17),
        ("container", {"id": "x"}),
        ("mcp_servers", [{"url": "x"}]),
        ("context_management", {"edits": [{"type": "clear_tool_uses_20250919"}]}),
        ("output_format", {"type": "json_schema"}),
        ("format", {"type": "grammar", "schema": {}}),
        ("inference_geo", "eu"),
        ("speed", "fast"),
        ("diagnostics", {"previous_message_id": "x"}),
        ("service_tier", "priority"),
        ("thinking", {"type": "enabled"}),
        ("thinking", {"type": "enabled", "budget_tokens": 10}),
        ("thinking", {"type": "enabled", "budget_tokens": 2000}),
        ("thinking", {"type": "between_tools"}),
        ("tools", [{"type": "web_search_20250305", "name": "web_search", "max_uses": 5}]),
        ("tools", [WEATHER | {"name": "not a name"}]),
        ("tools", [WEATHER | {"defer_loading": True}]),
        ("tools", [WEATHER | {"input_examples": [{}]}]),
        ("tools", [WEATHER | {"colour": 1}]),
        ("tools", [WEATHER] * 129),
        ("tool_choice", {"type": "any"}),
        ("tool_choice", {"type": "tool"}),
        ("tool_choice", {"type": "tool", "name": "other"}),
        ("system", 5),
        ("system", [{"type": "image", "source": {}}]),
        ("messages", []),
        ("messages", [{"role": "robot", "content": "x"}]),
        ("messages", [{"role": "user"}]),
        ("messages", [{"role": "user", "content": []}]),
        ("messages", [{"role": "user", "content": "x", "name": "me"}]),
        ("messages", [{"role": "user", "content": [{"type": "text", "text": "x", "colour": 1}]}]),
        ("messages", [{"role": "user", "content": [{"type": "text", "text": "x", "citations": [{}]}]}]),
        ("messages", [{"role": "user", "content": [{"type": "document", "source": {"type": "text", "data": "x"}}]}]),
        ("messages", [{"role": "user", "content": [{"type": "tool_use", "id": "x", "name": "f", "input": {}}]}]),
        ("messages", [{"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "x"}}]}]),
        ("messages", [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://x"}}]}]),
        ("messages", [{"role": "assistant", "content": [{"type": "tool_use", "id": "x", "name": "f", "input": "x"}]}]),
        ("messages", HELLO * 10_001),
    ],
)
def test_what_is_not_honoured_is_refused_by_its_name(field: str, value: Any):
    async def body(s: Site):
        more = {"output_config": {"format": value}} if field == "format" else {field: value}
        status, answer, headers = await s.post(MESSAGES, ASKED | more)
        assert status == 400
        assert answer["type"] == "error"
        assert answer["error"]["type"] == "invalid_request_error"
        assert (field.split("_")[0]) in answer["error"]["message"] or "image" in str(value), answer
        assert answer["request_id"] == headers["X-Request-Id"]
        assert s.frontend.live == 0

    run(body)


def test_an_answer_of_a_schema():
    async def body(s: Site):
        form = {"type": "json_schema", "schema": {"type": "object"}}
        for field in ({"output_config": {"format": form}}, {"output_format": form}):
            assert (await s.post(MESSAGES, ASKED | field))[0] == 200
            guide = request(s).terms.guide
            assert guide is not None
            assert (guide.kind, json.loads(guide.source)) == ("json_schema", {"type": "object"})

    run(body)


def test_count_tokens():
    async def body(s: Site):
        asked = {"model": "any", "messages": HELLO, "system": "Be brief", "tools": [WEATHER]}
        status, answer, _ = await s.post(MESSAGES + "/count_tokens", asked)
        assert (status, answer) == (200, {"input_tokens": 12})
        count = next(m for m in s.engine.tokenizer if isinstance(m, Count))
        assert count.chat is not None
        assert json.loads(count.chat.messages) == [{"role": "system", "content": "Be brief"}, *HELLO]
        status, answer, _ = await s.post(MESSAGES + "/count_tokens", asked | {"max_tokens": 5})
        assert (status, answer["type"]) == (400, "error")
        assert s.frontend.live == 0

    class Counting(Engine):
        def to_tokenizer(self, message: Any) -> bool:
            if isinstance(message, Count):
                self.tokenizer.append(message)
                self.later(Counted(message.rid, 12))
                return True
            return super().to_tokenizer(message)

    run(body, engine=Counting())
