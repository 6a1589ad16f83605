"""Routes of LightLLM's native API: POST /generate, /generate_stream, / and /get_score; GET or POST /tokens."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Literal

import msgspec
from aiohttp import web

from lightllm_mp import sampling_parameters
from lightllm_mp.actors.http import responses, schema
from lightllm_mp.actors.http.arrival import Arrivals, Work
from lightllm_mp.actors.http.context import DEADLINE, LABEL, Context, payer, tenant
from lightllm_mp.actors.http.dialects.native import NativeForm
from lightllm_mp.actors.http.routes.resume import asks_to_resume, resumed, understands_events
from lightllm_mp.errors import InvalidRequest


class GenerateRoutes:
    """The handlers that send work to the engine."""

    def __init__(self, context: Context, arrivals: Arrivals) -> None:
        self._context, self._arrivals = context, arrivals

    async def whole(self, request: web.Request) -> web.StreamResponse:
        """POST /generate"""
        return await self._arrivals.answer(request, self._generation(request, "whole"))

    async def streamed(self, request: web.Request) -> web.StreamResponse:
        """POST /generate_stream"""
        if asks_to_resume(request):
            return await resumed(self._context, request, request[LABEL])
        return await self._arrivals.answer(request, self._generation(request, "stream"))

    async def either(self, request: web.Request) -> web.StreamResponse:
        """POST /"""
        return await self._arrivals.answer(request, self._generation(request, None))

    async def tokens(self, request: web.Request) -> web.StreamResponse:
        """GET or POST /tokens"""
        count, form = await self._counting(request)
        answer = responses.encode({"ntokens": await count()})
        return web.Response(body=answer, content_type="application/json", headers=form.headers)

    async def score(self, request: web.Request) -> web.StreamResponse:
        """POST /get_score"""
        return await self._arrivals.answer(request, self._scoring(request))

    async def _counting(self, request: web.Request) -> tuple[Callable[[], Awaitable[int]], NativeForm]:
        async with self._arrivals.receive(request) as data:
            body = schema.tokens_body(data)
            parameters, unknown = schema.parameters(body.parameters)
            count = partial(
                self._context.frontend.count,
                schema.text(body.text, "text", self._arrivals.max_input),
                add_special_tokens=parameters.add_special_tokens is not False,
                images=await self._context.media.infos(body.multimodal_params, tenant(request), payer(request)),
                tenant=tenant(request),
                deadline=request[DEADLINE],
            )
            return count, NativeForm(ignored=unknown)

    async def _scoring(self, request: web.Request) -> Work:
        async with self._arrivals.receive(request) as data:
            body = schema.score_body(data)
            media = body.multimodal_params
            if media is not None and (schema.items(media.images, "images") or schema.items(media.audios, "audios")):
                raise InvalidRequest("a reward model takes text only", param="multimodal_params")
            parameters, unknown = schema.parameters(body.parameters)
            return Work(
                await schema.conversation(body, self._arrivals.max_input),
                sampling_parameters.terms(parameters, tenant(request), task="score"),
                NativeForm(kind="score", raw=self._raw, ignored=unknown),
                add_special_tokens=parameters.add_special_tokens is not False,
            )

    @property
    def _raw(self) -> bool:
        """A score of a single text is shown as it is."""
        facts = self._context.frontend.facts
        pooled = facts.engine.pooled if facts is not None else None
        return pooled is None or not pooled.probability

    async def _generation(self, request: web.Request, kind: Literal["stream", "whole"] | None) -> Work:
        """`kind` None: what the body says."""
        async with self._arrivals.receive(request) as data:
            body = schema.generate_body(data)
            parameters, unknown = schema.parameters(body.parameters)
            sampling = sampling_parameters.sampling(parameters)
            if kind == "stream" or (kind is None and bool(body.stream)):
                if sampling_parameters.choices(parameters) > 1:
                    raise InvalidRequest("a stream has one answer: n and best_of must be 1", param="n")
                if sampling.prompt_logprobs >= 0:
                    unknown += ("prompt_logprobs",)  # stream events have no field for them
                sampling = msgspec.structs.replace(sampling, prompt_logprobs=-1)
                form = NativeForm(kind="stream", numbered=understands_events(request), ignored=unknown)
            else:
                details, logprobs = bool(parameters.return_details), bool(parameters.logprobs)
                form = NativeForm(details=details, logprobs=logprobs, ignored=unknown)
            prompt = await schema.prompt(body.inputs, self._arrivals.max_input)
            media = self._context.media
            with media.arriving(tenant(request)) as take:
                uploads = await media.uploads(body.multimodal_params, tenant(request), take, payer(request))
            return Work(
                prompt,
                sampling_parameters.terms(parameters, tenant(request), sampling),
                form,
                add_special_tokens=parameters.add_special_tokens is not False,
                images=uploads,
            )
