"""The calls of `Engine` and `AsyncEngine`, as they run on the engine's own event loop."""

from __future__ import annotations

import asyncio
import secrets
from array import array
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, TypeVar

from lightllm_mp.actors.front import validation
from lightllm_mp.actors.front.embeddings import shortened, shown_score
from lightllm_mp.actors.front.image_files import Upload
from lightllm_mp.actors.front.live_request import Answer, Event, LiveRequest
from lightllm_mp.actors.front.request_table import Prompt
from lightllm_mp.errors import InvalidRequest
from lightllm_mp.messages import Terms, TextPair
from lightllm_mp.offline.answers import ChatChunk, ChatCompletion, ChatReader, Completion, chat_completion, completion
from lightllm_mp.offline.engine_thread import EngineThread
from lightllm_mp.offline.parameters import (
    Chat,
    ChatCall,
    Prompts,
    as_prompt,
    as_prompts,
    completion_terms,
)
from lightllm_mp.sampling_parameters import POOLED
from lightllm_mp.vision.video.video_files import is_video

P = TypeVar("P")


class EngineCalls:
    def __init__(self, thread: EngineThread) -> None:
        self._thread = thread

    async def generate(
        self, prompts: Prompts, images: Sequence[Sequence[bytes]], parameters: dict[str, Any]
    ) -> list[Completion]:
        many, how = as_prompts(prompts), completion_terms(parameters)
        if images and len(images) != len(many):
            raise InvalidRequest(f"images has entries for {len(images)} prompts, but there are {len(many)} prompts")
        uploads = [self._uploads(files) for files in images] or [()] * len(many)
        asked = list(zip(many, uploads, strict=True))
        answers = await self._all(asked, lambda one: self._submit(one[0], how, one[1]))
        return [completion(answer) for answer in answers]

    async def stream(self, prompt: str | Sequence[int], parameters: dict[str, Any]) -> AsyncGenerator[Event, None]:
        live = self._submit(as_prompt(prompt), completion_terms(parameters), stream=True)
        try:
            async for event in live:
                yield event
        finally:
            live.close()

    async def chat(self, messages: Chat, parameters: dict[str, Any]) -> ChatCompletion:
        call = ChatCall(messages, parameters, self._thread.facts)
        (answer,) = await self._all([call], self._submit_chat)
        return chat_completion(answer, call.form)

    async def stream_chat(self, messages: Chat, parameters: dict[str, Any]) -> AsyncGenerator[ChatChunk, None]:
        call = ChatCall(messages, parameters, self._thread.facts)
        live = self._submit_chat(call, stream=True)
        try:
            reader = ChatReader(call.form, live.answers[0])
            async for event in live:
                chunk = reader.read(event)
                if chunk.content or chunk.reasoning or chunk.tool_calls or chunk.finish_reason is not None:
                    yield chunk
        finally:
            live.close()

    async def embed(self, prompts: Prompts, dimensions: int | None) -> list[array[float]]:
        length = validation.embedding_length(self._thread.facts.engine, dimensions)
        how = Terms(POOLED, task="embed")
        answers = await self._all(as_prompts(prompts), lambda one: self._submit(one, how))
        return [shortened(answer.pooled, length) for answer in answers]

    async def score(self, prompts: Sequence[Prompt]) -> list[float]:
        pooled = self._thread.facts.engine.pooled
        raw = pooled is None or not pooled.probability
        return [shown_score(number, raw=raw) for number in await self._numbers(prompts)]

    async def rerank(self, query: str, documents: Sequence[str]) -> list[float]:
        pooled = self._thread.facts.engine.pooled
        numbers = await self._numbers([TextPair(query, document) for document in documents])
        return [shown_score(number, raw=pooled is not None and pooled.raw) for number in numbers]

    async def _numbers(self, prompts: Sequence[Prompt]) -> list[float]:
        how = Terms(POOLED, task="score")
        return [answer.score for answer in await self._all(prompts, lambda one: self._submit(one, how))]

    def _submit_chat(self, call: ChatCall, *, stream: bool = False) -> LiveRequest:
        label = secrets.token_hex(8)  # ids of tool calls are derived from it
        return self._submit(call.prompt, call.terms, self._uploads(call.images), stream=stream, label=label)

    def _submit(
        self, prompt: Prompt, terms: Terms, images: Sequence[Upload] = (), *, stream: bool = False, label: str = ""
    ) -> LiveRequest:
        return self._thread.frontend.submit(prompt, terms, images=images, stream=stream, label=label)

    def _uploads(self, files: Sequence[bytes]) -> tuple[Upload, ...]:
        lane = self._thread.frontend.images
        files = [bytes(data) for data in files]
        return tuple(lane.judge.video(data) if is_video(data) else lane.judge.upload(data) for data in files)

    async def _all(self, prompts: Sequence[P], submit: Callable[[P], LiveRequest]) -> list[Answer]:
        """Submit at most max_live_requests at a time, so that a long list is never refused."""
        room = asyncio.Semaphore(self._thread.config.http.max_live_requests)

        async def one(prompt: P) -> list[Answer]:
            async with room:
                live = submit(prompt)
                try:
                    return await live.answer()
                finally:
                    live.close()

        tasks = [asyncio.ensure_future(one(prompt)) for prompt in prompts]
        try:
            found = await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            raise
        return [answer for answers in found for answer in answers]
