"""The calls of the Python API on an embedded engine whose model is a mock: sums, disconnects, deaths of processes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightllm_mp.errors import ConfigError, InvalidRequest
from lightllm_mp.facts import ChatFacts, EngineLimits, Facts
from lightllm_mp.messages import Guide
from lightllm_mp.offline.answers import ChatChunk
from lightllm_mp.offline.engine_calls import EngineCalls
from lightllm_mp.offline.parameters import ChatCall, completion_terms
from lightllm_mp.vision.video.video_files import pack_frames
from tests.actors.embedded import Embedded, config, embedded, in_time

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"
HELLO = [{"role": "user", "content": "hello"}]
PLAIN: dict[str, Any] = {"chat_template": TEMPLATE, "max_new_tokens": 40, "ignore_eos": True}
FACTS = Facts(engine=EngineLimits(max_context=1000), chat=ChatFacts(True, "hermes", "qwen3"))
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
G = {"type": "function", "function": {"name": "g"}}
SCHEMA = {"type": "object"}


def calls(engine: Embedded) -> EngineCalls:
    frontend = engine.front.frontend
    return EngineCalls(SimpleNamespace(facts=frontend.facts, frontend=frontend, config=config()))  # type: ignore[arg-type]


@in_time
async def test_a_streamed_chat_is_the_whole_one_also_through_deaths(tmp_path: Path) -> None:
    async with embedded(tmp_path) as engine:
        asked = calls(engine)
        whole = await asked.chat(HELLO, PLAIN)
        assert len(whole.token_ids) == 40
        assert whole.content == whole.text == (await asked.generate("hello", (), _plain()))[0].text
        for killed in ("", "router", "worker0", "detokenizer", "tokenizer"):
            chunks: list[ChatChunk] = []
            async for chunk in asked.stream_chat(HELLO, PLAIN):
                if killed and not chunks:
                    engine.kill(killed)
                chunks.append(chunk)
            assert "".join(chunk.content for chunk in chunks) == whole.content
            assert (chunks[-1].finish_reason, chunks[-1].completion_tokens) == ("length", 40)
            assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)


@in_time
async def test_a_stream_that_is_left_frees_its_request(tmp_path: Path) -> None:
    async with embedded(tmp_path) as engine:
        stream = calls(engine).stream_chat(HELLO, PLAIN | {"max_new_tokens": 3000})
        await anext(stream)
        assert engine.front.frontend.live == 1
        await stream.aclose()
        assert engine.front.frontend.live == 0
        await engine.until_idle()


def _plain() -> dict[str, Any]:
    return {name: value for name, value in PLAIN.items() if name != "chat_template"}


def test_what_a_chat_asks_for() -> None:
    call = ChatCall(HELLO, {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}, FACTS)
    assert call.terms.guide is not None
    assert call.terms.guide.kind == "lark"
    assert call.form.one_call
    assert call.terms.sampling.max_new_tokens == 1000  # as many as fit
    assert b'"name":"f"' in call.prompt.tools
    call = ChatCall(HELLO, {"reasoning_effort": "none", "chat_template_kwargs": {"x": 1}, "temperature": 0.5}, FACTS)
    assert call.prompt.kwargs == b'{"reasoning_effort":"none","enable_thinking":false,"x":1}'
    format = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    found = Guide("json_schema", '{"type":"object"}')
    assert completion_terms({"response_format": format}).guide == found
    assert completion_terms({"guided_json": SCHEMA}).guide == found
    assert completion_terms({"structured_outputs": {"choice": ["a"]}}).guide == Guide("choice", '["a"]')
    assert ChatCall(HELLO, {"response_format": format}, FACTS).terms.guide == Guide(
        "json_schema", '{"type":"object"}', "</think>"
    )


def test_images_are_taken_out_of_messages() -> None:
    parts = [
        {"type": "text", "text": "a"},
        {"type": "image", "image": b"one"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,dHdv"}},
    ]
    call = ChatCall([{"role": "user", "content": parts}], {}, FACTS)
    assert call.images == [b"one", b"two"]
    assert call.prompt.messages == (
        b'[{"role":"user","content":[{"type":"text","text":"a"},{"type":"image"},{"type":"image"}]}]'
    )
    assert parts[1]["image"] == b"one"  # the caller's list is as it was


def test_videos_are_taken_out_of_messages() -> None:
    parts = [
        {"type": "video", "video": b"file"},
        {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,dHdv"}},
        {"type": "video", "video": [b"one", b"two"], "fps": 4},
    ]
    call = ChatCall([{"role": "user", "content": parts}], {}, FACTS)
    assert call.images == [b"file", b"two", pack_frames([b"one", b"two"], 4.0)]
    assert call.prompt.messages == (b'[{"role":"user","content":[{"type":"video"},{"type":"video"},{"type":"video"}]}]')


@pytest.mark.parametrize(
    ("content", "parameters", "error", "match"),
    [
        ("a", {"temprature": 1}, ConfigError, "unknown parameters: temprature"),
        ("a", {"n": 2}, InvalidRequest, "one answer"),
        ("a", {"temperature": -1}, InvalidRequest, "temperature"),
        ("a", {"tools": [{"type": "function"}]}, InvalidRequest, "tools"),
        ("a", {"tool_choice": "required"}, InvalidRequest, "tool_choice needs tools"),
        (
            "a",
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            InvalidRequest,
            "g is",
        ),
        ("a", {"response_format": {"type": "json"}}, InvalidRequest, "response_format"),
        ("a", {"response_format": {"type": "json_object"}, "guided_json": SCHEMA}, InvalidRequest, "one constraint"),
        ("a", {"guided_json": object()}, InvalidRequest, "JSON"),
        ("\ud800", {}, InvalidRequest, "surrogate"),
        ("a", {"chat_template": "\ud800"}, InvalidRequest, "surrogate"),
        ([{"type": "image"}], {}, InvalidRequest, "BYTES"),
        ([{"type": "image_url", "image_url": {"url": "http://a/b.png"}}], {}, InvalidRequest, "fetches none"),
        ([{"type": "image_url", "image_url": "data:image/png;base64,???"}], {}, InvalidRequest, "base64"),
        ([{"type": "video"}], {}, InvalidRequest, "BYTES"),
        ([{"type": "video", "video": ["a"]}], {}, InvalidRequest, "list of BYTES"),
        ([{"type": "video", "video": [b"a"], "fps": "2"}], {}, InvalidRequest, "is a number"),
        ([{"type": "input_audio"}], {}, InvalidRequest, "text or an image"),
        (["a"], {}, InvalidRequest, "text or an image"),
    ],
)
def test_what_cannot_be_asked(content: Any, parameters: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        ChatCall([{"role": "user", "content": content}], parameters, FACTS)
