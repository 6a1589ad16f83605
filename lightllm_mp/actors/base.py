"""The life of an actor inside its process: start, say Ready, work on messages epoch after epoch, leave on Stop.

A subclass has `start`, `on_begin`, `on_reset` and `on_message`. A request error is an EngineError raised by
`on_message`'s own code and answered there; every other exception is a bug: it ends the process with a traceback, and
the supervisor replaces it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from lightllm_mp.actors.mailbox import Mailbox, Received
from lightllm_mp.actors.stats import StatsPage
from lightllm_mp.actors.topology import SUPERVISOR
from lightllm_mp.messages import Begin, Facts, Loading, Ping, Pong, Ready, Reset, ResetDone, Stop, Wire
from lightllm_mp.shm import Record

log = logging.getLogger("lightllm_mp.actor")


class Actor:
    """What blocking actors and the asyncio front share: the control protocol."""

    def __init__(self, mailbox: Mailbox, stats: StatsPage) -> None:
        self.mailbox = mailbox
        self.stats = stats
        self.live = False
        """Between Begin and Reset: data lanes may be used."""
        self.stopped = False

    # --- for subclasses -----------------------------------------------------------------------------------------------

    def start(self) -> Facts:
        """Everything expensive, before Ready. Raises EngineError with the reason when it cannot work."""
        return Facts()

    def on_begin(self, begin: Begin) -> None:
        """A new epoch: lanes are fresh."""

    def on_reset(self) -> None:
        """Drop all request state."""

    def on_message(self, peer: str, message: Wire) -> None:
        """A message of this epoch."""

    def on_plan(self, plan: bytes) -> None:
        """Raw bytes: a step plan."""

    def on_control(self, message: Wire) -> None:
        """A control message that not every actor gets (Health)."""

    # --- the protocol -------------------------------------------------------------------------------------------------

    def report(self, what: str, done: int, total: int) -> None:
        """Progress of a long start, shown by the supervisor."""
        self.mailbox.send(SUPERVISOR, Loading(what, done, total))

    def ready(self, facts: Facts) -> None:
        self.mailbox.post(SUPERVISOR, Ready(facts))

    def handle(self, received: list[Received]) -> None:
        """Work through one batch. After a Reset in it, the rest of the old epoch is skipped."""
        for peer, message in received:
            if peer == SUPERVISOR:
                self._on_supervisor(message)
            elif not self.live:
                continue
            elif isinstance(message, bytes):
                self.on_plan(message)
            else:
                self.on_message(peer, message)

    def _on_supervisor(self, message: Wire | bytes) -> None:
        match message:
            case Ping(number):
                self.mailbox.post(SUPERVISOR, Pong(number))
            case Reset(epoch):
                self.live = False
                self.mailbox.leave_data()
                self.on_reset()
                self.mailbox.post(SUPERVISOR, ResetDone(epoch))
            case Begin(epoch):
                self.mailbox.open_data(epoch)
                self.live = True
                self.on_begin(message)
            case Stop():
                self.stopped = True
            case Wire():
                self.on_control(message)


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


class BlockingActor(Actor):
    """Sleeps on its bell; wakes for messages and for room in a lane that was full."""

    spin_us = 0
    """How long to look for messages before sleeping; only where a core is free for it."""

    def after_batch(self) -> None:
        """Called after every batch, also an empty one."""

    def run(self) -> None:
        while not self.stopped:
            received = self.mailbox.receive()
            self.handle(received)
            self.mailbox.flush()
            if self.live:
                self.after_batch()
            if not received and not self.stopped:
                self.mailbox.wait(spin_us=self.spin_us)
