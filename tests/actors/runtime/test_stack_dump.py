"""A hung actor is replaced, and the log says where it hung."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
from pathlib import Path

import pytest

from lightllm_mp.actors.supervision.state_machine import EXIT_START_FAILED
from lightllm_mp.actors.topology import EMBEDDED, topology
from tests.actors.embedded import config, embedded, in_time, mocked

ACTORS = "tests.actors.runtime.hung_actor:"


async def logged(caplog: pytest.LogCaptureFixture, text: str) -> str:
    while not (found := [r.getMessage() for r in caplog.records if text in r.getMessage()]):
        await asyncio.sleep(0.01)
    return found[0]


@pytest.mark.parametrize(
    ("program", "where"),
    [("LoopingActor", "in spin_for_ever"), ("SleepingActor", "in sleep_for_ever")],
)
@in_time
async def test_the_log_says_where_it_hung(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, program: str, where: str
) -> None:
    plan = mocked(topology(front=EMBEDDED), program=ACTORS + program)
    settings = config(watchdog_timeout=1.0, max_restarts=0)
    with caplog.at_level(logging.ERROR, "lightllm_mp.supervisor"):
        async with embedded(tmp_path, settings, plan) as engine:
            engine.submit("hang", 5)
            stacks = await logged(caplog, "worker0 hung here")
            assert await engine.running != 0
    assert where in stacks
    assert "hung_actor.py" in stacks
    assert "in watch" in stacks  # the other thread
    assert len([r for r in caplog.records if "has not answered" in r.getMessage() and "killed" in r.getMessage()]) == 1


@in_time
async def test_a_stopped_actor_says_nothing_and_is_killed_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "lightllm_mp.supervisor"):
        plan = mocked(topology(front=EMBEDDED), program=ACTORS + "HangingActor")
        async with embedded(tmp_path, config(watchdog_timeout=1.0), plan) as engine:
            old = engine.pid("router")
            os.kill(old, signal.SIGSTOP)
            assert "it cannot say" in await logged(caplog, "router hung here")
            while engine.pid("router") == old:
                await asyncio.sleep(0.01)


@in_time
async def test_a_start_that_hangs_says_where(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plan = mocked(topology(front=EMBEDDED), program=ACTORS + "SlowStartActor")
    with caplog.at_level(logging.ERROR, "lightllm_mp.supervisor"):
        async with embedded(tmp_path, config(start_timeout=6.0), plan) as engine:
            assert await engine.running == EXIT_START_FAILED
            # On a busy machine others may be late, too.
            assert re.fullmatch(r"start failed: .*\bworker0 not ready after 6 s", engine.supervisor.reason)
    assert "in __init__" in await logged(caplog, "worker0 hung here")
