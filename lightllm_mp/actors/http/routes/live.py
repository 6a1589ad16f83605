"""GET /live/events: the engine's state, once a second."""

from __future__ import annotations

from aiohttp import web

from lightllm_mp.actors.http import answer_stream
from lightllm_mp.actors.http.live.feed import LiveFeed

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class LiveRoutes:
    def __init__(self, feed: LiveFeed) -> None:
        self._feed = feed

    async def events(self, request: web.Request) -> web.StreamResponse:
        """What every actor, queue and request does, KV memory and the image cache: an event a second."""
        with self._feed.watching() as events:
            answer = await answer_stream.begin(request, "text/event-stream", HEADERS)
            try:
                async for event in events:
                    await answer.write(b"data:" + event + b"\n\n")
                    await answer.shown(0)
                await answer.end()
            except ConnectionError:
                pass  # the viewer has left
        return answer.response
