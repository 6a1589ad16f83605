"""OpenAI's /v1/responses. A stored response is a request that the front keeps longer than others: the journal's record
of it outlives this process."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from lightllm_mp.actors.front.image_files import Upload
from lightllm_mp.actors.front.live_request import LiveRequest
from lightllm_mp.actors.http.arrival import Arrivals, Work
from lightllm_mp.actors.http.context import Context, tenant
from lightllm_mp.actors.http.delivery import send_json
from lightllm_mp.actors.http.dialects.chat_messages import MAX_MESSAGES
from lightllm_mp.actors.http.dialects.forms import decode_form
from lightllm_mp.actors.http.dialects.openai_fields import openai_errors
from lightllm_mp.actors.http.dialects.responses.response_answer import PREFIX, ResponseForm, assistant_turn
from lightllm_mp.actors.http.dialects.responses.response_items import instructed, uninstructed
from lightllm_mp.actors.http.dialects.responses.response_request import (
    read_response,
    response_body,
    response_form,
    response_terms,
)
from lightllm_mp.actors.http.responses import encode
from lightllm_mp.actors.http.routes.resume import understands_events
from lightllm_mp.errors import InvalidRequest, NotFound, PreviousNotFound

PREVIOUS = "previous_response_id"


class ResponseRoutes:
    def __init__(self, context: Context, arrivals: Arrivals) -> None:
        self._context, self._arrivals = context, arrivals

    async def create(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/responses"""
        with openai_errors("input"):
            return await self._arrivals.answer(request, self._work(request))

    async def fetch(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/responses/{id}"""
        for name in request.query:
            raise InvalidRequest(f"{name[:64]!r} is not supported here", param=name[:64])
        live, form = self._stored(request, request.match_info["id"])
        return await send_json(request, form.writer(live).whole(live.answers))

    async def delete(self, request: web.Request) -> web.Response:
        """DELETE /v1/responses/{id}: abort it and keep nothing of it."""
        id = request.match_info["id"]
        live, _ = self._stored(request, id)
        self._context.frontend.discard(*live.key)
        answer = encode({"id": id, "object": "response", "deleted": True})
        return web.Response(body=answer, content_type="application/json")

    async def _work(self, request: web.Request) -> Work:
        async with self._arrivals.receive(request) as data:
            body, seconds = response_body(data), self._context.config.response_window
            if body.store and not seconds:
                raise InvalidRequest("this server stores no responses (--response-window)", param="store")
            asked = await read_response(body, self._arrivals.facts)
            history, earlier = await self._history(request, body.previous_response_id)
            messages = instructed([*history, *asked.chat.messages], body.instructions or "")
            if not 1 <= len(messages) <= MAX_MESSAGES:
                raise InvalidRequest(f"a chat has from 1 to {MAX_MESSAGES} messages", param="input")
            stored = bool(seconds) and body.store is not False
            numbered = understands_events(request)
            form = response_form(body, asked, self._context.model_name, numbered=numbered, stored=stored)
            terms = response_terms(body, asked.ask, tenant(request))
            images = (*earlier, *await self._arrivals.chat_images(request, asked.chat.images))
            return Work(asked.ask.prompt(messages), terms, form, images=images, keep=seconds if stored else 0.0)

    async def _history(self, request: web.Request, id: str | None) -> tuple[list[Any], tuple[Upload, ...]]:
        """The messages of a stored response, its answer the last of them, and their images."""
        if id is None:
            return [], ()
        try:
            live, form = self._stored(request, id)
        except NotFound as error:
            raise PreviousNotFound(error.message, param=PREVIOUS) from None
        chat, answer = live.request.chat, live.answers[0]
        assert chat is not None, "a response is made of a chat"
        if live.open:
            raise InvalidRequest(f"{PREVIOUS}: this response is not complete", param=PREVIOUS)
        turn = (await assistant_turn(form, answer)).message()
        return [*uninstructed(chat.messages, form.instructions), turn], live.images

    def _stored(self, request: web.Request, id: str) -> tuple[LiveRequest, ResponseForm]:
        """Raises NotFound."""
        if id.startswith(PREFIX):
            live = self._context.frontend.look(tenant(request), id.removeprefix(PREFIX))
            form = decode_form(live.form)
            if isinstance(form, ResponseForm) and form.stored:
                return live, form
        raise NotFound("no response of this key has this id: it was not stored, or its time is over", param="id")
