"""Turns errors into `{"error": {message, type, param, code}}` with the right status, without internal details.
Anthropic's routes have a form of their own."""

from __future__ import annotations

import logging
import math

from aiohttp import web
from aiohttp.typedefs import Handler

from lightllm_mp.actors.http import responses
from lightllm_mp.actors.http.body import RequestTimeout
from lightllm_mp.actors.http.context import FAILURE, LABEL, is_anthropic
from lightllm_mp.actors.http.dialects.anthropic import anthropic_answer
from lightllm_mp.errors import EngineError, Overloaded, PayloadTooLarge, Unauthorized, Unavailable

log = logging.getLogger(__name__)

RETRY_WHEN_UNAVAILABLE = 5
"""Seconds: about what a repair takes, or what a load balancer needs to notice that this server shuts down."""


class BadRoute(EngineError):
    """The path does not exist, or not with this method."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


def error_response(error: EngineError, request: web.Request | None = None) -> web.Response:
    """`request`: None if its head could not be read."""
    if request is not None and is_anthropic(request):
        body = anthropic_answer.failure(error, request[LABEL])
    else:
        body = responses.failure(error)
    response = web.Response(body=body, status=error.status, content_type="application/json")
    if isinstance(error, Overloaded):
        response.headers["Retry-After"] = str(math.ceil(error.retry_after))
    elif isinstance(error, Unavailable):
        response.headers["Retry-After"] = str(RETRY_WHEN_UNAVAILABLE)
    elif isinstance(error, Unauthorized):
        response.headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, RequestTimeout | PayloadTooLarge):
        response.force_close()  # do not read the rest of the body
    return response


@web.middleware
async def failures(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except EngineError as error:
        request[FAILURE] = error.code
        return error_response(error, request)
    except web.HTTPException as error:
        return _of_http(error, request)
    except (ConnectionError, MemoryError):
        raise  # ConnectionError: the client is gone; MemoryError: this process must end
    except Exception:
        log.exception("a request failed")
        request[FAILURE] = EngineError.code
        return error_response(EngineError(responses.INTERNAL), request)


def _of_http(error: web.HTTPException, request: web.Request) -> web.Response:
    failure = BadRoute((error.reason or "request failed").lower())
    failure.status = error.status
    failure.code = failure.message.replace(" ", "_")
    response = error_response(failure, request)
    if isinstance(error, web.HTTPMethodNotAllowed):
        response.headers["Allow"] = ",".join(sorted(error.allowed_methods))
    return response
