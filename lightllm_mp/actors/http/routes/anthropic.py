"""Anthropic's routes: /v1/messages, /v1/messages/count_tokens."""

from __future__ import annotations

from aiohttp import web

from lightllm_mp.actors.http.arrival import Arrivals, Work
from lightllm_mp.actors.http.context import DEADLINE, Context, tenant
from lightllm_mp.actors.http.dialects.anthropic.anthropic_request import (
    MessagesRequest,
    count_body,
    message_form,
    message_terms,
    messages_body,
)
from lightllm_mp.actors.http.responses import encode
from lightllm_mp.actors.http.routes.resume import understands_events


class AnthropicRoutes:
    def __init__(self, context: Context, arrivals: Arrivals) -> None:
        self._context, self._arrivals = context, arrivals

    async def messages(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/messages"""
        return await self._arrivals.answer(request, self._work(request))

    async def count_tokens(self, request: web.Request) -> web.Response:
        """POST /v1/messages/count_tokens"""
        async with self._arrivals.receive(request) as data:
            ask, chat = await MessagesRequest(count_body(data), self._arrivals.facts).read()
            images = await self._arrivals.chat_image_infos(request, chat.images)
        count = await self._context.frontend.count(
            ask.prompt(chat.messages), images=images, tenant=tenant(request), deadline=request[DEADLINE]
        )
        return web.Response(body=encode({"input_tokens": count}), content_type="application/json")

    async def _work(self, request: web.Request) -> Work:
        async with self._arrivals.receive(request) as data:
            body = messages_body(data)
            ask, chat = await MessagesRequest(body, self._arrivals.facts).read()
            form = message_form(
                body, ask, self._context.model_name, numbered=understands_events(request), ignored=chat.ignored
            )
            images = await self._arrivals.chat_images(request, chat.images)
            return Work(ask.prompt(chat.messages), message_terms(body, ask, tenant(request)), form, images=images)
