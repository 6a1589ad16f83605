"""Delivers a request's answer in the form that its route has promised: a stream of events, or one JSON body.

A client that comes back gets the rest in the same form, so the form is kept with the request.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Literal

import msgspec
from aiohttp import web
from msgspec import Struct

from lightllm_mp.actors.front.live_request import LiveRequest
from lightllm_mp.actors.http import responses
from lightllm_mp.actors.http.context import LIVE
from lightllm_mp.errors import EngineError

log = logging.getLogger(__name__)

WARNING = "X-LightLLM-Warning"
JSON_BYTES = 1 << 18
"""A longer JSON body is sent in chunks while it is encoded."""


class AnswerForm(Struct, frozen=True, array_like=True):
    """`details`, `logprobs`: what a whole answer shows beside its texts. `ignored`: unknown parameters. `numbered`: the
    events of a stream say their numbers."""

    kind: Literal["stream", "whole", "score"]
    details: bool = False
    logprobs: bool = False
    ignored: tuple[str, ...] = ()
    numbered: bool = False

    @property
    def headers(self) -> dict[str, str]:
        return {WARNING: "ignored parameters: " + ", ".join(self.ignored)} if self.ignored else {}


async def deliver(request: web.Request, live: LiveRequest) -> web.StreamResponse:
    """Answer `request` with `live`, and give `live` back whatever happens. Raises errors that precede the answer."""
    request[LIVE] = live
    form = msgspec.msgpack.decode(live.form, type=AnswerForm)
    try:
        match form.kind:
            case "stream":
                return await _stream(request, live, form)
            case "whole":
                return await _whole(request, live, form)
            case "score":
                data = responses.score((await live.answer())[0])
                return web.Response(body=data, content_type="application/json", headers=form.headers)
    finally:
        live.close()


async def _stream(request: web.Request, live: LiveRequest, form: AnswerForm) -> web.StreamResponse:
    """Server-sent events, each in its own chunk and write. The status is sent with the first event, so that a refused
    request gets the right one; a later error becomes an event."""
    number = live.taken + 1
    events = await live.batch()
    response = web.StreamResponse(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **form.headers})
    response.content_type = "text/event-stream"
    if request.transport is not None:
        live.on_overflow = request.transport.abort  # the client does not read, so no error event reaches it
    await response.prepare(request)
    try:
        while events:
            for event in events:
                await response.write(responses.event(event, number if form.numbered else 0))
                number += 1
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


async def _whole(request: web.Request, live: LiveRequest, form: AnswerForm) -> web.StreamResponse:
    """One JSON body. A large one is encoded and sent in pieces, and others are served between them."""
    answers = await live.answer()
    pieces = responses.whole(answers, details=form.details, logprobs=form.logprobs, prompt=live.prompt_logprobs)
    body = bytearray()
    for piece in pieces:
        body += piece
        if len(body) > JSON_BYTES:
            break
    else:
        return web.Response(body=bytes(body), content_type="application/json", headers=form.headers)
    response = web.StreamResponse(headers=form.headers)
    response.content_type = "application/json"
    await response.prepare(request)
    await response.write(bytes(body))
    for piece in pieces:
        await response.write(piece)
        await asyncio.sleep(0)
    await response.write_eof()
    return response
