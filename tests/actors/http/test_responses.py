"""/v1/responses: how answers are shown, stored and gone on with."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lightllm_mp.actors.http.security.keys import ApiKeys
from lightllm_mp.errors import InvalidLogits
from lightllm_mp.messages import Generate
from tests.actors.http.harness import Engine, Site, resumed_at_every_event, run, word
from tests.actors.http.test_anthropic import SCRIPTS
from tests.actors.http.test_auth import digests
from tests.actors.http.test_chat_tools import CALLING, TOOLS

RESPONSES = "/v1/responses"
ASKED = {"model": "any", "input": "Hello", "max_output_tokens": 64}
WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "Tells the weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}


def events(data: bytes) -> list[dict[str, Any]]:
    """The events of a stream: each has a line `event:` with its type, and they are counted."""
    *blocks, rest = data.decode().split("\n\n")
    assert rest == ""
    found = []
    for block in blocks:
        *numbers, name, line = block.split("\n")
        event = json.loads(line.removeprefix("data: "))
        assert name == "event: " + event["type"]
        assert all(number.startswith("id: ") for number in numbers)
        found.append(event)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def summed(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The response that a stream's deltas make; what its `done` events say must be the same."""
    assert [event["type"] for event in found[:2]] == ["response.created", "response.in_progress"]
    assert found[0]["response"] == found[1]["response"]
    items: list[dict[str, Any]] = []
    for event in found[2:-1]:
        kind, item = event["type"].removeprefix("response."), dict[str, Any]()
        if kind != "output_item.added":
            item = items[event["output_index"]]
            assert event.get("item_id", item["id"]) == item["id"]
        match kind:
            case "output_item.added":
                assert event["output_index"] == len(items)
                assert event["item"]["status"] == "in_progress"
                items.append(event["item"])
            case "content_part.added":
                item["content"].append(event["part"])
            case "output_text.delta" | "reasoning_text.delta":
                item["content"][0]["text"] += event["delta"]
                if kind == "output_text.delta":
                    item["content"][0]["logprobs"] += event["logprobs"]
            case "function_call_arguments.delta":
                item["arguments"] += event["delta"]
            case "output_text.done" | "reasoning_text.done":
                assert event["text"] == item["content"][0]["text"]
            case "function_call_arguments.done":
                assert event["arguments"] == item["arguments"]
            case "content_part.done":
                assert event["part"] == item["content"][0]
            case "output_item.done":
                assert {key: event["item"][key] for key in item} | {"status": "in_progress"} == item
                item |= event["item"]
    response: dict[str, Any] = found[-1]["response"]
    assert found[-1]["type"] == "response." + response["status"]
    assert response["output"] == items
    return response


async def stream(s: Site, body: dict[str, Any], **headers: str) -> list[dict[str, Any]]:
    async with s.session.post(RESPONSES, json=body | {"stream": True}, headers=headers) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "text/event-stream"
        return events(await response.read())


def request(s: Site) -> Generate:
    return next(m for m in reversed(s.engine.tokenizer) if isinstance(m, Generate))


def messages(s: Site) -> Any:
    chat = request(s).chat
    assert chat is not None
    return json.loads(chat.messages)


def without_ids(response: dict[str, Any]) -> dict[str, Any]:
    items = [{key: value for key, value in item.items() if key not in ("id", "call_id")} for item in response["output"]]
    return response | {"output": items, "id": None, "created_at": None}


def test_a_response():
    async def body(s: Site):
        status, answer, headers = await s.post(RESPONSES, ASKED | {"max_output_tokens": 3})
        assert (status, headers["Content-Type"]) == (200, "application/json")
        label = headers["X-Request-Id"]
        text = "".join(word(i)[1] for i in range(3))
        assert answer.pop("created_at") > 0
        assert answer == {
            "id": "resp_" + label,
            "object": "response",
            "model": "fake",
            "status": "incomplete",
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"},
            "output": [
                {
                    "id": f"msg_{label}_0",
                    "type": "message",
                    "role": "assistant",
                    "status": "incomplete",
                    "content": [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}],
                }
            ],
            "usage": {
                "input_tokens": 7,
                "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0},
                "output_tokens": 3,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": 10,
            },
            "background": False,
            "instructions": None,
            "max_output_tokens": 3,
            "max_tool_calls": None,
            "metadata": {},
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "prompt_cache_key": None,
            "reasoning": {"effort": None, "summary": None},
            "safety_identifier": None,
            "service_tier": "default",
            "store": True,
            "temperature": 1.0,
            "text": {"format": {"type": "text"}, "verbosity": "medium"},
            "tool_choice": "auto",
            "tools": [],
            "top_logprobs": 0,
            "top_p": 1.0,
            "truncation": "disabled",
            "user": None,
        }
        assert messages(s) == [{"role": "user", "content": "Hello"}]
        streamed = summed(await stream(s, ASKED | {"max_output_tokens": 3}))
        assert without_ids(streamed) == without_ids(answer)
        assert s.frontend.live == 0

    run(body)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: f"{len(script)}-{len(script[0])}")
def test_items(script: list[str]):
    async def body(s: Site):
        asked = ASKED | {"tools": [WEATHER], "max_output_tokens": 1000}
        _, answer, _ = await s.post(RESPONSES, asked)
        reasoning, message, call = answer["output"]
        assert (reasoning["type"], reasoning["summary"]) == ("reasoning", [])
        assert reasoning["content"] == [{"type": "reasoning_text", "text": "I should look"}]
        assert (message["type"], message["content"][0]["text"]) == ("message", "Let me see.")
        assert (call["type"], call["name"], json.loads(call["arguments"])) == (
            "function_call",
            "weather",
            {"city": "Paris"},
        )
        assert call["call_id"] != call["id"]
        assert {item["status"] for item in answer["output"]} == {answer["status"]} == {"completed"}
        assert answer["usage"]["output_tokens_details"]["reasoning_tokens"] >= 0
        assert answer["tools"] == [WEATHER]
        assert without_ids(summed(await stream(s, asked))) == without_ids(answer)
        sent = request(s).chat
        assert sent is not None
        function = {key: value for key, value in WEATHER.items() if key != "type"}
        assert json.loads(sent.tools) == [{"type": "function", "function": function}]

    run(body, engine=Engine(facts=TOOLS, script=script))


def test_reasoning_comes_back_sealed():
    async def body(s: Site):
        asked = ASKED | {"tools": [WEATHER], "include": ["reasoning.encrypted_content"], "store": False}
        _, answer, _ = await s.post(RESPONSES, asked)
        assert without_ids(summed(await stream(s, asked))) == without_ids(answer)
        reasoning = answer["output"][0]
        assert reasoning.pop("content")[0]["text"] == "I should look"
        status, _, _ = await s.post(RESPONSES, asked | {"input": [*answer["output"], {"role": "user", "content": "x"}]})
        assert status == 200
        assert messages(s)[0]["reasoning_content"] == "I should look"

    run(body, engine=Engine(facts=TOOLS, script=CALLING))


def test_a_function_of_a_namespace():
    script = ['<tool_call>{"name": "sky__weather", "arguments": {}}</tool_call>']
    space = {"type": "namespace", "name": "sky", "description": "Of the sky.", "tools": [WEATHER]}

    async def body(s: Site):
        asked = ASKED | {"tools": [space, WEATHER]}
        _, answer, _ = await s.post(RESPONSES, asked)
        call = answer["output"][0]
        assert (call["namespace"], call["name"], call["arguments"]) == ("sky", "weather", "{}")
        assert without_ids(summed(await stream(s, asked))) == without_ids(answer)
        sent = request(s).chat
        assert sent is not None
        functions = [tool["function"] for tool in json.loads(sent.tools)]
        assert [function["name"] for function in functions] == ["sky__weather", "weather"]
        assert functions[0]["description"] == "Of the sky.\n\nTells the weather"
        await s.post(RESPONSES, asked | {"input": [call, {"role": "user", "content": "x"}]})
        assert messages(s)[0]["tool_calls"][0]["function"]["name"] == "sky__weather"

    run(body, engine=Engine(facts=TOOLS, script=script))


def test_logprobs():
    async def body(s: Site):
        asked = ASKED | {"max_output_tokens": 2, "top_logprobs": 2, "include": ["message.output_text.logprobs"]}
        _, answer, _ = await s.post(RESPONSES, asked)
        found = answer["output"][0]["content"][0]["logprobs"]
        assert [entry["token"] for entry in found] == [word(0)[1], word(1)[1]]
        assert [len(entry["top_logprobs"]) for entry in found] == [2, 2]
        assert without_ids(summed(await stream(s, asked))) == without_ids(answer)

    run(body)


def test_a_response_is_stored():
    async def body(s: Site):
        for how in ({}, {"stream": True}):
            asked = ASKED | {"max_output_tokens": 3} | how
            answer = summed(await stream(s, asked)) if how else (await s.post(RESPONSES, asked))[1]
            status, text, _ = await s.get(f"{RESPONSES}/{answer['id']}")
            assert (status, json.loads(text)) == (200, answer)
            async with s.session.delete(f"{RESPONSES}/{answer['id']}") as response:
                assert json.loads(await response.read()) == {"id": answer["id"], "object": "response", "deleted": True}
            assert (await s.get(f"{RESPONSES}/{answer['id']}"))[0] == 404
        _, answer, _ = await s.post(RESPONSES, ASKED | {"store": False})
        assert (await s.get(f"{RESPONSES}/{answer['id']}"))[0] == 404
        assert (await s.get(f"{RESPONSES}/resp_nope"))[0] == 404
        _, _, headers = await s.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]})
        assert (await s.get(f"{RESPONSES}/resp_{headers['X-Request-Id']}"))[0] == 404
        status, text, _ = await s.get(f"{RESPONSES}/{answer['id']}?stream=true")
        assert (status, json.loads(text)["error"]["param"]) == (400, "stream")

    run(body)


def test_a_response_under_way_is_seen_and_not_stored_in_vain():
    async def body(s: Site):
        s.engine.pace = 0.01
        async with s.session.post(RESPONSES, json=ASKED | {"stream": True, "max_output_tokens": 2000}) as response:
            await response.content.readuntil(b".delta")
            id = "resp_" + response.headers["X-Request-Id"]
            found = json.loads((await s.get(f"{RESPONSES}/{id}"))[1])
            assert (found["status"], found["usage"]) == ("in_progress", None)
            assert found["output"][0]["content"][0]["text"].startswith(word(0)[1])
            status, answer, _ = await s.post(RESPONSES, ASKED | {"previous_response_id": id})
            assert (status, answer["error"]["param"]) == (400, "previous_response_id")
            assert b".delta" in await response.content.readuntil(b".delta")
        await s.settled(lambda: s.frontend.live == 0 and not s.engine.running)

    run(body)


def test_only_its_key_knows_a_response():
    async def body(s: Site):
        mine, other = {"Authorization": "Bearer first-key"}, {"Authorization": "Bearer second-key"}
        _, answer, _ = await s.post(RESPONSES, ASKED, headers=mine)
        assert (await s.get(f"{RESPONSES}/{answer['id']}", headers=mine))[0] == 200
        assert (await s.get(f"{RESPONSES}/{answer['id']}", headers=other))[0] == 404
        asked = ASKED | {"previous_response_id": answer["id"]}
        assert (await s.post(RESPONSES, asked, headers=other))[0] == 400
        assert (await s.post(RESPONSES, asked, headers=mine))[0] == 200

    run(body, keys=ApiKeys(users=digests("first-key", "second-key")))


def test_a_response_goes_on_with_another():
    async def body(s: Site):
        tools = {"tools": [WEATHER], "max_output_tokens": 1000}
        _, first, _ = await s.post(RESPONSES, ASKED | tools | {"instructions": "Be brief"})
        _, _, call = first["output"]
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
        _, second, _ = await s.post(
            RESPONSES, tools | {"input": [result], "previous_response_id": first["id"], "instructions": "Be long"}
        )
        function = {"name": "weather", "arguments": call["arguments"]}
        turn = {
            "role": "assistant",
            "content": "Let me see.",
            "reasoning_content": "I should look",
            "tool_calls": [{"function": function, "id": call["call_id"], "type": "function"}],
        }
        assert second["previous_response_id"] == first["id"]
        chained = messages(s)
        assert chained == [
            {"role": "system", "content": "Be long"},
            {"role": "user", "content": "Hello"},
            turn,
            {"role": "tool", "content": "sunny", "tool_call_id": call["call_id"]},
        ]
        status, _, _ = await s.post(RESPONSES, tools | {"input": "And now?", "previous_response_id": second["id"]})
        assert status == 200
        assert [message["role"] for message in messages(s)] == ["user", "assistant", "tool", "assistant", "user"]
        # A client that keeps the conversation itself sends the same prompt.
        items = [{"role": "user", "content": "Hello"}, *first["output"], result]
        status, answer, _ = await s.post(RESPONSES, tools | {"input": items, "instructions": "Be long"})
        assert status == 200, answer
        assert messages(s) == chained

    run(body, engine=Engine(facts=TOOLS, script=CALLING))


def test_nothing_is_stored_where_the_operator_says_so():
    async def body(s: Site):
        _, answer, _ = await s.post(RESPONSES, ASKED)
        assert answer["store"] is False
        assert (await s.get(f"{RESPONSES}/{answer['id']}"))[0] == 404
        status, answer, _ = await s.post(RESPONSES, ASKED | {"store": True})
        assert (status, answer["error"]["param"]) == (400, "store")

    run(body, response_window=0)


def test_stored_responses_outlive_the_window_of_other_requests():
    async def body(s: Site):
        _, answer, _ = await s.post(RESPONSES, ASKED)
        _, _, headers = await s.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]})
        assert (await s.get(f"/requests/{headers['X-Request-Id']}"))[0] == 404
        assert (await s.get(f"{RESPONSES}/{answer['id']}"))[0] == 200

    run(body, resume_window=0)


def test_a_failure_is_the_last_event():
    async def body(s: Site):
        s.engine.pace = 0.05
        async with s.session.post(RESPONSES, json=ASKED | {"stream": True}) as response:
            await response.content.readuntil(b"\n\n")
            s.fail(InvalidLogits("not finite"))
            data = await response.read()
        last = json.loads(data.split(b"data: ")[-1])
        assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
        assert last["response"]["error"] == {"code": "server_error", "message": "not finite"}

    run(body)


def test_a_client_that_comes_back_gets_the_rest():
    async def body(s: Site):
        asked = ASKED | {"tools": [WEATHER]}
        await resumed_at_every_event(s, RESPONSES, asked, events)

    run(body, engine=Engine(facts=TOOLS, script=CALLING))
