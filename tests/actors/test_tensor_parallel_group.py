"""Ranks live and die together: whatever happens to one, every stream goes on as if nothing had happened."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

import msgspec
import pytest
from embedded import Embedded, config, embedded, in_time, mocked

from lightllm_mp.actors.supervisor import State
from lightllm_mp.actors.topology import EMBEDDED, Topology, topology
from lightllm_mp.config import Config

STREAMS, TOKENS = 16, 400
RANKS = 2


def settings(**values: float) -> Config:
    base = config(**values)  # type: ignore[arg-type]
    return msgspec.structs.replace(base, engine=msgspec.structs.replace(base.engine, tp=RANKS))


def plan() -> Topology:
    whole = topology(ranks=RANKS, front=EMBEDDED, max_body=1 << 20)
    return mocked(whole, program="tests.actors.rank_actor:MockRankActor")


async def streams(engine: Embedded) -> list[asyncio.Task[tuple[list[int], str]]]:
    lives = [engine.submit(f"Tell me number {i} " * (1 + i % 5), TOKENS, seed=i) for i in range(STREAMS)]
    return [asyncio.create_task(engine.collect(live)) for live in lives]


async def undisturbed(engine: Embedded) -> list[tuple[list[int], str]]:
    found = await asyncio.gather(*await streams(engine))
    assert all(len(ids) == TOKENS for ids, _ in found)
    return found


@pytest.mark.parametrize("run_ahead", [0, 1])
@in_time
async def test_a_killed_rank_takes_the_others_along(tmp_path: Path, run_ahead: int) -> None:
    async with embedded(tmp_path, settings(run_ahead=run_ahead), plan()) as engine:
        expected = await undisturbed(engine)
        for victim in ("worker0", "worker1"):
            before = {name: engine.pid(name) for name in ("worker0", "worker1", "router")}
            tasks = await streams(engine)
            await asyncio.sleep(random.random() / 4)
            engine.kill(victim)
            assert await asyncio.gather(*tasks) == expected
            assert engine.pid("worker0") != before["worker0"]
            assert engine.pid("worker1") != before["worker1"]
            assert engine.pid("router") == before["router"]
        assert (await engine.until_idle())["kv_used"] == 0
        assert sum(engine.supervisor._restarts.values()) == 2  # those that were killed with them do not count


@pytest.mark.parametrize("victim", ["worker0", "worker1"])
@in_time
async def test_a_stopped_rank_ends_all(tmp_path: Path, victim: str) -> None:
    """The other one waits for it inside a step and answers nobody either."""
    async with embedded(tmp_path, settings(watchdog_timeout=0.5), plan()) as engine:
        expected = await undisturbed(engine)
        tasks = await streams(engine)
        await asyncio.sleep(0.1)
        old = {engine.pid("worker0"), engine.pid("worker1")}
        os.kill(engine.pid(victim), signal.SIGSTOP)
        assert await asyncio.gather(*tasks) == expected
        assert not old & {engine.pid("worker0"), engine.pid("worker1")}


@pytest.mark.parametrize("victim", ["router", "detokenizer"])
@in_time
async def test_ranks_outlive_the_others(tmp_path: Path, victim: str) -> None:
    """They stop after the same step, though each is told on its own; the prefix tree and the KV memory stay."""
    async with embedded(tmp_path, settings(run_ahead=1), plan()) as engine:
        expected = await undisturbed(engine)
        pids = [engine.pid("worker0"), engine.pid("worker1")]
        for _ in range(3):
            tasks = await streams(engine)
            await asyncio.sleep(random.random() / 4)
            engine.kill(victim)
            assert await asyncio.gather(*tasks) == expected
        replaced = [engine.pid(name) != pid for name, pid in zip(("worker0", "worker1"), pids, strict=True)]
        # A router that dies between two sends leaves one rank in a step that the other one never gets.
        assert replaced == [False, False] or (victim == "router" and replaced == [True, True])


@in_time
async def test_a_plan_that_not_every_rank_got(tmp_path: Path) -> None:
    """A router that dies between two sends: who got the plan would wait in it for ever."""
    async with embedded(tmp_path, settings(), plan()) as engine:
        expected = await undisturbed(engine)
        tasks = await streams(engine)
        await asyncio.sleep(0.1)
        old = {engine.pid("worker0"), engine.pid("worker1")}
        engine.supervisor._crew._before["worker0"] -= 1  # its lane seems to hold one plan more
        engine.kill("router")
        assert await asyncio.gather(*tasks) == expected
        assert not old & {engine.pid("worker0"), engine.pid("worker1")}


@in_time
async def test_a_rank_dies_while_the_crew_is_being_replaced(tmp_path: Path) -> None:
    async with embedded(tmp_path, settings(), plan()) as engine:
        expected = await undisturbed(engine)
        tasks = await streams(engine)
        await asyncio.sleep(0.1)
        old = engine.pid("worker0")
        engine.kill("worker1")
        while engine.pid("worker0") == old:
            await asyncio.sleep(0.005)
        engine.kill("worker0")
        engine.kill("router")
        assert await asyncio.gather(*tasks) == expected


@in_time
async def test_nothing_is_left_behind(tmp_path: Path) -> None:
    before = set(os.listdir("/dev/shm"))
    descriptors = sorted(os.listdir("/proc/self/fd"))
    async with embedded(tmp_path, settings(), plan()) as engine:
        pids = [engine.pid("worker0"), engine.pid("worker1")]
        engine.kill("worker0")
        await engine.until(State.REPAIRING)
        await engine.until(State.RUNNING)
        pids += [engine.pid("worker0"), engine.pid("worker1")]
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert set(os.listdir("/dev/shm")) == before
    assert sorted(os.listdir("/proc/self/fd")) == descriptors
