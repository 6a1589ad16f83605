"""A server that answers /generate and /generate_stream in LightLLM's form, in a thread, without a model. It fetches
images that come as URLs."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
from aiohttp import web


class FakeServer:
    """`requests`: bodies in the order of arrival. `most`: requests that were in flight at once."""

    def __init__(self, delay: float = 0.002, fail: str | None = None) -> None:
        self.delay, self.fail = delay, fail
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.fetched: list[bytes] = []
        self.metrics: list[str] = []
        """What /metrics say, one after the other; 404 when there is nothing left."""
        self.most = self._now = 0
        self.url = ""

    async def stream(self, request: web.Request) -> web.StreamResponse:
        body = await self._enter(request)
        try:
            if self.fail == "overloaded":
                return web.json_response({"error": {"code": "overloaded", "message": "full"}}, status=429)
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await self._events(response, body)
            return response
        finally:
            self._now -= 1

    async def _events(self, response: web.StreamResponse, body: dict[str, Any]) -> None:
        total = body["parameters"]["max_new_tokens"]
        for count in range(1, total + 1):
            await asyncio.sleep(self.delay)
            if self.fail == "cut" and count == 2:
                return
            if self.fail == "error" and count == 2:
                await response.write(b'data: {"error":{"message":"broken","code":"internal_error"}}\n\n')
                return
            token = {"id": 5, "text": "x", "count_output_tokens": count, "prompt_tokens": len(body["inputs"])}
            event = {"token": token, "finished": count == total, "finish_reason": "length" if count == total else None}
            await response.write(b"data:" + json.dumps(event).encode() + b"\n\n")

    async def whole(self, request: web.Request) -> web.Response:
        body = await self._enter(request)
        await asyncio.sleep(self.delay)
        self._now -= 1
        total = body["parameters"]["max_new_tokens"]
        answer = {"generated_text": ["x"], "count_output_tokens": total, "finish_reason": "length", "prompt_tokens": 3}
        return web.json_response(answer)

    async def _enter(self, request: web.Request) -> dict[str, Any]:
        self._now += 1
        self.most = max(self.most, self._now)
        body: dict[str, Any] = await request.json()
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        for image in body.get("multimodal_params", {}).get("images", []):
            if image["type"] == "url":
                async with aiohttp.ClientSession() as session, session.get(image["data"]) as response:
                    self.fetched.append(await response.read())
        return body

    async def numbers(self, request: web.Request) -> web.Response:
        return web.Response(text=self.metrics.pop(0)) if self.metrics else web.Response(status=404)

    @contextmanager
    def running(self) -> Iterator[FakeServer]:
        """Listen on a free port of the loopback address until the block ends."""
        loop, ready, done = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

        async def serve() -> None:
            app = web.Application()
            app.add_routes([web.post("/generate_stream", self.stream), web.post("/generate", self.whole)])
            app.add_routes([web.get("/metrics", self.numbers)])
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            ready.set()
            await done.wait()
            await runner.cleanup()

        thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
        thread.start()
        try:
            assert ready.wait(10)
            yield self
        finally:
            loop.call_soon_threadsafe(done.set)
            thread.join(10)
            loop.close()
