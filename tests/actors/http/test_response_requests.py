"""What POST /v1/responses asks of the engine, and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.actors.http.harness import Engine, Site, run
from tests.actors.http.test_responses import ASKED, RESPONSES, WEATHER, messages, request, stream, summed

CHOSEN = {"type": "function", "name": "weather"}
USER = {"role": "user", "content": "x"}


def test_every_parameter_reaches_the_engine():
    async def body(s: Site):
        asked = {
            "instructions": "Be brief",
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 7,
            "seed": 3,
            "stop": ["a"],
            "tools": [WEATHER | {"defer_loading": False}],
            "tool_choice": {
                "type": "allowed_tools",
                "mode": "auto",
                "tools": [{"type": "function", "name": "weather"}],
            },
            "parallel_tool_calls": False,
            "reasoning": {"effort": "none", "summary": "auto"},
            "text": {"format": {"type": "text"}, "verbosity": "medium"},
            "metadata": {"a": "b"},
            "user": "me",
            "truncation": "disabled",
            "include": [],
            "service_tier": "auto",
            "background": False,
            "prompt_cache_key": "k",
            "safety_identifier": "s",
            "client_metadata": {"a": "b"},
            "conversation": None,
        }
        status, answer, headers = await s.post(RESPONSES, ASKED | asked)
        assert status == 200, answer
        assert headers["X-LightLLM-Warning"] == "ignored parameters: reasoning.summary"
        sampling = request(s).terms.sampling
        assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (0.5, 0.9, 7, 3)
        assert (sampling.max_new_tokens, request(s).terms.output.stop) == (64, ("a",))
        chat = request(s).chat
        assert chat is not None
        assert json.loads(chat.kwargs) == {"reasoning_effort": "none", "enable_thinking": False}
        for name in ("instructions", "temperature", "top_p", "metadata", "user", "prompt_cache_key", "tool_choice"):
            assert answer[name] == asked[name], name
        assert answer["parallel_tool_calls"] is False

    run(body)


def test_an_answer_of_a_schema():
    async def body(s: Site):
        form = {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True}
        _, answer, _ = await s.post(RESPONSES, ASKED | {"text": {"format": form}})
        guide = request(s).terms.guide
        assert guide is not None
        assert (guide.kind, json.loads(guide.source)) == ("json_schema", {"type": "object"})
        assert answer["text"]["format"] == form | {"description": None}
        assert (await s.post(RESPONSES, ASKED | {"text": {"format": {"type": "json_object"}}}))[0] == 200
        assert request(s).terms.guide.kind == "json_object"  # type: ignore[union-attr]

    run(body)


def test_without_a_limit_the_answer_goes_up_to_the_context():
    async def body(s: Site):
        assert (await s.post(RESPONSES, {"input": "x", "tool_choice": "auto", "tools": []}))[0] == 200
        sampling = request(s).terms.sampling
        assert (sampling.temperature, sampling.max_new_tokens) == (1.0, 2048)

    run(body, engine=Engine(stop_after=2))


def test_items_as_templates_take_them():
    items = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Use"}]},
        {"type": "message", "role": "developer", "content": "tools"},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "phase": None,
            "content": [{"type": "output_text", "text": "See", "annotations": [], "logprobs": []}],
        },
        {"type": "function_call", "id": "fc_1", "call_id": "a", "name": "f", "arguments": "{}", "namespace": None},
        {"type": "function_call", "call_id": "b", "name": "g", "arguments": '{"x": 1}', "status": "completed"},
        {"type": "function_call_output", "call_id": "a", "output": "1"},
        {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "2"}], "id": None},
        {"role": "assistant", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"type": "reasoning", "id": "rs_2", "summary": [{"type": "summary_text", "text": "so"}]},
    ]

    async def body(s: Site):
        status, answer, _ = await s.post(RESPONSES, ASKED | {"input": items, "instructions": "Be brief"})
        assert status == 200, answer

        def call(id: str, name: str, arguments: str) -> dict[str, Any]:
            return {"function": {"name": name, "arguments": arguments}, "id": id, "type": "function"}

        assert messages(s) == [
            {"role": "system", "content": "Be brief\n\nUse\n\ntools"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {
                "role": "assistant",
                "content": "See",
                "reasoning_content": "hm",
                "tool_calls": [call("a", "f", "{}"), call("b", "g", '{"x": 1}')],
            },
            {"role": "tool", "content": "1", "tool_call_id": "a"},
            {"role": "tool", "content": "2", "tool_call_id": "b"},
            {"role": "assistant", "content": "one"},
            {"role": "assistant", "content": "two", "reasoning_content": "so"},
        ]
        _, answer, _ = await s.post(RESPONSES, {"input": "go on", "previous_response_id": answer["id"]})
        assert messages(s)[0] == {"role": "developer", "content": "Use\n\ntools"}

    run(body, engine=Engine(stop_after=2))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temprature", 1),
        ("input", None),
        ("input", []),
        ("input", 5),
        ("input", [{"type": "item_reference", "id": "msg_1"}]),
        ("input", [{"type": "web_search_call", "id": "x"}]),
        ("input", [{"role": "robot", "content": "x"}]),
        ("input", [{"role": "user"}]),
        ("input", [USER | {"colour": 1}]),
        ("input", [USER | {"content": [{"type": "input_file", "file_id": "x"}]}]),
        ("input", [USER | {"content": [{"type": "input_image", "file_id": "x"}]}]),
        ("input", [USER | {"content": [{"type": "input_image", "image_url": "http://x"}]}]),
        ("input", [USER | {"content": [{"type": "input_text"}]}]),
        ("input", [{"type": "reasoning", "id": "x", "summary": [], "encrypted_content": "abc"}]),
        ("input", [{"type": "reasoning", "id": "x", "summary": [], "encrypted_content": "lightllm_mp:?"}]),
        ("input", [USER] * 10_001),
        ("max_output_tokens", 0),
        ("max_tokens", 5),
        ("n", 2),
        ("prompt_logprobs", 1),
        ("return_token_ids", True),
        ("temperature", -1),
        ("tools", [{"type": "web_search"}]),
        ("tools", [{"type": "custom", "name": "x"}]),
        ("tools", [WEATHER | {"name": "not a name"}]),
        ("tools", [WEATHER | {"colour": 1}]),
        ("tools", [WEATHER, WEATHER]),
        ("tools", [{"type": "namespace", "name": "x", "tools": [{"type": "custom", "name": "x"}]}]),
        ("tools", [WEATHER] * 129),
        ("tool_choice", "required"),
        ("tool_choice", {"type": "function", "name": "other"}),
        ("tool_choice", {"type": "web_search"}),
        ("text", {"format": {"type": "grammar"}}),
        ("text", {"format": {"type": "json_schema", "name": "x"}}),
        ("text", {"format": {"type": "json_schema", "schema": "{x"}}),
        ("text", {"verbosity": "low"}),
        ("reasoning", {"effort": "maximal"}),
        ("previous_response_id", "resp_nope"),
        ("truncation", "auto"),
        ("include", ["message.input_image.image_url"]),
        ("top_logprobs", 21),
        ("service_tier", "flex"),
        ("background", True),
        ("conversation", "conv_1"),
        ("prompt", {"id": "x"}),
        ("context_management", [{"type": "compaction"}]),
        ("moderation", {"model": "x"}),
    ],
)
def test_what_is_not_honoured_is_refused_by_its_name(field: str, value: Any):
    async def body(s: Site):
        status, answer, _ = await s.post(RESPONSES, ASKED | {field: value})
        assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
        assert answer["error"]["param"] == field, answer
        assert s.frontend.live == 0

    run(body)


def test_a_client_that_leaves_frees_its_place():
    async def body(s: Site):
        s.engine.pace = 0.01
        async with s.session.post(RESPONSES, json=ASKED | {"stream": True, "max_output_tokens": 2000}) as response:
            await response.content.readuntil(b"\n\n")
            assert s.frontend.live == 1
        await s.settled(lambda: s.frontend.live == 0 and not s.engine.running)
        found = summed(await stream(s, ASKED | {"max_output_tokens": 2}))
        assert found["status"] == "incomplete"

    run(body)
