"""Disturbances other than a kill: steps that fail or take long, clients that leave, long idle times."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from lightllm_mp.actors.front.live_request import LiveRequest
from lightllm_mp.actors.topology import EMBEDDED, topology
from lightllm_mp.errors import EngineError
from lightllm_mp.messages import Sampling, Terms
from tests.actors.embedded import Embedded, Shared, config, embedded, in_time, mocked, on_shared

STREAMS, TOKENS = 8, 200
ODD = "tests.actors.supervision.odd_actors:"


async def answers(engine: Embedded, count: int = STREAMS) -> list[tuple[list[int], str]]:
    return await asyncio.gather(*(engine.collect(engine.submit(f"Tell {i}", TOKENS, seed=i)) for i in range(count)))


def restarts(engine: Embedded) -> int:
    return sum(engine.supervisor.restarts.values())


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared[Embedded]]:
    engine = Shared(lambda: embedded(tmp_path_factory.mktemp("shared")))
    yield engine
    engine.close()


@on_shared
async def test_requests_that_wait_for_a_tokenizer_that_dies(engine: Embedded) -> None:
    undisturbed, before = await answers(engine, 50), restarts(engine)
    os.kill(engine.pid("tokenizer"), signal.SIGSTOP)
    waiting = asyncio.create_task(answers(engine, 50))
    while engine.front.frontend.live < 50:
        await asyncio.sleep(0)
    engine.kill("tokenizer")
    assert await waiting == undisturbed
    assert restarts(engine) == before + 1


@in_time
async def test_a_step_without_memory_costs_time_and_no_request(tmp_path: Path) -> None:
    plan = mocked(topology(front=EMBEDDED), ODD + "OutOfMemoryActor")
    async with embedded(tmp_path, plan=plan) as engine:
        disturbed = await answers(engine)
        assert restarts(engine) == 1
        assert await answers(engine) == disturbed
        assert [len(ids) for ids, _ in disturbed] == [TOKENS] * STREAMS
        assert (await engine.until_idle())["kv_used"] == 0


@in_time
async def test_many_texts_do_not_make_the_tokenizer_look_hung(tmp_path: Path) -> None:
    """It answers pings between texts. All texts take 7 s, and it may be silent for 2 s."""
    plan = mocked(mocked(topology(front=EMBEDDED)), ODD + "SlowTokenizerActor", "tokenizer")
    children = tuple(dataclasses.replace(child, patience=2.0) for child in plan.children)
    async with embedded(tmp_path, config(watchdog_timeout=1.0), dataclasses.replace(plan, children=children)) as engine:
        counts = await asyncio.gather(*(engine.front.frontend.count(f"Tell {number}") for number in range(28)))
        assert len(counts) == 28
        assert restarts(engine) == 0


@in_time
async def test_a_slow_step_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The step takes longer than the watchdog's time, but less than a worker's patience: health reports it, and no
    process is killed."""
    plan = mocked(topology(front=EMBEDDED), ODD + "SlowStepActor")
    with caplog.at_level(logging.WARNING, "lightllm_mp.supervisor"):
        async with embedded(tmp_path, config(watchdog_timeout=2.5), plan) as engine:
            pid, asked = engine.pid("worker0"), asyncio.create_task(answers(engine))
            while engine.front.frontend.ready:
                await asyncio.sleep(0.01)
            assert engine.front.frontend.trouble == "worker0 does not answer"
            assert [len(ids) for ids, _ in await asked] == [TOKENS] * STREAMS
            while not engine.front.frontend.ready:
                await asyncio.sleep(0.01)
            assert (engine.pid("worker0"), restarts(engine)) == (pid, 0)
    assert "worker0 has not answered for" in caplog.text


@in_time
async def test_after_a_long_idle_time_a_long_prompt_is_served(tmp_path: Path) -> None:
    """The engine is idle for several watchdog timeouts: health depends on answers to pings, not on tokens."""
    async with embedded(tmp_path, config(watchdog_timeout=2.5)) as engine:
        await asyncio.sleep(6.0)
        assert engine.front.frontend.ready
        ids, _ = await engine.collect(engine.submit("x" * 4000, 20))
        assert len(ids) == 20
        assert engine.front.frontend.ready
        assert restarts(engine) == 0


async def before_it_is_tokenized(live: LiveRequest) -> None:
    """Leave at once."""


async def at_prefill(live: LiveRequest) -> None:
    while not live.scheduled:
        await asyncio.sleep(0)


async def in_the_middle(live: LiveRequest) -> None:
    for _ in range(5):
        await anext(live)


async def at_the_last_token(live: LiveRequest) -> None:
    async for event in live:
        if event.count == 12:
            return


STAGES = (before_it_is_tokenized, at_prefill, in_the_middle, at_the_last_token)


def footprint(engine: Embedded) -> dict[str, int]:
    """Number of descriptors of every process."""
    pids = {**engine.supervisor.pids, "front": os.getpid()}
    return {name: len(os.listdir(f"/proc/{pid}/fd")) for name, pid in pids.items()}


@on_shared
async def test_clients_that_leave_at_every_stage(engine: Embedded) -> None:
    """After 450 requests, every slot, lease and descriptor is free again."""

    async def leave(number: int, stage: Callable[[LiveRequest], Awaitable[None]]) -> None:
        live = engine.submit(f"{number} " * (1 + number % 40), 12, seed=number)
        await stage(live)
        live.close()
        live.close()

    await asyncio.gather(*(leave(number, STAGES[number % 4]) for number in range(50)))
    before = (await engine.until_idle())["kv_used"], footprint(engine), restarts(engine)
    for first in range(0, 400, 50):
        await asyncio.gather(*(leave(number, STAGES[number % 4]) for number in range(first, first + 50)))
    assert ((await engine.until_idle())["kv_used"], footprint(engine), restarts(engine)) == before
    assert (engine.front.mailbox.leased, engine.front.mailbox.backlog, engine.front.frontend.live) == (0, 0, 0)


@on_shared
async def test_several_answers_of_which_one_has_ended(engine: Embedded) -> None:
    partly = 0
    for number in range(20):
        # End-of-sequence ids are sampled: one of the four answers ends long before the others.
        rules = Sampling(seed=4 * number, max_new_tokens=3000, temperature=1.0)
        live = engine.front.frontend.submit(f"Tell {number}", Terms(rules, n=4))
        async for event in live:
            if event.finish is not None:
                break
        partly += 0 < live.open < 4  # on a busy machine, others may have ended before the event arrives
        live.close()
    assert partly > 5
    assert (await engine.until_idle())["kv_used"] == 0


@in_time
async def test_logits_that_are_not_finite_fail_their_request_only(tmp_path: Path) -> None:
    plan = mocked(topology(front=EMBEDDED), ODD + "NanActor")
    async with embedded(tmp_path, plan=plan) as engine:
        undisturbed = await answers(engine)
        beside = asyncio.create_task(answers(engine))
        for n in (1, 3):
            sampling = Sampling(seed=1, temperature=1.0, max_new_tokens=50)
            live = engine.front.frontend.submit("Tell", Terms(sampling, n=n))
            with pytest.raises(EngineError) as caught:
                await engine.collect(live)
            assert (caught.value.status, caught.value.code) == (500, "invalid_logits")
        assert await beside == undisturbed
        numbers = await engine.until_idle()
        assert 2 <= numbers["invalid_logits"] <= 4
        assert restarts(engine) == 0
