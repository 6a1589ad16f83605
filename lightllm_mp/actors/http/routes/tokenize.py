"""vLLM's routes for tokens: POST /tokenize, /detokenize."""

from __future__ import annotations

from aiohttp import web

from lightllm_mp.actors.http import schema
from lightllm_mp.actors.http.arrival import Arrivals
from lightllm_mp.actors.http.context import DEADLINE, Context, tenant
from lightllm_mp.actors.http.dialects.openai_fields import NULL, openai_errors
from lightllm_mp.actors.http.dialects.tokenize_request import chat_prompt, detokenize_body, tokenize_body
from lightllm_mp.actors.http.responses import encode
from lightllm_mp.messages import ChatPrompt


class TokenizeRoutes:
    def __init__(self, context: Context, arrivals: Arrivals) -> None:
        self._context, self._arrivals = context, arrivals

    async def tokenize(self, request: web.Request) -> web.Response:
        """POST /tokenize"""
        with openai_errors("prompt"):
            prompt, special = await self._prompt(request)
            ids = await self._context.frontend.ids(
                prompt, add_special_tokens=special, tenant=tenant(request), deadline=request[DEADLINE]
            )
        tokens = memoryview(ids).cast("i").tolist()
        most = self._arrivals.facts.engine.max_context
        return _json({"count": len(tokens), "max_model_len": most, "tokens": tokens})

    async def detokenize(self, request: web.Request) -> web.Response:
        """POST /detokenize"""
        with openai_errors("tokens"):
            async with self._arrivals.receive(request) as data:
                body = detokenize_body(data)
                ids = await schema.ids(body.tokens, "tokens", self._arrivals.max_input)
            text = await self._context.frontend.text(
                ids,
                skip_special_tokens=bool(body.skip_special_tokens),
                tenant=tenant(request),
                deadline=request[DEADLINE],
            )
        return _json({"prompt": text})

    async def _prompt(self, request: web.Request) -> tuple[str | ChatPrompt, bool]:
        """The prompt, and whether it gets special tokens."""
        async with self._arrivals.receive(request) as data:
            body = tokenize_body(data)
            if body.messages != NULL:
                return await chat_prompt(body, self._arrivals.facts), False
            text = schema.text(body.prompt, "prompt", self._arrivals.max_input)
            return text, body.add_special_tokens is not False


def _json(value: object) -> web.Response:
    return web.Response(body=encode(value), content_type="application/json")
