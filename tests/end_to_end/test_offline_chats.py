"""Chats, tools, constraints and images in the Python API, blocking and asyncio, on the default model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightllm_mp import AsyncEngine, ChatChunk, Config, Engine
from lightllm_mp.config import EngineConfig, ModelConfig, MultimodalConfig, SupervisorConfig
from lightllm_mp.errors import InvalidRequest
from lightllm_mp.offline import EngineEnded
from tests.paths import GOLDENS, ROOT

PARIS = [{"role": "user", "content": "What is the weather in Paris?"}]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": CITY}}
CALL: dict[str, Any] = {
    "tools": [WEATHER],
    "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
    "parallel_tool_calls": False,
}
ANSWER = {"type": "json_schema", "json_schema": {"name": "answer", "schema": CITY | {"additionalProperties": False}}}
SETTINGS = Config(engine=EngineConfig(max_total_token_num=6000, threads=1))


@pytest.fixture(scope="module")
def engine(default_model: Path) -> Iterator[Engine]:
    with Engine(SETTINGS) as engine:
        yield engine


def test_a_tool_is_called_and_its_answer_used(engine: Engine) -> None:
    first = engine.chat(PARIS, **CALL)
    assert first.finish_reason == "tool_calls"
    assert [call.function.name for call in first.tool_calls] == ["get_weather"]
    assert json.loads(first.tool_calls[0].function.arguments)["city"] == "Paris"
    assert first.content == ""
    result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "sunny, 21 degrees"}
    second = engine.chat([*PARIS, first.message, result], tools=[WEATHER], max_new_tokens=40)
    assert "sunny" in second.content
    assert second.cached_tokens > first.prompt_tokens  # the template renders the turn as the model wrote it
    again = engine.chat(PARIS, **CALL)
    assert again.tool_calls[0].function == first.tool_calls[0].function
    assert again.tool_calls[0].id != first.tool_calls[0].id


def summed(chunks: list[ChatChunk]) -> dict[str, Any]:
    pieces = [piece for chunk in chunks for piece in chunk.tool_calls]
    return {
        "content": "".join(chunk.content for chunk in chunks),
        "names": [piece.function.name for piece in pieces if piece.id],
        "arguments": "".join(piece.function.arguments for piece in pieces),
        "finish": chunks[-1].finish_reason,
        "tokens": chunks[-1].completion_tokens,
    }


@pytest.mark.parametrize("parameters", [CALL, {"max_new_tokens": 20}], ids=["call", "text"])
def test_a_streamed_chat_is_the_whole_one(engine: Engine, parameters: dict[str, Any]) -> None:
    whole = engine.chat(PARIS, **parameters)
    assert summed(list(engine.stream_chat(PARIS, **parameters))) == {
        "content": whole.content,
        "names": [call.function.name for call in whole.tool_calls],
        "arguments": "".join(call.function.arguments for call in whole.tool_calls),
        "finish": whole.finish_reason,
        "tokens": len(whole.token_ids),
    }


def test_an_answer_is_json_of_the_schema(engine: Engine) -> None:
    assert [*json.loads(engine.chat(PARIS, response_format=ANSWER, max_new_tokens=200).content)] == ["city"]
    (plain,) = engine.generate("The capital of France as JSON:", response_format=ANSWER, max_new_tokens=200)
    assert [*json.loads(plain.text)] == ["city"]


def test_what_the_model_cannot_do(engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match="text only"):
        engine.chat([{"role": "user", "content": [{"type": "image", "image": b"x"}]}])
    with pytest.raises(InvalidRequest, match="embedding"):
        engine.embed("a")
    with pytest.raises(InvalidRequest, match="reranking"):
        engine.rerank("a", ["b"])


def test_images_of_a_chat(default_model: Path) -> None:
    settings = Config(engine=SETTINGS.engine, multimodal=MultimodalConfig(enable_multimodal=True))
    image = (ROOT / "examples" / "star.png").read_bytes()
    parts = [{"type": "image", "image": image}, {"type": "text", "text": "What is in the picture?"}]
    with Engine(settings) as engine:
        assert "blue star" in engine.chat([{"role": "user", "content": parts}], max_new_tokens=24).content


def test_an_asyncio_program(default_model: Path) -> None:
    async def program() -> None:
        engine = AsyncEngine(SETTINGS)
        with pytest.raises(EngineEnded, match="not started"):
            await engine.chat(PARIS)
        async with engine:
            assert engine.facts.chat.template
            calls = [engine.chat(PARIS, **CALL) for _ in range(4)]
            chats = await asyncio.gather(*calls, engine.generate("What is AI?", max_new_tokens=5))
            assert len({chat.tool_calls[0].function for chat in chats[:4]}) == 1  # type: ignore[union-attr]
            assert summed([chunk async for chunk in engine.stream_chat(PARIS, **CALL)])["names"] == ["get_weather"]
            assert [event.count async for event in engine.stream("a", max_new_tokens=3, ignore_eos=True)] == [1, 2, 3]
            with pytest.raises(InvalidRequest, match="one answer"):
                await engine.chat(PARIS, n=2)
            await left(engine)
        with pytest.raises(EngineEnded, match="closed"):
            await engine.generate("a")
        await engine.close()

    asyncio.run(asyncio.wait_for(program(), 200))


async def left(engine: AsyncEngine) -> None:
    """A cancelled call and closed or cancelled streams free their requests."""
    frontend = engine._thread.frontend
    task = asyncio.create_task(engine.generate("a", max_new_tokens=5000, ignore_eos=True))
    stream = engine.stream("b", max_new_tokens=5000, ignore_eos=True)
    await anext(stream)

    async def read() -> None:
        async for _ in engine.stream("c", max_new_tokens=5000, ignore_eos=True):
            pass

    reading = asyncio.create_task(read())
    while frontend.live < 3:
        await asyncio.sleep(0.01)
    task.cancel()
    reading.cancel()
    await stream.aclose()
    assert [type(done) for done in await asyncio.gather(task, reading, return_exceptions=True)] == [
        asyncio.CancelledError
    ] * 2
    while frontend.live:
        await asyncio.sleep(0.01)


def test_an_engine_that_gives_up_ends_asyncio_calls_that_wait() -> None:
    settings = Config(
        model=ModelConfig(model_dir=str(GOLDENS / "llama")),
        engine=EngineConfig(max_total_token_num=2000),
        supervisor=SupervisorConfig(max_restarts=0, log_level="error"),
    )

    async def program() -> None:
        async with AsyncEngine(settings) as engine:
            events = engine.stream([1, 2, 3], max_new_tokens=1900, ignore_eos=True)
            await anext(events)
            engine._thread.supervisor.kill("router")
            with pytest.raises(EngineEnded, match="restart budget"):
                async for _ in events:
                    pass

    asyncio.run(asyncio.wait_for(program(), 100))
