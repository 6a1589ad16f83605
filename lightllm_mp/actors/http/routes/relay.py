"""/relay, for the front of several engines: a request that another engine began, and what another one needs for it."""

from __future__ import annotations

from aiohttp import web

from lightllm_mp.actors.http.body import BodyReader
from lightllm_mp.actors.http.context import LABEL, Context, relay_of, tenant
from lightllm_mp.actors.http.deadline_header import deadline
from lightllm_mp.actors.http.delivery import deliver
from lightllm_mp.actors.http.relayed_answer import split_frames
from lightllm_mp.actors.http.responses import encode
from lightllm_mp.actors.http.route import Route
from lightllm_mp.actors.http.routes.resume import last_event
from lightllm_mp.errors import NotFound

RECORD_BYTES = 1 << 30
"""Longest record: a body, its images, and all events."""


class RelayRoutes:
    def __init__(self, context: Context) -> None:
        self._frontend = context.frontend
        self._bodies = BodyReader(most=RECORD_BYTES, seconds=context.config.header_timeout)

    async def adopt(self, request: web.Request) -> web.StreamResponse:
        """POST /relay: the body is the record of a request; the answer goes on after the event of Last-Event-ID."""
        taken, until = last_event(request), deadline(request)
        relay = relay_of(request)
        assert relay is not None, "the route is for fronts"
        async with self._bodies.receive(request) as data:
            frames = list(split_frames(data))
        live = self._frontend.adopt(frames, taken, tenant=tenant(request), deadline=until, relay=relay)
        return await deliver(request, live)

    async def keep(self, request: web.Request) -> web.Response:
        """PUT /relay: keep a complete request, of which the body is the record, for a client that comes back. 208 if it
        is here already."""
        async with self._bodies.receive(request) as data:
            frames = list(split_frames(data))
        return web.Response(status=200 if self._frontend.keep(frames, tenant=tenant(request)) else 208)

    async def stored(self, request: web.Request) -> web.Response:
        """GET /relay/stored: the tenants (in hexadecimal digits) and labels of all stored responses."""
        found = [(tenant.hex(), label) for tenant, label in self._frontend.retained.stored()]
        return web.Response(body=encode(found), content_type="application/json")

    async def record(self, request: web.Request) -> web.Response:
        """GET /relay: the record of the complete request that X-Request-Id names, and no answer."""
        live = self._frontend.look(tenant(request), request[LABEL])
        relay = relay_of(request)
        assert relay is not None, "the route is for fronts"
        if live.open:
            raise NotFound("this request is not complete")
        self._frontend.journal.relay_all(live, relay)
        return web.Response()


def relay_routes(relay: RelayRoutes) -> tuple[Route, ...]:
    return (
        Route(("POST",), ("/relay",), relay.adopt, "relay"),
        Route(("PUT",), ("/relay",), relay.keep, "relay"),
        Route(("GET",), ("/relay",), relay.record, "relay"),
        Route(("GET",), ("/relay/stored",), relay.stored, "relay"),
    )
