"""A server of this process whose engine says what a test writes down: the real port and routes, and no model."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Awaitable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from msgspec.structs import replace

from lightllm_mp import messages as say
from lightllm_mp.facts import ChatFacts, Facts
from tests.actors.http.harness import FACTS, PATIENCE, Engine, Site, site

T = TypeVar("T")
PIECE, MOST_PIECES = 5, 60
"""Characters of a token, unless there would be too many of them."""
FOREVER = "forever"
"""This question's answer does not end by itself."""
GREETING = "Hello, dear reader."


@dataclass
class ScriptedEngine(Engine):
    """Answers a chat by its last message, and GREETING to what no one has written an answer for."""

    facts: Facts = field(default_factory=lambda: replace(FACTS, chat=ChatFacts(True, "hermes", "qwen3")))
    pace: float = 0.002
    answers: Mapping[str, str] = field(default_factory=dict)
    """last message -> answer"""
    asked: list[list[dict[str, Any]]] = field(default_factory=list)
    """The messages of every chat, in order."""
    terms: list[say.Terms] = field(default_factory=list)
    _scripts: dict[int, list[str]] = field(default_factory=dict)
    """rid -> the texts of its tokens"""

    def to_tokenizer(self, message: say.Wire) -> bool:
        if isinstance(message, say.Generate) and message.chat is not None:
            chat = json.loads(message.chat.messages)
            self.asked.append(chat)
            self.terms.append(message.terms)
            last = _text(chat[-1])
            answer = "" if last == FOREVER else self.answers.get(last, GREETING)
            size = max(PIECE, len(answer) // MOST_PIECES)
            for rid in range(message.rid, message.rid + message.terms.n):
                self._scripts[rid] = [answer[at : at + size] for at in range(0, len(answer), size)]
        return super().to_tokenizer(message)

    def script_of(self, rid: int) -> list[str]:
        return self._scripts.get(rid, [])


def _text(message: dict[str, Any]) -> str:
    content = message["content"]
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content)
    return content or ""


class ScriptedServer:
    """The site on a loop of a thread of its own, since Playwright keeps the test's."""

    def __init__(self, engine: Engine, loop: asyncio.AbstractEventLoop, site: Site) -> None:
        self.engine, self._loop = engine, loop
        self.base_url = f"http://127.0.0.1:{site.address[1]}"

    def do(self, work: Awaitable[T]) -> T:
        """Await it where the engine runs."""

        async def awaited() -> T:
            return await work

        return asyncio.run_coroutine_threadsafe(awaited(), self._loop).result(PATIENCE)


@contextlib.contextmanager
def scripted(engine: Engine, **options: Any) -> Iterator[ScriptedServer]:
    """`options`: those of HttpConfig, and of the site."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    stack = contextlib.AsyncExitStack()

    def wait_for(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(PATIENCE)

    try:
        yield ScriptedServer(engine, loop, wait_for(stack.enter_async_context(site(engine=engine, **options))))
    finally:
        wait_for(stack.aclose())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE)
        loop.close()
