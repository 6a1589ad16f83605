"""Ranks are replaced together: when one of them fails, every stream goes on without a difference."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import msgspec
import pytest

from lightllm_mp.actors.supervision.shared_memory import SharedMemory
from lightllm_mp.actors.supervision.state_machine import State
from lightllm_mp.actors.supervision.worker_group import WorkerGroup
from lightllm_mp.actors.topology import EMBEDDED, ROUTER, Topology, topology
from lightllm_mp.config import Config
from lightllm_mp.errors import StartupError
from lightllm_mp.shm import Sender
from tests.actors.embedded import Embedded, Shared, config, embedded, in_time, mocked, on_shared

STREAMS, TOKENS = 16, 400
RANKS = 2


def settings(**values: float) -> Config:
    base = config(**values)  # type: ignore[arg-type]
    return msgspec.structs.replace(base, engine=msgspec.structs.replace(base.engine, tp=RANKS))


def plan() -> Topology:
    whole = topology(ranks=RANKS, front=EMBEDDED, max_body=1 << 20)
    return mocked(whole, program="tests.actors.supervision.rank_actor:MockRankActor")


async def streams(engine: Embedded) -> list[asyncio.Task[tuple[list[int], str]]]:
    lives = [engine.submit(f"Tell me number {i} " * (1 + i % 5), TOKENS, seed=i) for i in range(STREAMS)]
    return [asyncio.create_task(engine.collect(live)) for live in lives]


async def undisturbed(engine: Embedded) -> list[tuple[list[int], str]]:
    found = await asyncio.gather(*await streams(engine))
    assert all(len(ids) == TOKENS for ids, _ in found)
    return found


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared[Embedded]]:
    """An engine that plans a step ahead."""
    engine = Shared(lambda: embedded(tmp_path_factory.mktemp("shared"), settings(run_ahead=1), plan()))
    yield engine
    engine.close()


async def kill_each_rank(engine: Embedded) -> None:
    expected, restarts = await undisturbed(engine), sum(engine.supervisor.restarts.values())
    for victim in ("worker0", "worker1"):
        before = {name: engine.pid(name) for name in ("worker0", "worker1", "router")}
        tasks = await streams(engine)
        await asyncio.sleep(random.random() / 4)
        engine.kill(victim)
        assert await asyncio.gather(*tasks) == expected
        while any(engine.pid(name) == before[name] for name in ("worker0", "worker1")):
            await asyncio.sleep(0.01)  # all answers may have arrived before the kill
        assert engine.pid("router") == before["router"]
    assert (await engine.until_idle())["kv_used"] == 0
    # Ranks that were killed with another one do not count.
    assert sum(engine.supervisor.restarts.values()) == restarts + 2


@in_time
async def test_a_killed_rank_takes_the_others_along(tmp_path: Path) -> None:
    async with embedded(tmp_path, settings(run_ahead=0), plan()) as engine:
        await kill_each_rank(engine)


@on_shared
async def test_a_killed_rank_with_a_step_planned_ahead(engine: Embedded) -> None:
    await kill_each_rank(engine)


@in_time
async def test_a_stopped_rank_ends_all(tmp_path: Path) -> None:
    """The other rank waits for it inside a step, so it answers no ping either."""
    async with embedded(tmp_path, settings(watchdog_timeout=1.0), plan()) as engine:
        expected = await undisturbed(engine)
        for victim in ("worker0", "worker1"):
            tasks = await streams(engine)
            await asyncio.sleep(0.1)
            old = {engine.pid("worker0"), engine.pid("worker1")}
            os.kill(engine.pid(victim), signal.SIGSTOP)
            assert await asyncio.gather(*tasks) == expected
            assert not old & {engine.pid("worker0"), engine.pid("worker1")}


@on_shared
async def test_ranks_outlive_the_others(engine: Embedded) -> None:
    """Ranks stop after the same step, though each gets its own Reset. The prefix tree and the KV memory stay."""
    expected = await undisturbed(engine)
    for victim in ("router", "detokenizer"):
        pids = [engine.pid("worker0"), engine.pid("worker1")]
        for _ in range(3):
            tasks = await streams(engine)
            await asyncio.sleep(random.random() / 4)
            engine.kill(victim)
            assert await asyncio.gather(*tasks) == expected
        replaced = [engine.pid(name) != pid for name, pid in zip(("worker0", "worker1"), pids, strict=True)]
        # A router that dies between two sends leaves one rank in a step that the other one never gets.
        assert replaced == [False, False] or (victim == "router" and replaced == [True, True])


@on_shared
async def test_a_plan_that_not_every_rank_got(engine: Embedded) -> None:
    """If a router dies between two sends, a rank that got the plan would wait in it forever."""
    expected = await undisturbed(engine)
    tasks = await streams(engine)
    await asyncio.sleep(0.1)
    old = {engine.pid("worker0"), engine.pid("worker1")}
    with mock.patch.object(WorkerGroup, "torn", True):
        engine.kill("router")
        assert await asyncio.gather(*tasks) == expected
    assert not old & {engine.pid("worker0"), engine.pid("worker1")}


def test_sends_to_every_rank_are_counted_in_an_epoch() -> None:
    with contextlib.ExitStack() as stack:
        wiring = stack.enter_context(contextlib.closing(SharedMemory(topology(ranks=RANKS, front=EMBEDDED))))
        group = stack.enter_context(contextlib.closing(WorkerGroup(("worker0", "worker1"), wiring)))
        senders = {
            name: Sender(wiring.lane(ROUTER, name), wiring.bells[ROUTER], wiring.bells[name]) for name in group.members
        }
        torn = [group.torn]
        for name in ("worker0", "worker1", "worker1"):
            assert senders[name].try_put(b"plan")
            torn.append(group.torn)
        group.begin()  # the epoch in which a router sent one rank more than the other is over
        assert [*torn, group.torn] == [False, True, False, True, False]
        for sender in senders.values():
            sender.close()


@on_shared
async def test_a_rank_dies_while_the_group_is_being_replaced(engine: Embedded) -> None:
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


def test_a_refused_meeting_place_leaves_the_one_before() -> None:
    """It is tried again, and closed once."""
    with contextlib.closing(SharedMemory(topology(ranks=RANKS, front=EMBEDDED))) as wiring:
        group = WorkerGroup(("worker0", "worker1"), wiring)
        refused = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        with mock.patch.object(os, "memfd_create", side_effect=refused), pytest.raises(OSError, match="open files"):
            group.part()
        os.fstat(group.meeting)
        group.part()
        group.close()


def test_ranks_of_several_machines_meet_at_a_new_address_each_time() -> None:
    members = ("worker0", "node1")
    with contextlib.closing(SharedMemory(topology(ranks=2, nodes=2, front=EMBEDDED))) as wiring:
        with contextlib.closing(WorkerGroup(members, wiring, "127.0.0.1")) as group:
            first, before = group.address, group.meeting
            socket.create_connection(("127.0.0.1", int(first.rpartition(":")[2]))).close()
            group.part()
            assert group.address != first
            with pytest.raises(OSError, match="Connection refused"):
                socket.create_connection(("127.0.0.1", int(first.rpartition(":")[2])))
            assert group.meeting != before
        with pytest.raises(StartupError, match="the ranks have no place to meet"):
            WorkerGroup(members, wiring, "203.0.113.1")
