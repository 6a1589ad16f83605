"""GET and DELETE /requests/{id}: an answer for a client whose connection broke; a request that it wants no more."""

from __future__ import annotations

import re

from aiohttp import web

from lightllm_mp.actors.http.context import Context, relay_of, tenant
from lightllm_mp.actors.http.delivery import deliver
from lightllm_mp.errors import InvalidRequest

HEADER = "Last-Event-ID"
_NUMBER = re.compile(r"[0-9]{1,9}", re.ASCII)


class ResumeRoutes:
    """The handlers for requests that exist. A request is known by its X-Request-Id, and only with the key that sent
    it."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def fetch(self, request: web.Request) -> web.StreamResponse:
        """GET /requests/{id}: a stream goes on after the event of Last-Event-ID; a whole answer comes when it is
        complete."""
        return await resumed(self._context, request, request.match_info["id"])

    async def discard(self, request: web.Request) -> web.Response:
        """DELETE /requests/{id}: abort it and keep nothing of it."""
        self._context.frontend.discard(tenant(request), request.match_info["id"])
        return web.Response(status=204)


def asks_to_resume(request: web.Request) -> bool:
    """A browser's or library's event source sends its request again, with this header."""
    return HEADER in request.headers


def understands_events(request: web.Request) -> bool:
    """It says that it reads server-sent events, with their ids. LightLLM's clients do not: to them an event is a line
    of data and a blank one."""
    return "text/event-stream" in request.headers.get("Accept", "")


def last_event(request: web.Request) -> int:
    """The number of the last event that the client has; 0: none. Raises InvalidRequest."""
    given = request.headers.get(HEADER, "0").strip()
    if not _NUMBER.fullmatch(given):
        raise InvalidRequest("Last-Event-ID is the number of the last event that arrived", param=HEADER)
    return int(given)


async def resumed(context: Context, request: web.Request, label: str) -> web.StreamResponse:
    """Raises InvalidRequest for a bad Last-Event-ID, and whatever `RequestTable.resume` raises."""
    number = last_event(request)
    return await deliver(request, context.frontend.resume(tenant(request), label, number, relay_of(request)))
