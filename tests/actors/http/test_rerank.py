"""POST /v1/rerank and /v1/score: every field, and what is refused."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from lightllm_mp.messages import Generate, TextPair
from tests.actors.http.harness import Engine, Site, run
from tests.actors.http.test_embeddings import asked, facts


def likeness(request: Generate) -> list[float]:
    assert request.pair is not None
    return [float(len(request.pair.document)) - 3.0]


def reranker(**changes: Any) -> Engine:
    return Engine(facts=facts(**{"task": "score", "width": 1, "pairs": True, **changes}), row=likeness)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_ranking(path):
    async def body(s: Site):
        documents = ["aaa", "a", {"text": "aaaaa"}, ""]
        status, answer, headers = await s.post(path, {"model": "any", "query": "q", "documents": documents})
        assert status == 200
        assert [r.pair for r in asked(s)] == [TextPair("q", text) for text in ("aaa", "a", "aaaaa", "")]
        assert [result["index"] for result in answer["results"]] == [2, 0, 1, 3]
        assert [result["document"]["text"] for result in answer["results"]] == ["aaaaa", "aaa", "a", ""]
        scores = [result["relevance_score"] for result in answer["results"]]
        assert scores == pytest.approx([sigmoid(x) for x in (2, 0, -2, -3)])
        assert (answer["id"], answer["model"]) == ("rerank-" + headers["X-Request-Id"], "fake")
        assert answer["usage"] == {"prompt_tokens": 28, "total_tokens": 28}

    run(body, engine=reranker())


def test_the_best_without_their_texts():
    async def body(s: Site):
        asked_for = {"query": "q", "documents": ["a", "aa", "aaa"], "top_n": 2, "return_documents": False}
        answer = (await s.post("/v1/rerank", asked_for))[1]
        assert [set(result) for result in answer["results"]] == [{"index", "relevance_score"}] * 2
        assert [result["index"] for result in answer["results"]] == [2, 1]

    run(body, engine=reranker())


def test_numbers_that_are_shown_as_they_are():
    async def body(s: Site):
        answer = (await s.post("/v1/rerank", {"query": "q", "documents": ["aaaa"]}))[1]
        assert answer["results"][0]["relevance_score"] == 1.0
        answer = (await s.post("/v1/score", {"text_1": "q", "text_2": "aaaa"}))[1]
        assert answer["data"][0]["score"] == 1.0

    run(body, engine=reranker(raw=True))


@pytest.mark.parametrize(
    ("first", "second", "pairs"),
    [
        ("q", "aa", [("q", "aa")]),
        ("q", ["a", "aaaa"], [("q", "a"), ("q", "aaaa")]),
        (["p", "q"], ["a", "aaaa"], [("p", "a"), ("q", "aaaa")]),
        (["q"], ["a", "aaaa"], [("q", "a"), ("q", "aaaa")]),
    ],
)
def test_scores(first, second, pairs):
    async def body(s: Site):
        status, answer, headers = await s.post("/v1/score", {"text_1": first, "text_2": second})
        assert status == 200
        assert [r.pair for r in asked(s)] == [TextPair(*pair) for pair in pairs]
        assert [entry["score"] for entry in answer["data"]] == pytest.approx(
            [sigmoid(len(text) - 3.0) for _, text in pairs]
        )
        assert [entry["index"] for entry in answer["data"]] == list(range(len(pairs)))
        assert (answer["object"], answer["id"]) == ("list", "score-" + headers["X-Request-Id"])
        assert answer["usage"]["total_tokens"] == 7 * len(pairs)

    run(body, engine=reranker())


@pytest.mark.parametrize(
    ("path", "fields", "param", "reason"),
    [
        ("/v1/rerank", {"query": "a"}, None, "missing required field `documents`"),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents", "length >= 1"),
        ("/v1/rerank", {"query": "a", "documents": [5]}, "documents", "Expected"),
        ("/v1/rerank", {"query": "a", "documents": ["a"] * 2049}, "documents", "at most length 2048"),
        ("/v1/rerank", {"query": "a", "documents": [{"text": "a", "colour": 1}]}, "documents", "unknown field"),
        ("/v1/rerank", {"query": "a", "documents": ["a"], "top_n": -1}, "top_n", ">= 0"),
        ("/v1/rerank", {"query": "a", "documents": ["a"], "rank_fields": []}, "rank_fields", "not a field"),
        (
            "/v1/rerank",
            {"query": "a", "documents": ["a"], "max_tokens_per_doc": 9},
            "max_tokens_per_doc",
            "use truncate",
        ),
        ("/v1/rerank", {"query": "a", "documents": ["x" * 40_000]}, "documents", "longest possible"),
        ("/v1/rerank", {"query": "\ud800", "documents": ["x"]}, None, ""),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["c", "d", "e"]}, "text_1", "as many as text_2"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": "c"}, "text_1", "as many as text_2"),
        ("/v1/score", {"text_1": "a", "text_2": []}, "text_2", "length >= 1"),
    ],
)
def test_ranking_bodies_that_are_refused(path, fields, param, reason):
    async def body(s: Site):
        status, answer, _ = await s.post(path, json.dumps(fields).encode())
        assert status == 400
        assert param is None or answer["error"]["param"] == param
        assert reason in answer["error"]["message"]

    run(body, engine=reranker())


def test_a_reward_model_ranks_nothing():
    async def body(s: Site):
        status, answer, _ = await s.post("/v1/rerank", {"query": "a", "documents": ["b"]})
        assert status == 400
        assert "need a reranking model, this one scores single texts" in answer["error"]["message"]

    run(body, engine=reranker(pairs=False))
