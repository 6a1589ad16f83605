"""The actor of an asyncio loop. Apart from base.py, so that actors without a loop do without asyncio."""

from __future__ import annotations

import asyncio
from typing import Any

from lightllm_mp.actors.runtime.actor import Actor
from lightllm_mp.actors.runtime.mailbox import Mailbox
from lightllm_mp.actors.runtime.stats_page import StatsPage
from lightllm_mp.shm import Record


class AsyncActor(Actor):
    """Works on messages in an asyncio loop, beside whatever else the loop does."""

    def __init__(self, mailbox: Mailbox, stats: StatsPage) -> None:
        super().__init__(mailbox, stats)
        self._end = asyncio.Event()
        self._failure: BaseException | None = None

    def listen(self) -> None:
        """Work on messages in the running loop from now on."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._on_stray_error)
        self.mailbox.listen(loop, self._on_records)

    def after_records(self) -> None:
        """Called after every batch of messages, and when a lane may have room again."""

    def fail(self, error: BaseException) -> None:
        """A bug: `until_stopped` raises it, and the process ends."""
        self._failure = self._failure or error
        self._end.set()

    def _on_stray_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An exception that no callback and no task has caught: the loop logs it and goes on. Not without memory: what
        else was dropped with the MemoryError is known to nobody."""
        if isinstance(error := context.get("exception"), MemoryError):
            self.fail(error)
        loop.default_exception_handler(context)

    async def until_stopped(self) -> None:
        """Returns after Stop; raises what went wrong in the work on messages."""
        await self._end.wait()
        if self._failure is not None:
            raise self._failure

    def _on_records(self, records: list[Record]) -> None:
        if self._failure is not None:
            return  # what was lost with the bug leaves gaps in all that follows: clients must not see it
        try:
            self.handle(self.mailbox.decode(records))
            self.mailbox.flush()
            self.after_records()
        except Exception as error:  # a loop would log it and go on; an actor ends on a bug
            self.fail(error)
        if self.stopped:
            self._end.set()
