"""Uncaught errors in an actor's loop: a MemoryError ends the actor, others are logged."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lightllm_mp.actors.runtime.async_actor import AsyncActor


class Deaf:
    """A mailbox that gets nothing."""

    def listen(self, loop: Any, deliver: Any) -> None:
        pass


def stray(error: Exception, *, in_a_task: bool) -> None:
    """Raise it where no code catches it."""

    def call() -> None:
        raise error

    async def work() -> None:
        raise error

    loop = asyncio.get_running_loop()
    loop.call_soon((lambda: loop.create_task(work())) if in_a_task else call)


@pytest.mark.parametrize("in_a_task", [True, False])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_actor_without_memory_ends(in_a_task: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        actor = AsyncActor(Deaf(), None)  # type: ignore[arg-type]
        actor.listen()
        stray(ValueError("one connection's trouble"), in_a_task=in_a_task)
        for _ in range(4):
            await asyncio.sleep(0)
        ending = asyncio.create_task(actor.until_stopped())
        await asyncio.sleep(0)
        assert not ending.done()
        stray(MemoryError(), in_a_task=in_a_task)
        with pytest.raises(MemoryError):
            await asyncio.wait_for(ending, 20.0)

    asyncio.run(main())
    assert "one connection's trouble" in caplog.text
