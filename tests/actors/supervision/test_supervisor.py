"""A crash costs time, but never a request: real processes are killed and stopped while streams run."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from lightllm_mp.actors.supervision import restart_budget, supervisor
from lightllm_mp.actors.supervision.state_machine import EXIT_GAVE_UP, EXIT_START_FAILED, State
from lightllm_mp.actors.topology import EMBEDDED, topology
from lightllm_mp.errors import PromptTooLong
from lightllm_mp.messages import Guide, Loading
from tests.actors.embedded import Embedded, Shared, config, embedded, in_time, mocked, on_shared

STREAMS, TOKENS = 16, 400
ACTORS = ("tokenizer", "router", "detokenizer", "worker0", "guide")
WORDS = "([a-z]{2,9} |the same long text again and again )*"
GUIDES = (None, None, Guide("regex", WORDS), Guide("regex", WORDS, jump=True))


async def streams(engine: Embedded) -> list[asyncio.Task[tuple[list[int], str]]]:
    """Start the streams. Half of them are constrained."""
    prompts = [f"Tell me number {i} " * (1 + i % 5) for i in range(STREAMS)]
    lives = [engine.submit(prompt, TOKENS, seed=i, guide=GUIDES[i % 4]) for i, prompt in enumerate(prompts)]
    return [asyncio.create_task(engine.collect(live)) for live in lives]


def descriptors() -> list[str]:
    """The open descriptors of this process."""
    links = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sorted(links)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared[Embedded]]:
    engine = Shared(lambda: embedded(tmp_path_factory.mktemp("shared")))
    yield engine
    engine.close()


@on_shared
async def test_a_killed_actor_loses_no_request(engine: Embedded) -> None:
    undisturbed = await asyncio.gather(*await streams(engine))
    assert all(len(ids) == TOKENS for ids, _ in undisturbed)
    for victim in ACTORS:
        for moment in (0.0, random.random() / 4):
            tasks = await streams(engine)
            await asyncio.sleep(moment)
            engine.kill(victim)
            assert await asyncio.gather(*tasks) == undisturbed
        assert (await engine.until_idle())["kv_used"] == 0


@in_time
async def test_with_run_ahead_and_too_little_memory_for_all(tmp_path: Path) -> None:
    """A step is always in flight at the kill, and not all sequences fit at once."""
    async with embedded(tmp_path, config(run_ahead=1)) as engine:
        undisturbed = await asyncio.gather(*await streams(engine))
    async with embedded(tmp_path, config(run_ahead=1, kv_tokens=3000)) as engine:
        for victim in ("router", "worker0"):
            tasks = await streams(engine)
            await asyncio.sleep(0.1)
            engine.kill(victim)
            assert await asyncio.gather(*tasks) == undisturbed
        assert (await engine.until_idle())["kv_used"] == 0


@in_time
async def test_the_stdlib_ring_carries_an_engine_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with embedded(tmp_path) as engine:
        undisturbed = await asyncio.gather(*await streams(engine))
    monkeypatch.setenv("LIGHTLLM_MP_RING", "python")
    async with embedded(tmp_path) as engine:
        for victim in ("router", "detokenizer"):
            tasks = await streams(engine)
            await asyncio.sleep(0.1)
            engine.kill(victim)
            assert await asyncio.gather(*tasks) == undisturbed


@on_shared
async def test_two_at_once_and_again_during_the_repair(engine: Embedded) -> None:
    undisturbed = await asyncio.gather(*await streams(engine))
    tasks = await streams(engine)
    await asyncio.sleep(0.1)
    engine.kill("router")
    engine.kill("worker0")
    await engine.until(State.REPAIRING)
    await asyncio.sleep(0.05)
    engine.kill("detokenizer")
    assert await asyncio.gather(*tasks) == undisturbed


@in_time
async def test_a_stopped_actor_is_noticed_and_replaced(tmp_path: Path) -> None:
    async with embedded(tmp_path, config(watchdog_timeout=1.5)) as engine:
        undisturbed = await asyncio.gather(*await streams(engine))
        tasks = await streams(engine)
        old = engine.pid("router")
        os.kill(old, signal.SIGSTOP)
        while engine.front.frontend.ready:
            await asyncio.sleep(0.01)
        assert await asyncio.gather(*tasks) == undisturbed
        assert engine.pid("router") != old
        assert engine.front.frontend.ready


@on_shared
async def test_a_corrupt_lane_is_repaired(engine: Embedded) -> None:
    """An invalid record is never skipped silently: the actor that reads it is replaced and gets empty lanes."""
    undisturbed = await asyncio.gather(*await streams(engine))
    for way in (("router", "detokenizer"), ("worker0", "router"), ("tokenizer", "router")):
        restarts = sum(engine.supervisor.restarts.values())
        tasks = await streams(engine)
        await asyncio.sleep(0.02)
        engine.supervisor.wiring.lane(*way).poison()
        engine.supervisor.wiring.bells[way[1]].ring()
        while sum(engine.supervisor.restarts.values()) == restarts:  # the streams may end earlier
            await asyncio.sleep(0.01)
        assert await asyncio.gather(*tasks) == undisturbed
        await engine.until(State.RUNNING)


@on_shared
async def test_after_a_flood_every_lane_and_arena_is_empty_again(engine: Embedded) -> None:
    mailbox = engine.front.mailbox
    for _ in range(3):  # more than 64 KiB of text, so it goes through the arena, and far too many tokens
        live = engine.submit("\N{GRINNING FACE}" * 20_000, TOKENS)
        assert mailbox.leased > 0
        with pytest.raises(PromptTooLong):
            await engine.collect(live)
        live.close()
    lives = [engine.submit(f"{i} " * 50, 50, seed=i) for i in range(64)]
    assert all(len(ids) == 50 for ids, _ in await asyncio.gather(*map(engine.collect, lives)))
    numbers = await engine.until_idle()
    assert (numbers["kv_used"], mailbox.leased, mailbox.backlog) == (0, 0, 0)


@in_time
async def test_a_crash_loop_ends_cleanly(tmp_path: Path) -> None:
    async with embedded(tmp_path, config(max_restarts=1)) as engine:
        engine.kill("router")
        await engine.until(State.REPAIRING)
        await engine.until(State.RUNNING)
        engine.kill("router")
        assert await engine.running == EXIT_GAVE_UP
        assert "restart budget" in engine.supervisor.reason


@in_time
async def test_a_start_that_fails_says_why(tmp_path: Path) -> None:
    plan = mocked(topology(front=EMBEDDED), program="tests.actors.mock_actor:BrokenWorkerActor")
    async with embedded(tmp_path, plan=plan) as engine:
        assert await engine.running == EXIT_START_FAILED
        assert engine.supervisor.reason == "worker0 cannot start: the weights are made of cheese"


@in_time
async def test_a_process_that_cannot_be_started_counts_as_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restart_budget, "FIRST_PAUSE", 0.1)
    failing = mock.patch.object(supervisor, "ChildProcess", side_effect=OSError(errno.EAGAIN, "no more processes"))
    with failing:
        async with embedded(tmp_path) as engine:
            assert await engine.running == EXIT_START_FAILED
            assert "start failed: worker0 cannot be started: " in engine.supervisor.reason
    async with embedded(tmp_path, config(max_restarts=2)) as engine:
        with failing:
            engine.kill("router")
            assert await engine.running == EXIT_GAVE_UP
        assert engine.supervisor.restarts["router"] == 2


@in_time
async def test_a_stage_of_a_start_is_told(tmp_path: Path) -> None:
    shown: list[tuple[str, Loading]] = []
    plan = mocked(topology(front=EMBEDDED), program="tests.actors.supervision.odd_actors:SlowStartActor")
    async with embedded(tmp_path, plan=plan, on_progress=lambda *told: shown.append(told)):
        assert ("worker0", Loading("thinking")) in shown


@in_time
async def test_draining_lets_running_requests_finish(tmp_path: Path) -> None:
    async with embedded(tmp_path) as engine:
        tasks = await streams(engine)
        await asyncio.sleep(0.05)
        engine.supervisor.drain()
        assert all(len(ids) == TOKENS for ids, _ in await asyncio.gather(*tasks))
        assert await engine.running == 0


@in_time
async def test_nothing_is_left_behind(tmp_path: Path) -> None:
    before = (set(os.listdir("/dev/shm")), descriptors())
    async with embedded(tmp_path) as engine:
        pids = [engine.pid(name) for name in ACTORS]
        engine.kill("router")
        await engine.until(State.REPAIRING)
        await engine.until(State.RUNNING)
        pids.append(engine.pid("router"))
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert (set(os.listdir("/dev/shm")), descriptors()) == before
