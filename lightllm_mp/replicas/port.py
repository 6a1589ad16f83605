"""The HTTP port of a fleet: the engine's own server, with a handler that sends requests to replicas."""

from __future__ import annotations

from contextlib import aclosing

from aiohttp import web

from lightllm_mp.actors.http.access_log import HEADER, observe, sign
from lightllm_mp.actors.http.body import BodyReader
from lightllm_mp.actors.http.context import LABEL, TENANT, payer
from lightllm_mp.actors.http.error_responses import failures
from lightllm_mp.actors.http.metrics import HttpMetrics
from lightllm_mp.actors.http.security.cors import preflights
from lightllm_mp.actors.http.security.keys import ApiKeys
from lightllm_mp.actors.http.security.local_hosts import local_only
from lightllm_mp.actors.http.security.origins import Origins
from lightllm_mp.actors.http.sockets.address_limit import CONNECTIONS, connection_counts
from lightllm_mp.config import HttpConfig
from lightllm_mp.replicas.frames import Head
from lightllm_mp.replicas.front_door import FrontDoor

HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "x-request-id"})
"""Headers (lower case) of one connection or one server, which the front writes itself."""
QUIET = ("/health", "/healthz", "/liveness", "/readiness", "/metrics", "/live", "/live/events", "/favicon.ico")


def create_fleet_app(door: FrontDoor, config: HttpConfig, keys: ApiKeys) -> web.Application:
    """Raises ConfigError for an invalid origin."""
    relay, origins = FleetRoute(door, config), Origins(config.cors_allow_origin)
    middlewares = [observe(HttpMetrics(), {relay.quiet}, write_log=not config.disable_access_log), failures]
    if local := local_only(config, len(keys), origins):
        middlewares.append(local)
    middlewares += [preflights(origins)] if origins else []
    app = web.Application(middlewares=middlewares)
    app[CONNECTIONS] = connection_counts(config)
    app.on_response_prepare.append(sign)

    async def part(request: web.Request, response: web.StreamResponse) -> None:
        if door.leaving:
            response.headers["Connection"] = "close"
            response.force_close()

    app.on_response_prepare.append(part)
    if origins:
        app.on_response_prepare.append(origins.sign)
    for path in QUIET:
        app.router.add_route("*", path, relay.quiet)
    app.router.add_route("*", "/{path:.*}", relay.handle)
    return app


class _EventStream(web.StreamResponse):
    _send_headers_immediately = False  # they leave with the first event


class FleetRoute:
    """The handler of all paths. Replicas decide which paths exist."""

    def __init__(self, door: FrontDoor, config: HttpConfig) -> None:
        self._door = door
        self._bodies = BodyReader(most=config.max_body_bytes, seconds=config.header_timeout)

    async def quiet(self, request: web.Request) -> web.StreamResponse:
        """As `handle`, without an entry in the access log."""
        return await self.handle(request)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        door, method = self._door, request.method
        tenant, access = door.admitted(method, request.headers)
        request[TENANT] = tenant
        if (own := await door.own(method, request.path, access, tenant)) is not None:
            return web.Response(status=own[0].status, headers=own[0].headers, body=own[1])
        async with door.passing():
            async with self._bodies.receive(request, payer(request)) as data:
                body = data
            headers = dict(request.headers)
            if LABEL in request:
                headers[HEADER] = request[LABEL]
            target = request.rel_url.raw_path_qs
            asked = "GET" if method == "HEAD" else method
            async with aclosing(door.front.answer(asked, target, headers, body, tenant, access)) as pieces:
                head = await anext(pieces)
                assert isinstance(head, Head)
                shown = {name: value for name, value in head.headers.items() if name.lower() not in HOP}
                if not head.streamed or method == "HEAD":
                    whole = b"".join([piece async for piece in pieces if isinstance(piece, bytes)])
                    return web.Response(status=head.status, headers=shown, body=whole)
                response = _EventStream(status=head.status, headers=shown)
                await response.prepare(request)
                async for piece in pieces:
                    assert isinstance(piece, bytes)
                    await response.write(piece)
                await response.write_eof()
                return response
