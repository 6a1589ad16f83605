"""POST /v1/chat/completions and /v1/models: what the engine is asked for, and how answers are shown."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from lightllm_mp.errors import InvalidLogits
from lightllm_mp.messages import Generate
from tests.actors.http.harness import Site, run, word

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def chunks(data: bytes) -> list[Any]:
    """The objects of a stream, which ends with [DONE]."""
    *events, done, rest = data.decode().split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    lines = [line for event in events for line in event.split("\n")]
    return [json.loads(line.removeprefix("data: ")) for line in lines if not line.startswith("id: ")]


async def stream(s: Site, body: dict[str, Any], path: str = CHAT, **headers: str) -> list[Any]:
    async with s.session.post(path, json=body | {"stream": True}, headers=headers) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "text/event-stream"
        return chunks(await response.read())


def request(s: Site) -> Generate:
    return next(m for m in reversed(s.engine.tokenizer) if isinstance(m, Generate))


def summed(chunks: list[Any], index: int = 0) -> dict[str, Any]:
    """The message that the deltas of a stream make."""
    found: dict[str, Any] = {"content": "", "reasoning": "", "calls": [], "finish": None}
    for choice in (choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index):
        delta = choice["delta"]
        found["content"] += delta.get("content") or ""
        found["reasoning"] += delta.get("reasoning_content") or ""
        for call in delta.get("tool_calls", []):
            if "id" in call:
                found["calls"].append([call["index"], call["id"], call["function"]["name"], ""])
            found["calls"][call["index"]][3] += call["function"]["arguments"]
        assert found["finish"] is None
        found["finish"] = choice["finish_reason"]
    return found


def test_an_answer():
    async def body(s: Site):
        status, answer, headers = await s.post(CHAT, {"model": "any", "messages": HELLO, "max_completion_tokens": 3})
        assert (status, headers["Content-Type"]) == (200, "application/json")
        assert answer["id"] == "chatcmpl-" + headers["X-Request-Id"]
        assert answer["choices"] == [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "".join(word(i)[1] for i in range(3)),
                    "refusal": None,
                },
                "logprobs": None,
                "finish_reason": "length",
            }
        ]
        assert answer["usage"] == {
            "prompt_tokens": 7,
            "completion_tokens": 3,
            "total_tokens": 10,
            "prompt_tokens_details": {"cached_tokens": 3},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }
        assert (answer["object"], answer["model"], answer["service_tier"]) == ("chat.completion", "fake", "default")
        chat = request(s).chat
        assert chat is not None
        assert json.loads(chat.messages) == HELLO
        assert (chat.tools, chat.kwargs, chat.add_generation_prompt, chat.continue_final) == (b"", b"", True, False)
        assert s.frontend.live == 0

    run(body)


@pytest.mark.parametrize("n", [1, 3, 64])
def test_a_stream_is_the_whole_answer(n: int):
    async def body(s: Site):
        asked = {"messages": HELLO, "max_tokens": 4, "n": n, "seed": 3}
        _, whole, _ = await s.post(CHAT, asked)
        found = await stream(s, asked | {"stream_options": {"include_usage": True}})
        for index in range(n):
            message = summed(found, index)
            assert message["content"] == whole["choices"][index]["message"]["content"]
            assert message["finish"] == whole["choices"][index]["finish_reason"]
        assert {chunk["id"] for chunk in found} == {found[0]["id"]}
        assert [chunk["usage"] for chunk in found[:-1]] == [None] * (len(found) - 1)
        assert found[-1]["choices"] == []
        assert found[-1]["usage"] == whole["usage"]
        assert whole["usage"]["completion_tokens"] == 4 * n

    run(body)


@pytest.mark.parametrize("n", [1, 3])
def test_timings_of_an_answer(n: int):
    async def body(s: Site):
        s.engine.pace = 0.002
        asked = {"messages": HELLO, "max_tokens": 5, "n": n, "return_timings": True}
        begin = time.monotonic()
        _, whole, _ = await s.post(CHAT, asked)
        passed = (time.monotonic() - begin) * 1e3
        for found in (whole, (await stream(s, asked))[-1]):
            timings, usage = found["timings"], found["usage"]
            assert (timings["prompt_n"], timings["predicted_n"]) == (usage["prompt_tokens"], 5 * n)
            assert timings["cache_n"] == usage["prompt_tokens_details"]["cached_tokens"]
            assert timings["ttft_ms"] == pytest.approx(timings["queue_ms"] + timings["prompt_ms"], abs=0.02)
            assert timings["predicted_ms"] > 4
            rate = 4 * n / timings["predicted_ms"] * 1e3
            assert timings["predicted_per_second"] == pytest.approx(rate, rel=0.01)
        assert whole["timings"]["ttft_ms"] + whole["timings"]["predicted_ms"] <= passed
        _, plain, _ = await s.post(CHAT, asked | {"return_timings": None})
        assert "timings" not in plain

    run(body)


def test_every_parameter_reaches_the_engine():
    async def body(s: Site):
        asked = {
            "messages": [{"role": "developer", "content": [{"type": "text", "text": "Be brief"}]}, *HELLO],
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 7,
            "min_p": 0.1,
            "presence_penalty": 0.5,
            "frequency_penalty": -0.5,
            "repetition_penalty": 1.1,
            "logit_bias": {"5": -100},
            "seed": 11,
            "stop": ["a", "b"],
            "stop_token_ids": [9],
            "min_tokens": 2,
            "max_tokens": 5,
            "ignore_eos": True,
            "allowed_token_ids": [5, 6],
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
            "priority": -3,
            "cache_salt": "mine",
            "chat_template_kwargs": {"enable_thinking": False, "x": [1]},
            "reasoning_effort": "low",
            "continue_final_message": False,
            "add_generation_prompt": False,
            "metadata": {"a": "b"},
            "user": "me",
            "service_tier": "auto",
            "store": False,
            "modalities": ["text"],
            "parallel_tool_calls": True,
            "logprobs": None,
        }
        status, answer, _ = await s.post(CHAT, asked)
        assert status == 200, answer
        found = request(s)
        sampling, output = found.terms.sampling, found.terms.output
        assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 7, 0.1)
        assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (0.5, -0.5, 1.1)
        assert (sampling.seed, sampling.min_new_tokens, sampling.max_new_tokens) == (11, 2, 5)
        assert sampling.ignore_eos
        assert (sampling.stop_ids, sampling.bias_ids) == (b"\x09\0\0\0", b"\x05\0\0\0")
        assert sampling.allowed_ids == b"\5\0\0\0\6\0\0\0"
        assert output.stop == ("a", "b")
        assert (output.keep_stop, output.skip_special_tokens, output.spaces_between_special_tokens) == (
            True,
            False,
            False,
        )
        assert found.terms.priority == 3
        assert len(found.terms.cache_salt) == 16
        assert found.chat is not None
        assert json.loads(found.chat.kwargs) == {"reasoning_effort": "low", "enable_thinking": False, "x": [1]}
        assert not found.chat.add_generation_prompt

    run(body)


def test_lightllms_clients_switch_sampling_off():
    async def body(s: Site):
        for do_sample, temperature in ((False, 0.0), (True, 0.7), (None, 0.7)):
            asked = {"messages": HELLO, "max_tokens": 1, "temperature": 0.7, "do_sample": do_sample}
            assert (await s.post(CHAT, asked))[0] == 200
            assert request(s).terms.sampling.temperature == temperature

    run(body)


def test_without_parameters_the_answer_is_sampled_up_to_the_context():
    async def body(s: Site):
        s.engine.stop_after = 2
        assert (await s.post(CHAT, {"messages": HELLO}))[0] == 200
        sampling = request(s).terms.sampling
        assert (sampling.temperature, sampling.top_p, sampling.max_new_tokens) == (1.0, 1.0, 2048)

    run(body)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temprature", 1),
        ("audio", {"voice": "x"}),
        ("modalities", ["audio"]),
        ("functions", []),
        ("function_call", "auto"),
        ("web_search_options", {}),
        ("prediction", {"type": "content", "content": "x"}),
        ("store", True),
        ("verbosity", "low"),
        ("service_tier", "priority"),
        ("n", 65),
        ("n", 0),
        ("temperature", -1),
        ("top_logprobs", 2),
        ("stop", ["x"] * 17),
        ("max_completion_tokens", 0),
        ("max_tokens", 0),
        ("messages", []),
        ("messages", None),
        ("messages", [{"role": "robot", "content": "x"}]),
        ("messages", [{"role": "user"}]),
        ("messages", [{"role": "user", "content": 5}]),
        ("messages", [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]),
        ("messages", [{"role": "user", "content": "x", "voice": 1}]),
        ("messages", [{"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}]),
        ("messages", [{"role": "tool", "tool_call_id": "x"}]),
        ("messages", [*HELLO] * 10_001),
        ("tools", [{"type": "custom", "custom": {"name": "x"}}]),
        ("tools", [{"type": "function", "function": {"name": "not a name"}}]),
        ("tools", [WEATHER] * 129),
        ("tool_choice", "required"),
        ("tool_choice", {"type": "function", "function": {"name": "other"}}),
        ("chat_template", "{{ messages }}"),
        ("stream_options", {"include_usage": True}),
        ("add_special_tokens", True),
        ("stream_options", {"include_obfuscation": True}),
        ("logit_bias", {"x": 1}),
        ("cache_salt", ""),
        ("seed", 2**64),
    ],
)
def test_what_is_not_honoured_is_refused_by_its_name(field: str, value: Any):
    async def body(s: Site):
        status, answer, _ = await s.post(CHAT, {"messages": HELLO} | {field: value})
        assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
        assert answer["error"]["param"] == field, answer
        assert s.frontend.live == 0

    run(body)


@pytest.mark.parametrize(("path", "asked"), [(CHAT, {"messages": HELLO}), ("/v1/completions", {"prompt": "a"})])
def test_a_stream_cannot_show_logprobs_of_the_prompt(path: str, asked: dict[str, Any]):
    async def body(s: Site):
        status, answer, _ = await s.post(path, asked | {"stream": True, "prompt_logprobs": 1})
        assert (status, answer["error"]["param"]) == (400, "prompt_logprobs")

    run(body)


def test_fields_that_are_null_are_absent():
    async def body(s: Site):
        names = ["audio", "functions", "tools", "tool_choice", "stop", "n", "response_format", "chat_template", "model"]
        assert (await s.post(CHAT, {"messages": HELLO, "max_tokens": 1} | dict.fromkeys(names)))[0] == 200

    run(body)


def test_logprobs_of_a_stream_are_those_of_the_whole():
    async def body(s: Site):
        asked = {"messages": HELLO, "max_tokens": 2, "logprobs": True, "top_logprobs": 2, "return_token_ids": True}
        _, answer, _ = await s.post(CHAT, asked)
        choice = answer["choices"][0]
        text = word(0)[1]
        one = {"token": "one", "logprob": -0.25, "bytes": [111, 110, 101]}
        own = {"token": text, "logprob": -0.5, "bytes": list(text.encode())}
        assert choice["logprobs"]["content"][0] == own | {"top_logprobs": [one, own]}
        assert choice["token_ids"] == [word(0)[0], word(1)[0]]
        found = await stream(s, asked)
        parts = [choice for chunk in found[1:] for choice in chunk["choices"]]
        assert [entry for part in parts for entry in part["logprobs"]["content"]] == choice["logprobs"]["content"]
        assert [token for part in parts for token in part["token_ids"]] == choice["token_ids"]

    run(body)


def test_prompt_logprobs():
    async def body(s: Site):
        _, answer, _ = await s.post(CHAT, {"messages": HELLO, "max_tokens": 1, "prompt_logprobs": 1})
        assert answer["prompt_token_ids"] == [4, 5, 6]
        assert len(answer["prompt_logprobs"]) == 3

    run(body)


def test_models():
    async def body(s: Site):
        _, text, _ = await s.get("/v1/models")
        found = json.loads(text)
        assert found["object"] == "list"
        assert [model["id"] for model in found["data"]] == ["fake"]
        assert found["data"][0]["max_model_len"] == 2048
        assert json.loads((await s.get("/v1/models/fake"))[1]) == found["data"][0]
        status, text, _ = await s.get("/v1/models/other/name")
        assert (status, json.loads(text)["error"]["code"]) == (404, "not_found")

    run(body)


def test_a_failure_ends_the_stream_with_its_event():
    async def body(s: Site):
        s.engine.pace = 0.05
        async with s.session.post(CHAT, json={"messages": HELLO, "stream": True}) as response:
            await response.content.readuntil(b"\n\n")
            s.fail(InvalidLogits("not finite"))
            rest = await response.read()
        assert json.loads(rest.split(b"data: ")[-1])["error"]["code"] == "invalid_logits"

    run(body)


def test_the_operator_may_allow_templates():
    async def body(s: Site):
        template = "{% for m in messages %}{{ m.content }}{% endfor %}"
        status, _, _ = await s.post(CHAT, {"messages": HELLO, "max_tokens": 1, "chat_template": template})
        assert status == 200
        chat = request(s).chat
        assert chat is not None
        assert chat.template == template
        long = {"messages": HELLO, "chat_template": "x" * 65537}
        assert (await s.post(CHAT, long))[0] == 400

    run(body, allow_chat_template=True)
