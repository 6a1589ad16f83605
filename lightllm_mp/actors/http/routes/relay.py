"""POST /relay: a request that another engine began, from the front of both."""

from __future__ import annotations

from aiohttp import web

from lightllm_mp.actors.http.body import BodyReader
from lightllm_mp.actors.http.context import Context, relay_of, tenant
from lightllm_mp.actors.http.deadline_header import deadline
from lightllm_mp.actors.http.delivery import deliver
from lightllm_mp.actors.http.relayed_answer import split_frames
from lightllm_mp.actors.http.routes.resume import last_event
from lightllm_mp.errors import Forbidden

RECORD_BYTES = 1 << 30
"""Longest record: a body, its images, and all events."""


class RelayRoutes:
    def __init__(self, context: Context) -> None:
        self._frontend = context.frontend
        self._bodies = BodyReader(most=RECORD_BYTES, seconds=context.config.header_timeout)

    async def adopt(self, request: web.Request) -> web.StreamResponse:
        """The body is the record of a request; the answer goes on after the event of Last-Event-ID."""
        if (relay := relay_of(request)) is None:
            raise Forbidden("this needs a relay key")
        taken, until = last_event(request), deadline(request)
        async with self._bodies.receive(request) as data:
            frames = list(split_frames(data))
        live = self._frontend.adopt(frames, taken, tenant=tenant(request), deadline=until, relay=relay)
        return await deliver(request, live)
