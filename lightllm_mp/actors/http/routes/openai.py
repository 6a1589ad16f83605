"""OpenAI's routes: /v1/chat/completions, /v1/completions, /v1/models."""

from __future__ import annotations

from aiohttp import web

from lightllm_mp.actors.http.arrival import Arrivals, Work
from lightllm_mp.actors.http.context import Context, tenant
from lightllm_mp.actors.http.dialects.chat_request import ChatRequest, chat_body
from lightllm_mp.actors.http.dialects.completion_request import (
    completion_body,
    completion_form,
    completion_terms,
    prompts,
)
from lightllm_mp.actors.http.dialects.openai_fields import openai_errors
from lightllm_mp.actors.http.responses import encode
from lightllm_mp.actors.http.routes.resume import understands_events
from lightllm_mp.errors import NotFound


class OpenAIRoutes:
    def __init__(self, context: Context, arrivals: Arrivals) -> None:
        self._context, self._arrivals = context, arrivals

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions"""
        with openai_errors("messages"):
            return await self._arrivals.answer(request, self._chat(request))

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/completions"""
        with openai_errors("prompt"):
            return await self._arrivals.answer_all(request, self._completions(request))

    async def models(self, request: web.Request) -> web.Response:
        """GET /v1/models"""
        return _json({"object": "list", "data": [self._model()]})

    async def model(self, request: web.Request) -> web.Response:
        """GET /v1/models/{id}"""
        if request.match_info["id"] != self._context.model_name:
            raise NotFound(f"this server has one model: {self._context.model_name}", param="model")
        return _json(self._model())

    async def _chat(self, request: web.Request) -> Work:
        async with self._arrivals.receive(request) as data:
            context = self._context
            asked = ChatRequest(
                chat_body(data), self._arrivals.facts, open_templates=context.config.allow_chat_template
            )
            chat = await asked.read()
            images = await self._arrivals.chat_images(request, chat.images)
            return Work(
                asked.prompt(chat),
                asked.terms(tenant(request)),
                asked.form(
                    context.model_name, numbered=understands_events(request), ignored=tuple(sorted(chat.ignored))
                ),
                images=images,
            )

    async def _completions(self, request: web.Request) -> list[Work]:
        async with self._arrivals.receive(request) as data:
            context, facts = self._context, self._arrivals.facts
            body = completion_body(data)
            found = await prompts(body, facts.chat, self._arrivals.max_input)
            numbered = understands_events(request)
            form = completion_form(body, context.model_name, numbered=numbered, prompts=len(found))
            special = body.add_special_tokens is not False
            return [
                Work(one, completion_terms(body, one, tenant(request)), form, add_special_tokens=special)
                for one in found
            ]

    def _model(self) -> dict[str, object]:
        facts = self._context.frontend.facts
        name = self._context.model_name
        return {
            "id": name,
            "object": "model",
            "created": self._context.started,
            "owned_by": "lightllm_mp",
            "root": name,
            "parent": None,
            "max_model_len": facts.engine.max_context if facts else None,
        }


def _json(value: object) -> web.Response:
    return web.Response(body=encode(value), content_type="application/json")
