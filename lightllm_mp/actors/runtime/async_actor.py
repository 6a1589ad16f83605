"""The base of actors that run in an asyncio loop. A module of its own: other actors do not import asyncio."""

from __future__ import annotations

import asyncio
from typing import Any

from lightllm_mp.actors.runtime.actor import Actor
from lightllm_mp.actors.runtime.mailbox import Mailbox
from lightllm_mp.actors.runtime.stats_page import StatsPage
from lightllm_mp.shm import Record


class AsyncActor(Actor):
    """Handles messages in an asyncio loop, beside the loop's other work."""

    def __init__(self, mailbox: Mailbox, stats: StatsPage) -> None:
        super().__init__(mailbox, stats)
        self._end = asyncio.Event()
        self._failure: BaseException | None = None

    def listen(self) -> None:
        """Handle messages in the running loop from now on."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._on_stray_error)
        self.mailbox.listen(loop, self._on_records)

    def after_records(self) -> None:
        """Called after every batch of messages, and when a full lane may have space again."""

    def fail(self, error: BaseException) -> None:
        """Report a bug: `until_stopped` raises it, and the process ends."""
        self._failure = self._failure or error
        self._end.set()

    def _on_stray_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An exception that no callback or task caught: the loop logs it and goes on. A MemoryError ends the actor: it
        may have dropped other work too."""
        if isinstance(error := context.get("exception"), MemoryError):
            self.fail(error)
        loop.default_exception_handler(context)

    async def until_stopped(self) -> None:
        """Return after Stop. Raises the first exception from handling messages."""
        await self._end.wait()
        if self._failure is not None:
            raise self._failure

    def _on_records(self, records: list[Record]) -> None:
        if self._failure is not None:
            return  # the bug lost messages: clients must not see answers with gaps
        try:
            self.handle(self.mailbox.decode(records))
            self.mailbox.flush()
            self.after_records()
        except Exception as error:  # the loop would only log it; an actor ends on a bug
            self.fail(error)
        if self.stopped:
            self._end.set()
