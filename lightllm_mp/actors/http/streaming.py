"""Server-sent events: one event per token, each in its own chunk and write."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from aiohttp import web

from lightllm_mp.actors.front.live_request import LiveRequest
from lightllm_mp.actors.http import responses
from lightllm_mp.errors import EngineError

log = logging.getLogger(__name__)


async def stream(request: web.Request, live: LiveRequest, headers: Mapping[str, str]) -> web.StreamResponse:
    """Write `live` to the client until it has finished. The status is sent with the first token, so that a refused
    request gets the right one; a later error becomes an event. Raises errors that precede the first token."""
    events = await live.batch()
    response = web.StreamResponse(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **headers})
    response.content_type = "text/event-stream"
    if request.transport is not None:
        live.on_overflow = request.transport.abort  # the client does not read, so no error event reaches it
    await response.prepare(request)
    try:
        while events:
            for event in events:
                await response.write(responses.event(event))
            events = await live.batch()
    except ConnectionError:
        return response  # the client has left
    except EngineError as error:
        await response.write(responses.failure_event(error))
    except MemoryError:
        raise  # this process must end
    except Exception:
        log.exception("a stream failed")
        await response.write(responses.failure_event(EngineError("internal error")))
    await response.write_eof()
    return response
