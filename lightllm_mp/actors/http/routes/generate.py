"""Routes of LightLLM's native API: POST /generate, /generate_stream, / and /get_score; GET or POST /tokens."""

from __future__ import annotations

from array import array

import msgspec
from aiohttp import web

from lightllm_mp import sampling_parameters
from lightllm_mp.actors.front.live_request import LiveRequest
from lightllm_mp.actors.http import responses, schema
from lightllm_mp.actors.http.body import BodyReader
from lightllm_mp.actors.http.context import DEADLINE, LABEL, Context, tenant
from lightllm_mp.actors.http.deadline_header import deadline
from lightllm_mp.actors.http.delivery import AnswerForm, deliver
from lightllm_mp.actors.http.routes.resume import asks_to_resume, resumed
from lightllm_mp.errors import InvalidRequest


class GenerateRoutes:
    """The handlers that send work to the engine."""

    def __init__(self, context: Context) -> None:
        self._context = context
        config = context.config
        self._bodies = BodyReader(most=config.max_body_bytes, seconds=config.header_timeout)

    async def whole(self, request: web.Request) -> web.StreamResponse:
        """POST /generate"""
        return await self._whole(request, schema.generate_body(await self._body(request)))

    async def streamed(self, request: web.Request) -> web.StreamResponse:
        """POST /generate_stream"""
        if asks_to_resume(request):
            return await resumed(self._context, request, request[LABEL])
        return await self._streamed(request, schema.generate_body(await self._body(request)))

    async def either(self, request: web.Request) -> web.StreamResponse:
        """POST /"""
        bodies = [schema.generate_body(await self._body(request))]
        answer = self._streamed if bodies[0].stream else self._whole
        return await answer(request, bodies.pop())

    async def tokens(self, request: web.Request) -> web.StreamResponse:
        """GET or POST /tokens"""
        body = schema.tokens_body(await self._body(request))
        images = await self._context.media.infos(body.multimodal_params, tenant(request))
        parameters, unknown = schema.parameters(body.parameters)
        special = parameters.add_special_tokens is not False
        count = await self._context.frontend.count(
            body.text,
            add_special_tokens=special,
            images=images,
            tenant=tenant(request),
            deadline=request[DEADLINE],
        )
        form = AnswerForm("whole", ignored=unknown)
        data = responses.encode({"ntokens": count})
        return web.Response(body=data, content_type="application/json", headers=form.headers)

    async def score(self, request: web.Request) -> web.StreamResponse:
        """POST /get_score"""
        body = schema.score_body(await self._body(request))
        if body.multimodal_params is not None and (body.multimodal_params.images or body.multimodal_params.audios):
            raise InvalidRequest("a reward model takes text only", param="multimodal_params")
        parameters, unknown = schema.parameters(body.parameters)
        live = self._context.frontend.submit(
            _column(body.ids) if body.ids is not None else body.chat or "",
            sampling_parameters.terms(parameters, tenant(request), sampling_parameters.SCORE),
            add_special_tokens=parameters.add_special_tokens is not False,
            stream=False,
            deadline=request[DEADLINE],
            label=request[LABEL],
            form=msgspec.msgpack.encode(AnswerForm("score", ignored=unknown)),
        )
        return await deliver(request, live)

    async def _body(self, request: web.Request) -> bytes:
        """The body of an admitted request. A request that is not admitted is refused before its body is read."""
        self._context.frontend.admit(tenant(request))
        request[DEADLINE] = deadline(request)
        return await self._bodies.read(request)

    async def _whole(self, request: web.Request, body: schema.GenerateBody) -> web.StreamResponse:
        parameters, unknown = schema.parameters(body.parameters)
        form = AnswerForm("whole", bool(parameters.return_details), bool(parameters.logprobs), unknown)
        live = await self._submit(request, body, parameters, form)
        del body  # frees the images in it
        return await deliver(request, live)

    async def _streamed(self, request: web.Request, body: schema.GenerateBody) -> web.StreamResponse:
        parameters, unknown = schema.parameters(body.parameters)
        if sampling_parameters.choices(parameters) > 1:
            raise InvalidRequest("a stream has one answer: n and best_of must be 1", param="n")
        if parameters.prompt_logprobs is not None and parameters.prompt_logprobs >= 0:
            unknown += ("prompt_logprobs",)  # stream events have no field for them
        live = await self._submit(request, body, parameters, AnswerForm("stream", ignored=unknown))
        del body
        return await deliver(request, live)

    async def _submit(
        self, request: web.Request, body: schema.GenerateBody, parameters: schema.RequestParameters, form: AnswerForm
    ) -> LiveRequest:
        streamed = form.kind == "stream"
        sampling = sampling_parameters.sampling(parameters)
        if streamed:
            sampling = msgspec.structs.replace(sampling, prompt_logprobs=-1)
        with self._context.media.arriving() as take:
            uploads = await self._context.media.uploads(body.multimodal_params, tenant(request), take)
        return self._context.frontend.submit(
            body.inputs if isinstance(body.inputs, str) else _column(body.inputs),
            sampling_parameters.terms(parameters, tenant(request), sampling),
            add_special_tokens=parameters.add_special_tokens is not False,
            images=uploads,
            stream=streamed,
            deadline=request[DEADLINE],
            label=request[LABEL],
            form=msgspec.msgpack.encode(form),
        )


def _column(ids: list[int]) -> bytes:
    return array("i", ids).tobytes()
