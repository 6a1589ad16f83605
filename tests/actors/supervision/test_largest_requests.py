"""The largest legal requests of every kind pass through all actors, also after a repair: no size ends a process."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable
from pathlib import Path

import numpy as np
import pytest

from lightllm_mp.actors.front.live_request import LiveRequest
from lightllm_mp.actors.topology import EMBEDDED, topology
from lightllm_mp.errors import PromptTooLong
from lightllm_mp.messages import Output, Sampling, Terms
from lightllm_mp.plan import MAX_ROW
from lightllm_mp.sampling_parameters import POOLED
from tests.actors.embedded import Embedded, config, embedded, in_time, mocked
from tests.actors.mock_actor import VOCABULARY, LargeMockWorkerActor
from tests.scheduler.mock_worker import expected_score

CONTEXT = LargeMockWorkerActor.context
KV_TOKENS = 3_000_000
BIASES, STOPS, STOP_BYTES = 1024, 16, 1024
"""Upper limits of a request."""


def ids(count: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).integers(1, VOCABULARY, count).astype("<i4").tobytes()


def submit(
    engine: Embedded, prompt: str | bytes, *, n: int = 1, stop: tuple[str, ...] = (), **rules: object
) -> LiveRequest:
    sampling = Sampling(**{"seed": 1, "max_new_tokens": 2, "ignore_eos": True, **rules})  # type: ignore[arg-type]
    return engine.front.frontend.submit(prompt, Terms(sampling, Output(stop=stop), n=n), stream=False)


async def tokens(live: LiveRequest) -> int:
    """Number of tokens of all answers."""
    try:
        return sum(len(answer.ids) for answer in await live.answer())
    finally:
        live.close()


async def step_plans(engine: Embedded) -> list[int]:
    """256 rows after a prefix as long as the context, 64 rows after 17,600 tokens, and several long prompts at once."""
    whole = [submit(engine, ids(CONTEXT - 10), n=64) for _ in range(4)]
    whole += [submit(engine, ids(17_600, 1), n=64), *(submit(engine, ids(CONTEXT - 10, seed)) for seed in range(2, 10))]
    return await asyncio.gather(*map(tokens, whole))


async def prompt_logprobs(engine: Embedded) -> list[int]:
    live = submit(engine, ids(CONTEXT - 10), prompt_logprobs=20)
    pieces = live.prompt_logprobs
    found = [await tokens(live)]
    assert sum(len(piece.ids) // 4 for piece in pieces) == CONTEXT - 10
    return found


async def alternatives(engine: Embedded) -> list[int]:
    """256 rows, with 20 alternatives per token."""
    rules = {"top_logprobs": 20, "max_new_tokens": 60}
    return await asyncio.gather(*(tokens(submit(engine, f"Tell {i}", n=64, **rules)) for i in range(4)))


async def stops(engine: Embedded) -> list[int]:
    """256 rows, each with the largest list of stop strings."""
    letters = random.Random(7)
    lists = [tuple("".join(letters.choices("abcdefgh", k=STOP_BYTES)) for _ in range(STOPS)) for _ in range(4)]
    return await asyncio.gather(*(tokens(submit(engine, "Tell", n=64, stop=stop)) for stop in lists))


async def biases(engine: Embedded) -> list[int]:
    """256 rows, each with the largest logit_bias."""
    column = np.resize(np.arange(VOCABULARY, dtype="<i4"), BIASES)
    rules = {"bias_ids": column.tobytes(), "bias_values": np.ones(BIASES, "<f4").tobytes()}
    return await asyncio.gather(*(tokens(submit(engine, f"Tell {i}", n=64, **rules)) for i in range(4)))


async def texts(engine: Embedded) -> list[int]:
    """A text with the most characters of a prompt, and one with the most tokens; both are served and counted."""
    front = engine.front.frontend
    too_long = submit(engine, "9" * 16 * (CONTEXT - 1))
    with pytest.raises(PromptTooLong):
        await tokens(too_long)
    with pytest.raises(PromptTooLong):
        await front.count("9" * 16 * (CONTEXT - 1))
    assert await front.count("9" * (CONTEXT - 1)) == CONTEXT - 1
    return [await tokens(submit(engine, "9" * (CONTEXT - 10)))]


KINDS = (step_plans, prompt_logprobs, alternatives, stops, biases, texts)


async def everything(engine: Embedded) -> list[list[int]]:
    kinds: list[Awaitable[list[int]]] = [kind(engine) for kind in KINDS]
    return [await kind for kind in kinds]


@in_time
async def test_no_size_ends_a_process(tmp_path: Path) -> None:
    plan = mocked(topology(front=EMBEDDED), "tests.actors.mock_actor:LargeMockWorkerActor")
    async with embedded(tmp_path, config(kv_tokens=KV_TOKENS, watchdog_timeout=10.0), plan) as engine:
        whole = await everything(engine)
        assert sum(engine.supervisor.restarts.values()) == 0
        assert whole == [[128] * 5 + [2] * 8, [2], [64 * 60] * 4, [128] * 4, [128] * 4, [2]]
        await engine.until_idle()


@in_time
async def test_nor_does_one_after_a_repair(tmp_path: Path) -> None:
    """Every request is submitted again, with the ids that it has."""
    plan = mocked(topology(front=EMBEDDED), "tests.actors.mock_actor:LargeMockWorkerActor")
    settings = config(kv_tokens=KV_TOKENS, watchdog_timeout=10.0)
    async with embedded(tmp_path, settings, plan) as engine:
        rules = {"top_logprobs": 20, "max_new_tokens": 300}
        lives = [submit(engine, ids(17_600, seed), n=64, **rules) for seed in range(3)]
        lives += [submit(engine, ids(CONTEXT - 400, 9), max_new_tokens=300, prompt_logprobs=20)]
        asking = [asyncio.create_task(tokens(live)) for live in lives]
        for name in ("router", "detokenizer", "worker0"):
            before = [len(live.order) for live in lives]
            while all(len(live.order) <= 64 + count for live, count in zip(lives, before, strict=True)):
                await asyncio.sleep(0.01)
            engine.kill(name)
        assert await asyncio.gather(*asking) == [64 * 300] * 3 + [300]
        assert sum(engine.supervisor.restarts.values()) == 3


@in_time
async def test_the_longest_rows_of_numbers(tmp_path: Path) -> None:
    """Steps have as many rows as their answers can hold, and a repair happens while they are in flight."""
    plan = mocked(topology(front=EMBEDDED), "tests.actors.mock_actor:EmbeddingMockWorkerActor")
    prompts = [ids(1 + seed % 40, seed) for seed in range(500)]
    async with embedded(tmp_path, config(kv_tokens=100_000, watchdog_timeout=10.0), plan) as engine:
        terms = Terms(POOLED, task="embed")
        lives = [engine.front.frontend.submit(prompt, terms, stream=False) for prompt in prompts]
        await lives[40].answer()
        engine.kill("router")
        for prompt, live in zip(prompts, lives, strict=True):
            row = np.frombuffer((await live.answer())[0].pooled, "<f4")
            assert row.shape == (MAX_ROW,)
            assert (row == np.float32(expected_score(np.frombuffer(prompt, "<i4").tolist()))).all()
            live.close()
        assert sum(engine.supervisor.restarts.values()) == 1
        await engine.until_idle()
