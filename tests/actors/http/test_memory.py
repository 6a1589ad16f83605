"""Memory that runs out while a request is served: no client gets a wrong answer, and the actor hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from lightllm_mp.actors.http import responses
from lightllm_mp.actors.http.sockets.connection import Connection
from tests.actors.http.harness import Site, site


def exhausted(*arguments: Any, **options: Any) -> Any:
    raise MemoryError


def exhausted_in_the_body(*arguments: Any) -> Any:
    """As aiohttp says it when its parser has no memory for a piece of a body."""
    raise web.RequestPayloadError from MemoryError()


def after(count: int, usual: Callable[..., Any]) -> Callable[..., Any]:
    """The usual function until it has been called so many times."""
    left = iter(range(count))

    def called(*arguments: Any) -> Any:
        return usual(*arguments) if next(left, None) is not None else exhausted()

    return called


@pytest.mark.parametrize(
    ("path", "owner", "name", "replacement"),
    [
        ("/generate", responses, "whole", exhausted),
        ("/generate_stream", responses, "event", exhausted),
        ("/generate_stream", responses, "event", after(3, responses.event)),
        ("/generate", Connection, "data_received", exhausted),
        ("/generate", Connection, "headers_complete", exhausted),
        ("/generate", aiohttp.StreamReader, "readany", exhausted),
        ("/generate", aiohttp.StreamReader, "readany", exhausted_in_the_body),
    ],
)
def test_no_memory(monkeypatch: pytest.MonkeyPatch, path: str, owner: Any, name: str, replacement: Any) -> None:
    told: list[Any] = []

    async def body(s: Site) -> None:
        request = {"inputs": "a", "parameters": {"max_new_tokens": 9}}
        got: list[bytes] = []

        async def receive() -> None:
            async with s.session.post(path, json=request) as response:
                async for line in response.content:
                    got.append(line)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, replacement)
            with pytest.raises(aiohttp.ClientError):
                await receive()
        assert not any(b"error" in line or b'"finished":true' in line for line in got)
        await s.settled(lambda: bool(told))
        assert isinstance(told[0], MemoryError)
        await s.settled(lambda: s.frontend.live == 0)
        assert (await s.post("/generate", request))[0] == 200

    async def main() -> None:
        """The actor's handler is there before the port is, which has one of its own."""
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context.get("exception")))
        async with asyncio.timeout(15), site() as s:
            await body(s)

    asyncio.run(main())
