"""Routes of LightLLM's native API: POST /generate, /generate_stream, / and /get_score; GET or POST /tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Literal

import msgspec
from aiohttp import web

from lightllm_mp import sampling_parameters
from lightllm_mp.actors.front.live_request import LiveRequest
from lightllm_mp.actors.http import responses, schema
from lightllm_mp.actors.http.body import BodyReader
from lightllm_mp.actors.http.context import DEADLINE, LABEL, Context, payer, tenant
from lightllm_mp.actors.http.deadline_header import deadline
from lightllm_mp.actors.http.delivery import AnswerForm, deliver
from lightllm_mp.actors.http.routes.resume import asks_to_resume, resumed, understands_events
from lightllm_mp.errors import InvalidRequest

Submit = Callable[[], LiveRequest]
"""Submits a request that has arrived."""


class GenerateRoutes:
    """The handlers that send work to the engine.

    A request counts as live of its tenant from its admission on. While it arrives (`_arriving`), `frontend.arriving`
    holds its place; it is submitted in the same turn of the loop in which it gives the place back.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        config = context.config
        self._bodies = BodyReader(most=config.max_body_bytes, seconds=config.header_timeout)

    async def whole(self, request: web.Request) -> web.StreamResponse:
        """POST /generate"""
        return await deliver(request, (await self._generation(request, "whole"))())

    async def streamed(self, request: web.Request) -> web.StreamResponse:
        """POST /generate_stream"""
        if asks_to_resume(request):
            return await resumed(self._context, request, request[LABEL])
        return await deliver(request, (await self._generation(request, "stream"))())

    async def either(self, request: web.Request) -> web.StreamResponse:
        """POST /"""
        return await deliver(request, (await self._generation(request, None))())

    async def tokens(self, request: web.Request) -> web.StreamResponse:
        """GET or POST /tokens"""
        count, form = await self._counting(request)
        answer = responses.encode({"ntokens": await count()})
        return web.Response(body=answer, content_type="application/json", headers=form.headers)

    async def score(self, request: web.Request) -> web.StreamResponse:
        """POST /get_score"""
        return await deliver(request, (await self._scoring(request))())

    @property
    def _max_input(self) -> int:
        facts = self._context.frontend.facts
        return facts.engine.longest_prompt if facts else 0

    @asynccontextmanager
    async def _arriving(self, request: web.Request) -> AsyncIterator[bytes]:
        """The body of an admitted request. A request that is not admitted is refused before its body is read."""
        with self._context.frontend.arriving(tenant(request)):
            request[DEADLINE] = deadline(request)
            async with self._bodies.receive(request, payer(request)) as data:
                await schema.check_nesting(data)
                yield data

    async def _counting(self, request: web.Request) -> tuple[Callable[[], Awaitable[int]], AnswerForm]:
        async with self._arriving(request) as data:
            body = schema.tokens_body(data)
            parameters, unknown = schema.parameters(body.parameters)
            count = partial(
                self._context.frontend.count,
                schema.text(body.text, "text", self._max_input),
                add_special_tokens=parameters.add_special_tokens is not False,
                images=await self._context.media.infos(body.multimodal_params, tenant(request), payer(request)),
                tenant=tenant(request),
                deadline=request[DEADLINE],
            )
            return count, AnswerForm("whole", ignored=unknown)

    async def _scoring(self, request: web.Request) -> Submit:
        async with self._arriving(request) as data:
            body = schema.score_body(data)
            media = body.multimodal_params
            if media is not None and (schema.items(media.images, "images") or schema.items(media.audios, "audios")):
                raise InvalidRequest("a reward model takes text only", param="multimodal_params")
            parameters, unknown = schema.parameters(body.parameters)
            return partial(
                self._context.frontend.submit,
                await schema.conversation(body, self._max_input),
                sampling_parameters.terms(parameters, tenant(request), sampling_parameters.SCORE),
                add_special_tokens=parameters.add_special_tokens is not False,
                stream=False,
                deadline=request[DEADLINE],
                label=request[LABEL],
                form=msgspec.msgpack.encode(AnswerForm("score", ignored=unknown)),
            )

    async def _generation(self, request: web.Request, kind: Literal["stream", "whole"] | None) -> Submit:
        """`kind` None: what the body says."""
        async with self._arriving(request) as data:
            body = schema.generate_body(data)
            parameters, unknown = schema.parameters(body.parameters)
            sampling = sampling_parameters.sampling(parameters)
            if streamed := kind == "stream" or (kind is None and bool(body.stream)):
                if sampling_parameters.choices(parameters) > 1:
                    raise InvalidRequest("a stream has one answer: n and best_of must be 1", param="n")
                if sampling.prompt_logprobs >= 0:
                    unknown += ("prompt_logprobs",)  # stream events have no field for them
                sampling = msgspec.structs.replace(sampling, prompt_logprobs=-1)
                form = AnswerForm("stream", ignored=unknown, numbered=understands_events(request))
            else:
                form = AnswerForm("whole", bool(parameters.return_details), bool(parameters.logprobs), unknown)
            prompt = await schema.prompt(body.inputs, self._max_input)
            media = self._context.media
            with media.arriving(tenant(request)) as take:
                uploads = await media.uploads(body.multimodal_params, tenant(request), take, payer(request))
            return partial(
                self._context.frontend.submit,
                prompt,
                sampling_parameters.terms(parameters, tenant(request), sampling),
                add_special_tokens=parameters.add_special_tokens is not False,
                images=uploads,
                stream=streamed,
                deadline=request[DEADLINE],
                label=request[LABEL],
                form=msgspec.msgpack.encode(form),
            )
