"""POST /get_score: LightLLM's shape, token ids, and who answers what."""

from __future__ import annotations

import asyncio
import math

import msgspec
import pytest

from lightllm_mp.facts import PooledFacts
from lightllm_mp.messages import Generate
from tests.actors.http.harness import FACTS, Engine, Site, column, run

REWARD = msgspec.structs.replace(FACTS, engine=msgspec.structs.replace(FACTS.engine, pooled=PooledFacts("score", 1)))


def on_reward(test) -> None:
    run(test, engine=Engine(facts=REWARD))


def last_request(s: Site) -> Generate:
    return next(m for m in reversed(s.engine.tokenizer) if isinstance(m, Generate))


def test_text():
    async def body(s: Site):
        status, answer, headers = await s.post("/get_score", {"chat": "<|user|>Hi<|assistant|>Ho"})
        assert (status, headers["Content-Type"]) == (200, "application/json")
        assert answer == {"score": -1.5, "prompt_tokens": 7, "finish_reason": "stop"}
        request = last_request(s)
        assert (request.text, request.terms.sampling.max_new_tokens) == ("<|user|>Hi<|assistant|>Ho", 0)
        assert request.add_special_tokens
        assert s.frontend.live == 0

    on_reward(body)


def test_the_probability_of_yes():
    pooled = PooledFacts("score", 1, probability=True)
    facts = msgspec.structs.replace(FACTS, engine=msgspec.structs.replace(FACTS.engine, pooled=pooled))

    async def body(s: Site):
        _, answer, _ = await s.post("/get_score", {"ids": [4, 5, 6]})
        assert answer["score"] == pytest.approx(1 / (1 + math.exp(1.5)))

    run(body, engine=Engine(facts=facts))


def test_ids_and_parameters():
    async def body(s: Site):
        parameters = {"add_special_tokens": False, "disable_prompt_cache": True, "priority": 4, "colour": 1}
        status, _, headers = await s.post("/get_score", {"ids": [4, 5, 6], "parameters": parameters})
        request = last_request(s)
        assert (status, request.ids) == (200, column("i", [4, 5, 6]))
        assert (request.add_special_tokens, request.terms.reuse_prompt, request.terms.priority) == (False, False, 4)
        assert headers["X-LightLLM-Warning"] == "ignored parameters: colour"

    on_reward(body)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({}, "one of chat (text) and ids"),
        ({"chat": "a", "ids": [1]}, "one of chat (text) and ids"),
        ({"chat": [{"role": "user", "content": "a"}]}, "chat: Expected `str`"),
        ({"ids": []}, "ids: "),
        ({"ids": [-1]}, "ids: "),
        ({"ids": [1000]}, "token ids must lie between 0 and 999"),
        ({"ids": [1] * 2001}, "the prompt has 2001 tokens"),
        ({"chat": "a", "multimodal_params": {"images": [{}]}}, "text only"),
    ],
)
def test_wrong_bodies(body, reason):
    async def test(s: Site):
        status, answer, _ = await s.post("/get_score", body)
        assert status == 400
        assert reason in answer["error"]["message"]

    on_reward(test)


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/"])
def test_a_reward_model_generates_nothing(path):
    async def body(s: Site):
        status, answer, _ = await s.post(path, {"inputs": "a", "parameters": {}})
        assert status == 400
        assert answer["error"]["message"] == "this is a reward model: it answers /get_score and produces no text"

    on_reward(body)


def test_other_models_score_nothing():
    async def body(s: Site):
        status, answer, _ = await s.post("/get_score", {"chat": "a"})
        assert status == 400
        assert answer["error"]["message"] == "/get_score needs a reward model, this one produces text"

    run(body)


def test_a_crash_costs_time_and_no_score():
    async def body(s: Site):
        s.engine.paused = True
        waiting = asyncio.create_task(s.post("/get_score", {"chat": "a"}))
        await s.settled(lambda: bool(s.engine.running))
        s.engine.crash()
        assert not s.engine.running
        s.engine.begin()
        s.engine.paused = False
        status, answer, _ = await waiting
        assert (status, answer["score"]) == (200, -1.5)
        assert sum(isinstance(m, Generate) for m in s.engine.tokenizer) == 2

    on_reward(body)


def test_figures():
    async def body(s: Site):
        await s.post("/get_score", {"chat": "a"})
        lines = (await s.get("/metrics"))[1].splitlines()
        assert 'lightllm_request_success_total{finished_reason="stop",model_name="fake"} 1.0' in lines
        assert 'lightllm_prompt_tokens_total{model_name="fake"} 7.0' in lines

    on_reward(body)
