"""GET /live/events: the engine's state, once a second."""

from __future__ import annotations

from aiohttp import web

from lightllm_mp.actors.http.live.feed import LiveFeed

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class LiveRoutes:
    def __init__(self, feed: LiveFeed) -> None:
        self._feed = feed

    async def events(self, request: web.Request) -> web.StreamResponse:
        """What every actor, queue and request does, KV memory and the image cache: an event a second."""
        with self._feed.watching() as events:
            response = web.StreamResponse(headers=HEADERS)
            response.content_type = "text/event-stream"
            await response.prepare(request)
            try:
                async for event in events:
                    await response.write(b"data:" + event + b"\n\n")
                await response.write_eof()
            except ConnectionError:
                pass  # the viewer has left
        return response
