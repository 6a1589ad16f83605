"""The guide actor dies while it works, because of a request, and repeatedly. Unconstrained answers go on without it."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from time import monotonic

import pytest

from lightllm_mp.actors.front.live_request import LiveRequest
from lightllm_mp.actors.supervision import restart_budget
from lightllm_mp.actors.topology import EMBEDDED, Topology, topology
from lightllm_mp.errors import EngineError, Unavailable
from lightllm_mp.messages import Guide, Output, Sampling, Terms
from tests.actors.embedded import Embedded, embedded, in_time, mocked
from tests.actors.supervision.odd_guides import POISON, SLOW
from tests.actors.supervision.test_fair_restarts import answer, served, strict, until

LETTERS = "[a-f]{60}"


def plan(guide: str, worker: str = "tests.actors.mock_actor:MockWorkerActor") -> Topology:
    usual = topology(front=EMBEDDED, max_body=1 << 20)
    return mocked(mocked(usual, worker), f"tests.actors.supervision.odd_guides:{guide}", "guide")


def guided(engine: Embedded, source: str = LETTERS, seed: int = 0) -> LiveRequest:
    sampling = Sampling(seed=seed, max_new_tokens=200, temperature=1.0)
    return engine.front.frontend.submit("Tell me", Terms(sampling, Output(), guide=Guide("regex", source)))


async def text(engine: Embedded, live: LiveRequest) -> str:
    return (await engine.collect(live))[1]


@in_time
async def test_a_death_while_it_compiles_costs_time_and_no_request(tmp_path: Path) -> None:
    async with embedded(tmp_path, strict(), plan("SlowGuideActor")) as engine:
        undisturbed = await text(engine, guided(engine))
        assert re.fullmatch(LETTERS, undisturbed)
        asked = [asyncio.create_task(text(engine, guided(engine, seed=seed))) for seed in (0, 0, 1)]
        await asyncio.sleep(SLOW / 4)
        engine.kill("guide")
        same, again, other = await served(engine, asyncio.gather(*asked))
        assert same == again == undisturbed
        assert re.fullmatch(LETTERS, other)
        assert engine.supervisor.restarts["guide"] == 1
        await engine.until_idle()


@in_time
async def test_a_guide_that_kills_the_actor_costs_its_own_request(tmp_path: Path) -> None:
    """It costs no restart of the budget."""
    async with embedded(tmp_path, strict(), plan("PoisonedGuideActor")) as engine:
        undisturbed, free = await text(engine, guided(engine)), await answer(engine, tokens=1000)
        for number in range(1, 4):
            poison = guided(engine, POISON)
            others = asyncio.gather(answer(engine, tokens=1000), text(engine, guided(engine)))
            with pytest.raises(EngineError, match="failed on this request repeatedly"):
                await served(engine, engine.collect(poison))
            assert await served(engine, others) == [free, undisturbed]
            assert engine.supervisor.restarts["guide"] == 3 * number
        assert not engine.front.frontend.state.away


@in_time
async def test_answers_without_a_constraint_do_not_wait_for_its_start(tmp_path: Path) -> None:
    async with embedded(
        tmp_path, strict(), plan("SlowStartGuideActor", "tests.actors.mock_actor:PacedLargeMockWorkerActor")
    ) as engine:
        undisturbed, free = await text(engine, guided(engine)), await answer(engine, tokens=50)
        live, pauses, last = engine.submit("Tell me", 500), [], monotonic()
        killed, waits = 0.0, None
        async for _ in live:
            now = monotonic()
            pauses.append(now - last)
            last = now
            if len(pauses) == 20:
                engine.kill("guide")
                killed = now
            if killed and waits is None and engine.supervisor.restarts["guide"] and engine.front.frontend.ready:
                waits = asyncio.create_task(text(engine, guided(engine)))
                assert await answer(engine, tokens=50) == free
                assert not waits.done()
                assert monotonic() - killed < SLOW, "this machine is too busy for this test"
        live.close()
        assert max(pauses[1:]) < SLOW
        assert waits is not None
        assert await served(engine, waits) == undisturbed
        assert monotonic() - killed > SLOW


@in_time
async def test_while_it_is_away_constraints_are_refused_and_other_answers_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies five times in a row, while it works and while it starts."""
    monkeypatch.setattr(restart_budget, "FIRST_PAUSE", 0.5)  # after the fifth death it is away for 4 s
    async with embedded(tmp_path, strict(), mocked(topology(front=EMBEDDED, max_body=1 << 20))) as engine:
        front = engine.front.frontend
        undisturbed, free = await text(engine, guided(engine)), await answer(engine)
        waits = None
        for number in range(1, 6):
            old = engine.pid("guide")
            engine.kill("guide")
            await until(engine, lambda want=number: engine.supervisor.restarts["guide"] == want and front.ready)
            waits = waits or guided(engine)
            assert await served(engine, answer(engine)) == free
            if number < 5:
                await until(engine, lambda old=old: engine.pid("guide") != old)
        assert front.state.away == ("guide",)
        assert waits is not None
        with pytest.raises(Unavailable, match="constraints are not available"):
            await served(engine, engine.collect(waits))
        with pytest.raises(Unavailable, match="constraints are not available"):
            guided(engine)
        assert await served(engine, answer(engine)) == free
        await until(engine, lambda: front.ready and not front.state.away)
        assert await text(engine, guided(engine)) == undisturbed
