"""GET /openapi.json: the route table and the structs of the bodies as an OpenAPI document, of release 3.2, which is the
first that describes the events of streams."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version

import msgspec
from aiohttp import web

from lightllm_mp.actors.http.access_log import HEADER as REQUEST_ID
from lightllm_mp.actors.http.context import is_anthropic_path
from lightllm_mp.actors.http.deadline_header import HEADER as REQUEST_TIMEOUT
from lightllm_mp.actors.http.deadline_header import MOST
from lightllm_mp.actors.http.openapi.answers import AnthropicError
from lightllm_mp.actors.http.openapi.forms import FORMS, Forms
from lightllm_mp.actors.http.openapi.json_schema import Components, Json
from lightllm_mp.actors.http.responses import ErrorReply
from lightllm_mp.actors.http.route import Route
from lightllm_mp.actors.http.routes.resume import HEADER as LAST_EVENT

REF = "#/components/schemas/{name}"
STATUSES = {
    400: "The request is wrong",
    401: "A valid API key is needed",
    403: "The key, or the Host, does not permit it",
    404: "There is no such thing",
    408: "The request did not arrive in time",
    413: "The body is too large",
    415: "The body is compressed",
    429: "The server is full: Retry-After says when it will not be",
    500: "The model or the server failed",
    503: "The server is starting, repairing itself or shutting down, or the request waited too long: see Retry-After",
    504: "The client's deadline has passed",
}
EVERY = (400, 401, 403)
WORK = (408, 413, 415, 429, 500, 503, 504)
"""Further statuses of a request with a body."""
SECURITY: list[Json] = [{"bearer": []}, {"key": []}]
_PLACE = re.compile(r"{(\w+)(?::[^}]*)?}")


class OpenApiPage:
    """The route of the document. It is made once, from the table that `describe` gets."""

    def __init__(self) -> None:
        self._table: Sequence[Route] = ()
        self._document = b""

    def describe(self, table: Sequence[Route]) -> None:
        self._table = table

    async def handler(self, request: web.Request) -> web.Response:
        """This document."""
        if not self._document:
            self._document = msgspec.json.encode(document(self._table))
        return web.Response(body=self._document, content_type="application/json")


def document(table: Sequence[Route]) -> Json:
    """The OpenAPI document of the routes."""
    components = Components()
    paths: dict[str, Json] = {}
    for route in table:
        for pattern in route.paths:
            path = plain(pattern)
            paths[path] = paths.get(path, {}) | {
                method.lower(): _operation(route, path, method, components) for method in route.methods
            }
    return {
        "openapi": "3.2.0",
        "info": {"title": "lightllm-mp", "version": _version(), "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": components.schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
            },
        },
    }


def plain(pattern: str) -> str:
    """The path of a route, without the patterns of its parameters."""
    return _PLACE.sub(r"{\1}", pattern)


def _operation(route: Route, path: str, method: str, components: Components) -> Json:
    forms = _forms(path, method)
    found: Json = {
        "operationId": "_".join([method.lower(), *re.findall(r"\w+", path)]),
        "summary": " ".join((route.handler.__doc__ or "").split()),
        "security": [] if route.access == "public" else SECURITY,
        "responses": _responses(route, path, forms, components),
    }
    if parameters := list(_parameters(path, forms)):
        found["parameters"] = parameters
    if forms.body is not None:
        found["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": components.of(forms.body)}},
        }
    return found


def _forms(path: str, method: str) -> Forms:
    found = FORMS.get(path, Forms())
    return Forms(answer=found.deleted) if method == "DELETE" else found


def _parameters(path: str, forms: Forms) -> Iterator[Json]:
    for name in _PLACE.findall(path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    if forms.body is not None:
        yield {"name": REQUEST_ID, "in": "header", "schema": {"type": "string"}}
        seconds = {"type": "number", "exclusiveMinimum": 0, "maximum": MOST}
        yield {"name": REQUEST_TIMEOUT, "in": "header", "schema": seconds}
    if forms.resumes:
        yield {"name": LAST_EVENT, "in": "header", "schema": {"type": "integer", "minimum": 0, "maximum": 999_999_999}}


def _responses(route: Route, path: str, forms: Forms, components: Components) -> Json:
    found = {"200" if (content := _content(forms, components)) else "204": _response("The answer", content)}
    if route.access == "public":
        return found | {
            "503": _response("It is not well", content),
            "403": _response(STATUSES[403], _wrong(path, components)),
        }
    statuses = list(EVERY)
    if forms.body is not None or forms.events is not None:
        statuses += WORK
    if forms.resumes or _PLACE.search(path):
        statuses.append(404)
    return found | {str(status): _response(STATUSES[status], _wrong(path, components)) for status in statuses}


def _content(forms: Forms, components: Components) -> Json:
    found: Json = {}
    if forms.answer is not None:
        found["application/json"] = {"schema": components.of(forms.answer)}
    if forms.events is not None:
        found["text/event-stream"] = {"itemSchema": _event(components.of(forms.events))}
    if forms.text:
        found["text/plain"] = {"schema": {"type": "string"}}
    return found


def _event(data: Json) -> Json:
    """The schema of a server-sent event."""
    content = {"type": "string", "contentMediaType": "application/json", "contentSchema": data}
    return {"type": "object", "properties": {"data": content}, "required": ["data"]}


def _wrong(path: str, components: Components) -> Json:
    return {"application/json": {"schema": components.of(AnthropicError if is_anthropic_path(path) else ErrorReply)}}


def _response(description: str, content: Json) -> Json:
    return {"description": description} | ({"content": content} if content else {})


def _version() -> str:
    try:
        return version("lightllm-mp")
    except PackageNotFoundError:
        return "source tree"
