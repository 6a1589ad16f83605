"""Constraints on answers: OpenAI's, vLLM's and SGLang's fields become the engine's guides, required calls too."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from lightllm_mp.messages import Guide
from tests.actors.http.harness import Engine, Site, run
from tests.actors.http.test_chat import CHAT, HELLO, WEATHER, request
from tests.actors.http.test_chat_tools import TOOLS

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
JSON = Guide("json_schema", json.dumps(SCHEMA))
PLAIN = replace(TOOLS, chat=replace(TOOLS.chat, reasoning=None))
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}


@pytest.mark.parametrize(
    ("fields", "guide"),
    [
        ({"response_format": None}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Guide("json_object")),
        ({"response_format": FORMAT}, JSON),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, Guide("json_object")),
        ({"structured_outputs": {"json": SCHEMA}}, JSON),
        ({"structured_outputs": {"regex": "a+"}}, Guide("regex", "a+")),
        ({"structured_outputs": {"choice": ["a", "é"]}}, Guide("choice", '["a","é"]')),
        ({"structured_outputs": {"grammar": "root ::= 'a'"}}, Guide("gbnf", "root ::= 'a'")),
        ({"structured_outputs": {"json_object": True}}, Guide("json_object")),
        ({"guided_json": SCHEMA}, JSON),
        ({"guided_json": json.dumps(SCHEMA)}, JSON),
        ({"guided_regex": "a+"}, Guide("regex", "a+")),
        ({"guided_choice": ["a"]}, Guide("choice", '["a"]')),
        ({"guided_grammar": "start: /a/"}, Guide("gbnf", "start: /a/")),
        ({"json_schema": json.dumps(SCHEMA)}, JSON),
        ({"regex": "a+"}, Guide("regex", "a+")),
        ({"ebnf": "root ::= 'a'"}, Guide("gbnf", "root ::= 'a'")),
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_fields(fields: dict[str, Any], guide: Guide | None, path: str):
    async def body(s: Site):
        asked = {"messages": HELLO} if path == CHAT else {"prompt": "a"}
        status, answer, _ = await s.post(path, asked | {"max_tokens": 1} | fields)
        assert status == 200, answer
        assert request(s).terms.guide == (guide and replace(guide, jump=True))

    run(body, engine=Engine(facts=PLAIN))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "grammar"}}, "response_format"),
        ({"response_format": {"type": "structural_tag"}}, "response_format"),
        ({"response_format": {"type": "json_object", "x": 1}}, "response_format"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"whitespace_pattern": "a"}}, "structured_outputs"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_regex": "a" * 65537}, "guided_regex"),
        ({"guided_regex": "a", "tools": [WEATHER]}, "tools"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], param: str):
    async def body(s: Site):
        status, answer, _ = await s.post(CHAT, {"messages": HELLO, "max_tokens": 1} | fields)
        assert (status, answer["error"]["param"]) == (400, param), answer

    run(body, engine=Engine(facts=PLAIN))


@pytest.mark.parametrize(
    ("chosen", "required", "text"),
    [
        ({"tool_choice": "required"}, True, False),
        ({"tool_choice": {"type": "function", "function": {"name": "weather"}}}, True, False),
        ({"tool_choice": "auto", "response_format": FORMAT}, False, True),
        ({"strict": True}, False, False),
    ],
)
def test_calls_of_tools_are_constrained(chosen: dict[str, Any], required: bool, text: bool):
    async def body(s: Site):
        tool = {"type": "function", "function": WEATHER["function"] | {"strict": chosen.pop("strict", None)}}
        status, answer, _ = await s.post(CHAT, {"messages": HELLO, "tools": [tool], "max_tokens": 1} | chosen)
        assert status == 200, answer
        guide = request(s).terms.guide
        assert guide is not None
        assert guide.kind == "lark"
        assert '{\\"name\\": \\"weather\\"' in guide.source
        start = next(line for line in guide.source.split("\n") if line.startswith("start:"))
        assert ("|" in start or "?" in start) is not required
        assert ('"integer"' in guide.source) is text

    run(body, engine=Engine(facts=PLAIN))


@pytest.mark.parametrize(
    ("kwargs", "after"), [({}, "</think>"), ({"enable_thinking": True}, "</think>"), ({"enable_thinking": False}, "")]
)
def test_reasoning_is_free(kwargs: dict[str, bool], after: str):
    facts = replace(TOOLS, chat=replace(TOOLS.chat, thought=(False, False, True)))

    async def body(s: Site):
        asked = {"messages": HELLO, "max_tokens": 1, "chat_template_kwargs": kwargs}
        for fields in ({"response_format": FORMAT}, {"tools": [WEATHER], "tool_choice": "required"}):
            status, answer, _ = await s.post(CHAT, asked | fields)
            assert status == 200, answer
            guide = request(s).terms.guide
            assert guide is not None
            assert guide.after == after

    run(body, engine=Engine(facts=facts))


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_forced_ids_are_jumped_over_where_nobody_sees_logprobs(path: str):
    async def body(s: Site):
        asked = {"messages": HELLO} if path == CHAT else {"prompt": "a"}
        for logprobs in (True, None) if path == CHAT else (0, None):
            more = {"max_tokens": 1, "response_format": FORMAT, "logprobs": logprobs}
            assert (await s.post(path, asked | more))[0] == 200
            guide = request(s).terms.guide
            assert guide is not None
            assert guide.jump is (logprobs is None)

    run(body, engine=Engine(facts=PLAIN))


def test_a_free_choice_is_not_constrained():
    async def body(s: Site):
        for chosen in ({}, {"tool_choice": "auto"}, {"tool_choice": "none"}):
            await s.post(CHAT, {"messages": HELLO, "tools": [WEATHER], "max_tokens": 1} | chosen)
            assert request(s).terms.guide is None

    run(body, engine=Engine(facts=PLAIN))
