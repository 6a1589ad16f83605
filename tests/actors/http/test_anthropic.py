"""POST /v1/messages: how answers are shown, errors, keys, clients that come back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from lightllm_mp.actors.front.chat.stop_cut import StopCut
from lightllm_mp.actors.http.dialects.anthropic.anthropic_answer import tool_input
from lightllm_mp.actors.http.security.keys import ApiKeys
from lightllm_mp.errors import InvalidLogits, PromptTooLong
from lightllm_mp.messages import ErrorInfo, Generate
from tests.actors.http.harness import Engine, Site, resumed_at_every_event, run, word
from tests.actors.http.test_auth import digests
from tests.actors.http.test_chat_tools import CALLING, TOOLS

MESSAGES = "/v1/messages"
HELLO = [{"role": "user", "content": "Hello"}]
ASKED = {"model": "any", "max_tokens": 64, "messages": HELLO}
WEATHER = {
    "name": "weather",
    "description": "Tells the weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
TEXT = "".join(CALLING)


def events(data: bytes) -> list[dict[str, Any]]:
    """The events of a stream; each has a line `event:` with its type."""
    *blocks, rest = data.decode().split("\n\n")
    assert rest == ""
    found = []
    for block in blocks:
        *numbers, name, line = block.split("\n")
        event = json.loads(line.removeprefix("data: "))
        assert name == "event: " + event["type"]
        assert all(number.startswith("id: ") for number in numbers)
        found.append(event)
    return found


def summed(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that a stream's events make, as the SDK does it."""
    assert found[0]["type"] == "message_start"
    message: dict[str, Any] = found[0]["message"]
    texts: dict[int, str] = {}
    for event in found[1:]:
        match event["type"]:
            case "content_block_start":
                assert event["index"] == len(message["content"])
                message["content"].append(dict(event["content_block"]))
            case "content_block_delta":
                block, delta = message["content"][event["index"]], event["delta"]
                match delta["type"]:
                    case "text_delta":
                        block["text"] += delta["text"]
                    case "thinking_delta":
                        block["thinking"] += delta["thinking"]
                    case "signature_delta":
                        block["signature"] += delta["signature"]
                    case "input_json_delta":
                        texts[event["index"]] = texts.get(event["index"], "") + delta["partial_json"]
            case "content_block_stop":
                if event["index"] in texts:
                    message["content"][event["index"]]["input"] = tool_dict(texts[event["index"]])
            case "message_delta":
                message |= event["delta"] | {"usage": event["usage"]}
            case kind:
                assert kind in ("ping", "message_stop")
    assert found[-1]["type"] == "message_stop"
    return message


def tool_dict(text: str) -> Any:
    found = tool_input(text)
    return json.loads(bytes(found)) if found else {}


async def stream(s: Site, body: dict[str, Any], **headers: str) -> list[dict[str, Any]]:
    async with s.session.post(MESSAGES, json=body | {"stream": True}, headers=headers) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "text/event-stream"
        return events(await response.read())


def request(s: Site) -> Generate:
    return next(m for m in reversed(s.engine.tokenizer) if isinstance(m, Generate))


def test_a_message():
    async def body(s: Site):
        status, answer, headers = await s.post(MESSAGES, ASKED | {"max_tokens": 3})
        assert (status, headers["Content-Type"]) == (200, "application/json")
        assert headers["request-id"] == headers["X-Request-Id"]
        assert answer == {
            "id": "msg_" + headers["X-Request-Id"],
            "type": "message",
            "role": "assistant",
            "model": "fake",
            "content": [{"type": "text", "text": "".join(word(i)[1] for i in range(3))}],
            "stop_reason": "max_tokens",
            "stop_sequence": None,
            "usage": {
                "input_tokens": 4,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 3,
                "output_tokens": 3,
                "output_tokens_details": {"thinking_tokens": 0},
            },
        }
        found = await stream(s, ASKED | {"max_tokens": 3})
        assert [event["type"] for event in found[:2]] == ["message_start", "ping"]
        assert found[0]["message"]["usage"]["output_tokens"] == 0
        assert summed(found) == answer | {"id": found[0]["message"]["id"]}
        assert s.frontend.live == 0

    run(body)


SCRIPTS = [CALLING, list(TEXT), [TEXT], [TEXT[:40], TEXT[40:]], *([TEXT[:i], TEXT[i:]] for i in range(1, len(TEXT), 7))]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: f"{len(script)}-{len(script[0])}")
def test_blocks(script: list[str]):
    async def body(s: Site):
        asked = ASKED | {"tools": [WEATHER], "max_tokens": 1000}
        _, answer, _ = await s.post(MESSAGES, asked)
        thinking, text, call = answer["content"]
        assert (thinking["type"], thinking["thinking"]) == ("thinking", "I should look")
        assert thinking["signature"]
        assert text == {"type": "text", "text": "Let me see."}
        assert (call["type"], call["name"], call["input"]) == ("tool_use", "weather", {"city": "Paris"})
        assert answer["stop_reason"] == "tool_use"
        found = summed(await stream(s, asked))
        for one in (found, answer):
            del one["id"], one["content"][0]["signature"], one["content"][2]["id"]
        assert found == answer
        sent = request(s).chat
        assert sent is not None
        function = {"name": "weather", "description": "Tells the weather", "parameters": WEATHER["input_schema"]}
        assert json.loads(sent.tools) == [{"type": "function", "function": function}]

    run(body, engine=Engine(facts=TOOLS, script=script))


def test_a_call_that_is_cut_off_has_the_members_that_came():
    script = ['<tool_call>{"name": "weather", "arguments": {"city": "Paris", "days": [1, 2, {"a": "}', "not", "all"]

    async def body(s: Site):
        asked = ASKED | {"tools": [WEATHER], "max_tokens": 2}
        _, answer, _ = await s.post(MESSAGES, asked)
        assert answer["content"][0]["input"] == {"city": "Paris", "days": [1, 2, {}]}
        assert answer["stop_reason"] == "max_tokens"
        assert summed(await stream(s, asked))["content"][0]["input"] == answer["content"][0]["input"]

    run(body, engine=Engine(facts=TOOLS, script=script))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        ("{", {}),
        ('{"a', {}),
        ('{"a": 1', {}),
        ('{"a": 1,', {"a": 1}),
        ('{"a": [1, "x,', {"a": [1]}),
        ('{"a": {"b": 1}', {"a": {"b": 1}}),
        ('{"a": "\\"}', {}),
        ('{"a": "é\\\\", "b', {"a": "é\\"}),
        ('{"a": 1}', {"a": 1}),
        ("[1]", {}),
        ("{]", {}),
    ],
)
def test_input_of_a_text_that_ends_early(text: str, found: dict[str, Any]):
    assert tool_dict(text) == found


@pytest.mark.parametrize("pieces", [["one ST", "OP"], ["one ", "S", "T", "O", "P", "more"], ["one STOP and more"]])
def test_the_stop_sequence_that_matched(pieces: list[str]):
    async def body(s: Site):
        asked = ASKED | {"stop_sequences": ["nothing", "STOP", ""]}
        _, answer, _ = await s.post(MESSAGES, asked)
        assert answer["content"] == [{"type": "text", "text": "one "}]
        assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", "STOP")
        found = summed(await stream(s, asked))
        assert found == answer | {"id": found["id"]}
        output = request(s).terms.output
        assert (output.stop, output.keep_stop) == (("nothing", "STOP"), True)

    run(body, engine=Engine(script=pieces))


def test_the_beginning_of_a_stop_sequence_is_text():
    async def body(s: Site):
        _, answer, _ = await s.post(MESSAGES, ASKED | {"stop_sequences": ["STOP"]})
        assert answer["content"] == [{"type": "text", "text": "one STO"}]
        assert (answer["stop_reason"], answer["stop_sequence"]) == ("end_turn", None)

    run(body, engine=Engine(script=["one S", "TO"]))


def test_the_cut_does_not_depend_on_the_pieces():
    text = "abab aba ababc x"
    for first in range(len(text) + 1):
        for second in range(first, len(text) + 1):
            cut = StopCut(["ababc", "c x"])
            pieces = (text[:first], text[first:second], text[second:])
            shown = "".join(cut.cut(piece, last=i == 2) for i, piece in enumerate(pieces))
            assert (shown, cut.found) == ("abab aba ", "ababc")


def test_the_context_ends_before_the_limit():
    async def body(s: Site):
        s.engine.stop_after = 1 << 30
        _, answer, _ = await s.post(MESSAGES, ASKED | {"max_tokens": 5000})
        assert answer["stop_reason"] == "model_context_window_exceeded"

    engine = Engine()
    start = engine.go

    def capped(m: Generate) -> None:
        start(m)
        engine.running[m.rid][1] = 3

    engine.go = capped  # type: ignore[method-assign]
    run(body, engine=engine)


def test_an_answer_goes_on_with_the_last_message():
    facts = replace(TOOLS, chat=replace(TOOLS.chat, thinking=(True, True, True)))

    async def body(s: Site):
        turns = [*HELLO, {"role": "assistant", "content": "The answer is ("}]
        _, answer, _ = await s.post(MESSAGES, ASKED | {"messages": turns})
        assert request(s).chat.continue_final  # type: ignore[union-attr]
        assert answer["content"] == [{"type": "text", "text": "B)"}]

    run(body, engine=Engine(facts=facts, script=["B", ")"]))


def test_thoughts_may_be_left_out():
    async def body(s: Site):
        thinking = {"type": "enabled", "budget_tokens": 1024, "display": "omitted"}
        asked = ASKED | {"thinking": thinking, "max_tokens": 2000}
        _, answer, headers = await s.post(MESSAGES, asked)
        assert headers["X-LightLLM-Warning"] == "ignored parameters: thinking.budget_tokens"
        assert answer["content"][0]["thinking"] == ""
        assert answer["usage"]["output_tokens_details"] == {"thinking_tokens": 3}
        assert summed(await stream(s, asked))["content"][0]["thinking"] == ""
        assert json.loads(request(s).chat.kwargs) == {"enable_thinking": True}  # type: ignore[union-attr]

    run(body, engine=Engine(facts=TOOLS, script=CALLING))


def test_errors_have_anthropics_form():
    async def body(s: Site):
        key = {"x-api-key": "first-key"}
        status, answer, _ = await s.post(MESSAGES, ASKED)
        assert (status, answer["error"]["type"]) == (401, "authentication_error")
        status, answer, _ = await s.post(MESSAGES + "/batches", ASKED, headers=key)
        assert (status, answer["error"]["type"]) == (404, "not_found_error")
        status, text, headers = await s.get(MESSAGES, headers=key)
        assert (status, json.loads(text)["error"]["type"]) == (405, "invalid_request_error")
        assert headers["Allow"] == "POST"
        status, answer, _ = await s.post(MESSAGES, b'"' + b"x" * 2000 + b'"', headers=key)
        assert (status, answer["error"]["type"]) == (413, "request_too_large")
        s.engine.room = False
        status, answer, headers = await s.post(MESSAGES, ASKED, headers=key)
        assert (status, answer["error"]["type"]) == (429, "rate_limit_error")
        assert int(headers["Retry-After"]) > 0
        s.frontend.reset()
        s.frontend.state = replace(s.frontend.state, draining=True)
        status, answer, _ = await s.post(MESSAGES, ASKED, headers=key)
        assert (status, answer["error"]["type"]) == (503, "overloaded_error")
        status, answer, _ = await s.post("/v1/chat/completions", ASKED, headers=key)
        assert (status, answer["error"]["type"]) == (503, "unavailable_error")

    run(body, keys=ApiKeys(users=digests("first-key")), max_body_bytes=1000)


def test_a_prompt_that_is_too_long_is_told_in_anthropics_words():
    async def body(s: Site):
        status, answer, _ = await s.post(MESSAGES, ASKED)
        assert (status, answer["error"]["message"]) == (400, "prompt is too long: 9 tokens, not 5")

    run(body, engine=Engine(reject=ErrorInfo.of(PromptTooLong("9 tokens, not 5"))))


def test_a_key_in_either_header():
    async def body(s: Site):
        first, second = {"Authorization": "Bearer first-key"}, {"X-Api-Key": "second-key"}
        for headers in (first, second, first | {"x-api-key": "first-key"}, second | {"Authorization": "Basic eA=="}):
            assert (await s.post(MESSAGES, ASKED, headers=headers))[0] == 200
            assert (await s.get("/get_server_info", headers=headers))[0] == 200
        for headers in (first | second, {"X-Api-Key": "nope"}, {"X-Api-Key": ""}, {"X-Api-Key": "Bearer first-key"}):
            assert (await s.post(MESSAGES, ASKED, headers=headers))[0] == 401

    run(body, keys=ApiKeys(users=digests("first-key", "second-key")))


def test_a_failure_is_the_last_event():
    async def body(s: Site):
        s.engine.pace = 0.05
        async with s.session.post(MESSAGES, json=ASKED | {"stream": True}) as response:
            await response.content.readuntil(b"\n\n")
            s.fail(InvalidLogits("not finite"))
            *_, last = events(await response.read())
        assert (last["type"], last["error"]["type"]) == ("error", "api_error")

    run(body)


def test_a_client_that_leaves_frees_its_place():
    async def body(s: Site):
        s.engine.pace = 0.01
        async with s.session.post(MESSAGES, json=ASKED | {"stream": True, "max_tokens": 2000}) as response:
            await response.content.readuntil(b"\n\n")
            assert s.frontend.live == 1
        await s.settled(lambda: s.frontend.live == 0 and not s.engine.running)

    run(body)


def test_a_client_that_comes_back_gets_the_rest():
    async def body(s: Site):
        asked = ASKED | {"tools": [WEATHER], "stop_sequences": ["</tool_call>"]}
        await resumed_at_every_event(s, MESSAGES, asked, events)

    run(body, engine=Engine(facts=TOOLS, script=CALLING))


def test_a_whole_answer_for_a_client_that_comes_back():
    async def body(s: Site):
        _, first, _ = await s.post(MESSAGES, ASKED, headers={"X-Request-Id": "mine"})
        status, again, _ = await s.get("/requests/mine")
        assert status == 200
        assert json.loads(again) == first

    run(body)
