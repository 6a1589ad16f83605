"""Delivers a request's answer in the form that its route has promised: a stream of events, or one JSON body."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping

from aiohttp import web

from lightllm_mp.actors.front.live_request import LiveRequest
from lightllm_mp.actors.http import answer_stream
from lightllm_mp.actors.http.context import LIVE
from lightllm_mp.actors.http.dialects.forms import Form, decode_form
from lightllm_mp.actors.http.dialects.writer import AnswerWriter, StreamWriter
from lightllm_mp.actors.http.live_group import LiveGroup
from lightllm_mp.errors import EngineError

log = logging.getLogger(__name__)

JSON_BYTES = 1 << 18
"""A longer JSON body is sent in chunks while it is encoded."""
PIECES = 8
"""So many are encoded while others wait."""


async def deliver(request: web.Request, live: LiveRequest) -> web.StreamResponse:
    """Answer `request` with `live`, and give `live` back whatever happens. Raises errors that precede the answer."""
    form = decode_form(live.form)
    return await send(request, live, form, form.writer(live))


async def send(
    request: web.Request, live: LiveRequest | LiveGroup, form: Form, writer: AnswerWriter
) -> web.StreamResponse:
    """The same with a given writer."""
    request[LIVE] = live
    try:
        if form.streamed:
            assert isinstance(writer, StreamWriter)
            return await _stream(request, live, writer, form.headers)
        return await _whole(request, live, writer, form.headers)
    finally:
        live.close()


async def _stream(
    request: web.Request, live: LiveRequest | LiveGroup, writer: StreamWriter, headers: Mapping[str, str]
) -> web.StreamResponse:
    """Server-sent events, each in its own chunk and write. The status is sent with the first event, so that a refused
    request gets the right one; a later error becomes an event."""
    number = live.taken + 1
    for seen in live.seen():
        writer.seen(seen)
        await asyncio.sleep(0)
    events = await live.batch()
    if request.transport is not None:
        live.on_overflow = request.transport.abort  # the client does not read, so no error event reaches it
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **headers}
    answer = await answer_stream.begin(request, "text/event-stream", headers)
    try:
        if (head := writer.begin()) and number == 1:
            await answer.write(head)
        while events:
            for piece in writer.events(events, number):
                await answer.write(piece)
            number += len(events)
            await answer.shown(number - 1)
            events = await live.batch()
        last = writer.end()
    except ConnectionError:
        return answer.response  # the client has left
    except EngineError as error:
        last = writer.failure(error)
    except MemoryError:
        raise  # this process must end
    except Exception:
        log.exception("a stream failed")
        last = writer.failure(EngineError("internal error"))
    await answer.end(last)
    return answer.response


async def _whole(
    request: web.Request, live: LiveRequest | LiveGroup, writer: AnswerWriter, headers: Mapping[str, str]
) -> web.StreamResponse:
    return await send_json(request, writer.whole(await live.answer()), headers)


async def send_json(
    request: web.Request, pieces: Iterator[bytes], headers: Mapping[str, str] | None = None
) -> web.StreamResponse:
    """One JSON body. A large one is encoded and sent in pieces, and others are served between them."""
    body = bytearray()
    for number, piece in enumerate(pieces, 1):
        body += piece
        if len(body) > JSON_BYTES:
            break
        if number % PIECES == 0:
            await asyncio.sleep(0)
    else:
        return web.Response(body=bytes(body), content_type="application/json", headers=headers)
    answer = await answer_stream.begin(request, "application/json", headers or {})
    await answer.write(bytes(body))
    for piece in pieces:
        await answer.write(piece)
        await asyncio.sleep(0)
    await answer.end()
    return answer.response
