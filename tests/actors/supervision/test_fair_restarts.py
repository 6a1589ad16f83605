"""The cost of a death: real processes that a request kills, that the system refuses, or that are dispensable."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import pytest

from lightllm_mp.actors.supervision import restart_budget
from lightllm_mp.actors.supervision.state_machine import EXIT_GAVE_UP, State
from lightllm_mp.actors.topology import EMBEDDED, SUPERVISOR, topology
from lightllm_mp.config import Config
from lightllm_mp.errors import EngineError, Unavailable
from tests.actors.embedded import Embedded, config, embedded, in_time, mocked
from tests.actors.supervision.odd_actors import POISON
from tests.actors.visual.seeing import png, seeing, with_images

POISONED = mocked(topology(front=EMBEDDED, max_body=1 << 20), "tests.actors.supervision.odd_actors:PoisonedActor")
T = TypeVar("T")
LONG = 1000.0
"""Length of a restart window in seconds that no test exceeds, however busy the machine."""


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restart_budget, "FIRST_PAUSE", 0.1)


def strict(**settings: float) -> Config:
    """An operator's restart settings, except that no restart is forgotten."""
    return config(**{"max_restarts": 3, "restart_window": LONG, **settings})


async def served(engine: Embedded, work: Awaitable[T]) -> T:
    """The result of `work`. Fails at once if the server ends before."""
    task = asyncio.ensure_future(work)
    await asyncio.wait({task, engine.running}, return_when=asyncio.FIRST_COMPLETED)
    assert not engine.running.done(), engine.supervisor.reason
    return await task


async def until(engine: Embedded, condition: Callable[[], bool]) -> None:
    """Wait for a condition. Fails at once if the server ends before."""
    while not condition():
        assert not engine.running.done(), engine.supervisor.reason
        await asyncio.sleep(0.01)


async def answer(engine: Embedded, seed: int = 0, tokens: int = 200) -> list[int]:
    return (await engine.collect(engine.submit("Tell me", tokens, seed=seed)))[0]


@in_time
async def test_harmful_requests_one_after_another_do_not_end_the_server(tmp_path: Path) -> None:
    """Each ends the worker three times. The budget is three, and a death that no request caused takes one of it."""
    async with embedded(tmp_path, strict(), POISONED) as engine:
        undisturbed = await answer(engine, tokens=1000)
        engine.kill("worker0")
        assert await answer(engine, tokens=1000) == undisturbed
        for number in range(1, 4):
            poison = engine.submit(POISON, 10)
            other = asyncio.create_task(answer(engine, tokens=1000))
            with pytest.raises(EngineError, match="failed on this request repeatedly"):
                await served(engine, engine.collect(poison))
            assert await served(engine, other) == undisturbed
            assert engine.supervisor.restarts["worker0"] == 1 + 3 * number


@in_time
async def test_clients_that_do_not_wait_for_the_end_of_harmful_requests_do_not_end_the_server(tmp_path: Path) -> None:
    async with embedded(tmp_path, strict(), POISONED) as engine:
        for number in range(1, 6):
            poison = engine.submit(POISON, 10)
            await until(engine, lambda want=number: engine.supervisor.restarts["worker0"] == want)
            poison.close()
            await engine.until(State.RUNNING)
        assert len(await served(engine, answer(engine))) == 200


@in_time
async def test_deaths_without_a_harmful_request_spend_the_budget(tmp_path: Path) -> None:
    async with embedded(tmp_path, strict(), POISONED) as engine:
        for number in range(1, 5):
            assert len(await answer(engine)) == 200
            engine.kill("worker0")
            while engine.supervisor.restarts["worker0"] < number and not engine.running.done():
                await asyncio.sleep(0.01)
            await engine.until(State.RUNNING)
        assert await engine.running == EXIT_GAVE_UP


@in_time
async def test_a_start_that_the_system_refuses_twice_costs_time_and_no_request(tmp_path: Path) -> None:
    """As at a process limit just after an out-of-memory kill. The budget has room only for the death."""
    popen, refusals = subprocess.Popen, [OSError(errno.EAGAIN, "no process left") for _ in range(2)]

    def refusing(*arguments: Any, **named: Any) -> Any:
        if refusals:
            raise refusals.pop()
        return popen(*arguments, **named)

    async with embedded(tmp_path, strict(max_restarts=1)) as engine:
        undisturbed = await asyncio.gather(*(answer(engine, seed, 400) for seed in range(8)))
        asked = asyncio.gather(*(answer(engine, seed, 400) for seed in range(8)))
        await asyncio.sleep(0.05)
        with mock.patch.object(subprocess, "Popen", refusing):
            engine.kill("router")
            assert await served(engine, asked) == undisturbed
        assert (refusals, engine.supervisor.restarts["router"]) == ([], 1)


@in_time
async def test_an_error_in_a_timer_does_not_end_the_watchdog(tmp_path: Path) -> None:
    async with embedded(tmp_path, config(watchdog_timeout=1.5)) as engine:
        page, old = engine.supervisor.wiring.stats[SUPERVISOR], engine.pid("router")
        with mock.patch.object(page, "write", side_effect=ValueError("no room")) as write:
            while not write.called:
                await asyncio.sleep(0.01)
            os.kill(old, signal.SIGSTOP)
            async with asyncio.timeout(30.0):
                await until(engine, lambda: engine.pid("router") != old)
            await engine.until(State.RUNNING)
            assert len(await answer(engine)) == 200


@in_time
async def test_a_visual_actor_that_is_killed_again_and_again_ends_no_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies five times, at its work and at its starts. The front refuses images until it is back, and says why."""
    monkeypatch.setattr(restart_budget, "FIRST_PAUSE", 0.5)  # after the fifth death it is away for 4 s
    async with seeing(tmp_path, with_images(strict())) as s:
        engine, front = s.engine, s.engine.front.frontend
        undisturbed, seen = await answer(engine), await s.ask([png(1)])
        for number in range(1, 6):
            old = engine.pid("visual")
            engine.kill("visual")
            assert await served(engine, answer(engine)) == undisturbed
            await until(engine, lambda want=number: engine.supervisor.restarts["visual"] == want and front.ready)
            if number < 5:
                await until(engine, lambda old=old: engine.pid("visual") != old)
        assert front.state.away == ("visual",)
        assert front.trouble == ""  # text is still served
        with pytest.raises(Unavailable, match="image encoder is not available"):
            s.submit([png(1)])
        assert await served(engine, answer(engine)) == undisturbed
        await until(engine, lambda: front.ready and not front.state.away)
        assert await s.ask([png(1)]) == seen
        assert await served(engine, answer(engine)) == undisturbed
