"""`AsyncEngine`: runs the engine inside an asyncio program."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncGenerator, Sequence
from typing import Any, TypeVar

from lightllm_mp.actors.front.live_request import Event
from lightllm_mp.config import Config
from lightllm_mp.facts import Facts
from lightllm_mp.offline.answers import ChatChunk, ChatCompletion, Completion
from lightllm_mp.offline.engine_calls import EngineCalls
from lightllm_mp.offline.engine_thread import EngineEnded, EngineThread
from lightllm_mp.offline.parameters import Chat, Prompts, as_prompts

T = TypeVar("T")


class AsyncEngine:
    """`Engine` with methods to be awaited; a task that is cancelled aborts its request.

        async with AsyncEngine() as engine:
            answer = await engine.chat([{"role": "user", "content": "Hello"}])

    The engine's own loop runs in a thread, so a busy program does not slow it down. `start` may take minutes.
    """

    def __init__(self, config: Config | None = None, *, model_dir: str | None = None) -> None:
        self._how = config, model_dir
        self._started: EngineThread | None = None

    async def start(self) -> AsyncEngine:
        """Raises StartupError. Idempotent."""
        if self._started is None:
            self._started = await asyncio.to_thread(EngineThread, *self._how)
        return self

    async def close(self) -> None:
        """Stop all processes. Idempotent."""
        if self._started is not None:
            await asyncio.to_thread(self._started.close)

    async def __aenter__(self) -> AsyncEngine:
        return await self.start()

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    @property
    def facts(self) -> Facts:
        return self._thread.facts

    async def generate(
        self, prompts: Prompts, *, images: Sequence[Sequence[bytes]] = (), **parameters: Any
    ) -> list[Completion]:
        """See Engine.generate."""
        return await self._thread.ask(lambda: self._calls.generate(prompts, images, parameters))

    def stream(self, prompt: str | Sequence[int], **parameters: Any) -> AsyncGenerator[Event, None]:
        """See Engine.stream."""
        return self._each(self._calls.stream(prompt, parameters))

    async def chat(self, messages: Chat, **parameters: Any) -> ChatCompletion:
        """See Engine.chat."""
        return await self._thread.ask(lambda: self._calls.chat(messages, parameters))

    def stream_chat(self, messages: Chat, **parameters: Any) -> AsyncGenerator[ChatChunk, None]:
        """See Engine.stream_chat."""
        return self._each(self._calls.stream_chat(messages, parameters))

    async def embed(self, prompts: Prompts, *, dimensions: int | None = None) -> list[array[float]]:
        """See Engine.embed."""
        return await self._thread.ask(lambda: self._calls.embed(prompts, dimensions))

    async def score(self, prompts: Prompts) -> list[float]:
        """See Engine.score."""
        return await self._thread.ask(lambda: self._calls.score(as_prompts(prompts)))

    async def rerank(self, query: str, documents: Sequence[str]) -> list[float]:
        """See Engine.rerank."""
        return await self._thread.ask(lambda: self._calls.rerank(query, documents))

    @property
    def _thread(self) -> EngineThread:
        if self._started is None:
            raise EngineEnded("the engine is not started: use `async with`, or await start()")
        return self._started

    @property
    def _calls(self) -> EngineCalls:
        return EngineCalls(self._thread)

    async def _each(self, items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        try:
            while (item := await self._thread.ask(lambda: anext(items, None))) is not None:
                yield item
        finally:
            if self._thread.alive:
                await self._thread.ask(items.aclose)
