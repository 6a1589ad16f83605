"""`Engine`: runs the engine inside a program. A call blocks its thread; calls of several threads are batched."""

from __future__ import annotations

from array import array
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import Any, TypeVar

from lightllm_mp.actors.front.live_request import Event
from lightllm_mp.config import Config
from lightllm_mp.offline.answers import ChatChunk, ChatCompletion, Completion
from lightllm_mp.offline.engine_calls import EngineCalls
from lightllm_mp.offline.engine_thread import EngineThread
from lightllm_mp.offline.parameters import Chat, Prompts, as_prompts

T = TypeVar("T")


class Engine:
    """An engine with its own processes. Close it, or use it as a context manager. StartupError if it cannot start.
    Calls raise EngineError: InvalidRequest for what it cannot answer, EngineEnded when it is closed or has failed."""

    def __init__(self, config: Config | None = None, *, model_dir: str | None = None) -> None:
        self._thread = EngineThread(config, model_dir)
        self._calls = EngineCalls(self._thread)
        self.facts = self._thread.facts

    def generate(
        self, prompts: Prompts, *, images: Sequence[Sequence[bytes]] = (), **parameters: Any
    ) -> list[Completion]:
        """Answers to all prompts (texts or lists of token ids), in order. With n > 1 a prompt's n answers are adjacent.

        `images`: for each prompt its image files and videos, in the order of its tags (or of its ids -200).
        `parameters`: those of `/generate` (RequestParameters), and constraints as `response_format` (GuideFields).
        """
        return self._thread.wait(lambda: self._calls.generate(prompts, images, parameters))

    def stream(self, prompt: str | Sequence[int], **parameters: Any) -> Iterator[Event]:
        """Yields one event per token as soon as it is produced. Closing the iterator early aborts the request."""
        return self._each(lambda: self._calls.stream(prompt, parameters))

    def chat(self, messages: Chat, **parameters: Any) -> ChatCompletion:
        """The answer to a conversation, through the model's chat template: content, reasoning and tool calls.

        `parameters`: those of `/generate`, and `tools`, `tool_choice`, `parallel_tool_calls`, `response_format`,
        `reasoning_effort`, `chat_template_kwargs` and others as OpenAI's API has them (ChatFields). Without
        `max_new_tokens` the answer may be as long as fits.
        """
        return self._thread.wait(lambda: self._calls.chat(messages, parameters))

    def stream_chat(self, messages: Chat, **parameters: Any) -> Iterator[ChatChunk]:
        """Like `chat`, piece by piece. Closing the iterator early aborts the request."""
        return self._each(lambda: self._calls.stream_chat(messages, parameters))

    def embed(self, prompts: Prompts, *, dimensions: int | None = None) -> list[array[float]]:
        """Embeddings of texts or lists of token ids, in order, as arrays of float32. `dimensions` cuts them, where the
        model was trained for it."""
        return self._thread.wait(lambda: self._calls.embed(prompts, dimensions))

    def score(self, prompts: Prompts) -> list[float]:
        """Scores of a reward model for texts or lists of token ids, in order; of Qwen3-Reranker the probability of
        yes."""
        return self._thread.wait(lambda: self._calls.score(as_prompts(prompts)))

    def rerank(self, query: str, documents: Sequence[str]) -> list[float]:
        """How well each document answers the query, in order, by a reranking model: /v1/rerank's relevance_score."""
        return self._thread.wait(lambda: self._calls.rerank(query, documents))

    def close(self) -> None:
        """Stop all processes. Idempotent."""
        self._thread.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _each(self, begin: Callable[[], AsyncGenerator[T, None]]) -> Iterator[T]:
        items = begin()
        try:
            while (item := self._thread.wait(lambda: anext(items, None))) is not None:
                yield item
        finally:
            if self._thread.alive:
                self._thread.wait(items.aclose)
