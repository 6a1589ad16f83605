"""The life of an actor inside its process: start, say Ready, work on messages epoch after epoch, leave on Stop.

A constructed actor is complete: its constructor does all that is expensive, and raises EngineError with the reason
when the actor cannot work. A subclass has `on_begin`, `on_reset` and `on_message`. `on_message` answers a request error
(EngineError) itself; every other exception is a bug: it ends the process with a traceback, and the supervisor replaces
it.
"""

from __future__ import annotations

from lightllm_mp.actors.runtime.mailbox import BUDGET, Mailbox, Received
from lightllm_mp.actors.runtime.stats_page import StatsPage
from lightllm_mp.actors.topology import SUPERVISOR
from lightllm_mp.facts import Facts
from lightllm_mp.messages import Begin, Loading, Ping, Pong, Ready, Reset, ResetDone, Stop, Wire


class Actor:
    """The control protocol, shared by blocking actors and asyncio actors (async_actor.py)."""

    def __init__(self, mailbox: Mailbox, stats: StatsPage) -> None:
        self.mailbox = mailbox
        self.stats = stats
        self.facts = Facts()
        """What the start found out; a subclass sets it."""
        self.live = False
        """Between Begin and Reset: data lanes may be used."""
        self.stopped = False

    # --- for subclasses -----------------------------------------------------------------------------------------------

    def on_begin(self, begin: Begin) -> None:
        """A new epoch: lanes are fresh."""

    def on_reset(self) -> None:
        """Drop all request state."""

    def on_message(self, peer: str, message: Wire) -> None:
        """A message from a peer, in this epoch."""

    def on_plan(self, plan: bytes) -> None:
        """A step plan, as raw bytes."""

    def on_control(self, message: Wire) -> None:
        """A control message that only some actors get (Health)."""

    # --- the protocol -------------------------------------------------------------------------------------------------

    def report(self, what: str, done: int, total: int) -> None:
        """Progress of a long start in bytes; the supervisor shows it."""
        self.mailbox.send(SUPERVISOR, Loading(what, done, total))

    def stage(self, what: str) -> None:
        """A stage of a start begins; shown by the supervisor if it lasts."""
        self.mailbox.send(SUPERVISOR, Loading(what))

    def ready(self) -> None:
        self.mailbox.post(SUPERVISOR, Ready(self.facts))

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


class BlockingActor(Actor):
    """Sleeps on its bell; wakes for messages and for free space in a lane that was full."""

    budget = BUDGET
    """Most messages to take at a time. The supervisor's lane has its turn between them."""
    spin_us = 0
    """Microseconds to poll for messages before sleeping; > 0 only if a core is free for it."""

    def after_batch(self) -> None:
        """Called after every batch, even an empty one."""

    def run(self) -> None:
        while not self.stopped:
            received = self.mailbox.receive(self.budget)
            self.handle(received)
            self.mailbox.flush()
            if self.live:
                self.after_batch()
            if not received and not self.stopped:
                self.mailbox.wait(spin_us=self.spin_us)
