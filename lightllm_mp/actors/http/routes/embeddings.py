"""Routes of models of embeddings and scores: /v1/embeddings, /v1/rerank (also /rerank, /v2/rerank), /v1/score."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence

from aiohttp import web

from lightllm_mp.actors.front.validation import embedding_length
from lightllm_mp.actors.http.arrival import Arrivals, Work
from lightllm_mp.actors.http.context import Context, tenant, unix_time
from lightllm_mp.actors.http.dialects.openai_fields import openai_errors
from lightllm_mp.actors.http.dialects.pooled_answer import EmbeddingForm, RerankForm, ScoreForm
from lightllm_mp.actors.http.dialects.pooled_request import (
    embedding_body,
    embedding_inputs,
    pooled_terms,
    rerank_body,
    rerank_documents,
    score_pairs,
    score_pairs_body,
)
from lightllm_mp.facts import EngineLimits
from lightllm_mp.messages import TextPair


class EmbeddingRoutes:
    def __init__(self, context: Context, arrivals: Arrivals) -> None:
        self._context, self._arrivals = context, arrivals

    async def embed(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/embeddings"""
        with openai_errors("input"):
            return await self._answer(request, self._embeddings(request))

    async def rerank(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/rerank, /v2/rerank, /rerank"""
        with openai_errors("documents"):
            return await self._answer(request, self._ranking(request))

    async def score(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/score"""
        with openai_errors("text_2"):
            return await self._answer(request, self._scores(request))

    async def _answer(self, request: web.Request, works: Awaitable[Sequence[Work]]) -> web.StreamResponse:
        return await self._arrivals.answer_batch(request, await works)

    @property
    def _limits(self) -> EngineLimits:
        facts = self._context.frontend.facts
        assert facts is not None, "a request that arrives was admitted"
        return facts.engine

    @property
    def _raw(self) -> bool:
        return self._limits.pooled is not None and self._limits.pooled.raw

    async def _embeddings(self, request: web.Request) -> list[Work]:
        async with self._arrivals.receive(request) as data:
            body = embedding_body(data)
            terms = pooled_terms(body, tenant(request), "embed")
            form = EmbeddingForm(
                model=self._context.model_name,
                created=unix_time(),
                base64=body.encoding_format == "base64",
                length=embedding_length(self._limits, body.dimensions),
            )
            special = body.add_special_tokens is not False
            inputs = await embedding_inputs(body, self._arrivals.max_input)
            return [Work(one, terms, form, add_special_tokens=special) for one in inputs]

    async def _ranking(self, request: web.Request) -> list[Work]:
        async with self._arrivals.receive(request) as data:
            body = rerank_body(data)
            documents = await rerank_documents(body, self._arrivals.max_input)
            form = RerankForm(
                model=self._context.model_name,
                created=unix_time(),
                top_n=body.top_n or 0,
                documents=() if body.return_documents is False else tuple(documents),
                raw=self._raw,
            )
            terms = pooled_terms(body, tenant(request), "score")
            return [Work(TextPair(body.query, document), terms, form) for document in documents]

    async def _scores(self, request: web.Request) -> list[Work]:
        async with self._arrivals.receive(request) as data:
            body = score_pairs_body(data)
            form = ScoreForm(model=self._context.model_name, created=unix_time(), raw=self._raw)
            terms = pooled_terms(body, tenant(request), "score")
            return [Work(pair, terms, form) for pair in await score_pairs(body, self._arrivals.max_input)]
