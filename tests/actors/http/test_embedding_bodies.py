"""Large and hostile bodies of /v1/embeddings, /v1/rerank and /v1/score: other clients do not wait for them."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.actors.http.harness import Site, run
from tests.actors.http.test_embeddings import embedder
from tests.actors.http.test_rerank import reranker

MILLION = 1_000_000
BODIES = {
    "millions of texts": ("/v1/embeddings", b'{"input":[' + b'"",' * (8 * MILLION) + b'""]}'),
    "millions of documents": ("/v1/rerank", b'{"query":"a","documents":[' + b'"",' * (8 * MILLION) + b'""]}'),
    "millions of pairs": ("/v1/score", b'{"text_1":"a","text_2":[' + b'"",' * (8 * MILLION) + b'""]}'),
    "millions of ids": ("/v1/embeddings", b'{"input":[[' + b"1," * (8 * MILLION) + b"1]]}"),
    "millions of brackets": ("/v1/embeddings", b'{"input":' + b"[" * (4 * MILLION) + b"]" * (4 * MILLION) + b"}"),
    "a large unknown field": ("/v1/embeddings", b'{"input":"a","colour":"' + b"x" * (8 * MILLION) + b'"}'),
    "a large label": ("/v1/rerank", b'{"query":"a","documents":["a"],"user":"' + b"x" * (8 * MILLION) + b'"}'),
    "a large query": ("/v1/rerank", b'{"query":"' + b"x" * (8 * MILLION) + b'","documents":["a"]}'),
}


@pytest.mark.parametrize("name", BODIES)
def test_refused_at_once(name):
    path, data = BODIES[name]

    async def body(s: Site):
        longest = 0.0

        async def watch() -> None:
            nonlocal longest
            while True:
                before = time.monotonic()
                await asyncio.sleep(0)
                longest = max(longest, time.monotonic() - before)

        watching = asyncio.create_task(watch())
        status, answer, _ = await s.post(path, data)
        watching.cancel()
        assert status == 400, answer
        assert len(answer["error"]["message"]) < 200
        assert longest < 0.5, "the loop stood still"
        assert s.frontend.live == 0

    run(body, engine=embedder() if path == "/v1/embeddings" else reranker())
