"""What the HTTP process and the embedded engine share as actors: a Frontend on a mailbox, driven by an asyncio loop."""

from __future__ import annotations

import asyncio

from lightllm_mp.actors.base import Actor
from lightllm_mp.actors.birth import Birth
from lightllm_mp.actors.frontend import Frontend
from lightllm_mp.actors.mailbox import Mailbox
from lightllm_mp.actors.stats import StatsPage
from lightllm_mp.actors.topology import ROUTER, SUPERVISOR, TOKENIZER
from lightllm_mp.messages import Begin, Drained, Health, Wire
from lightllm_mp.shm import Record


class FrontActor(Actor):
    def __init__(self, birth: Birth, mailbox: Mailbox, stats: StatsPage) -> None:
        super().__init__(mailbox, stats)
        self.frontend = Frontend(
            lambda message: mailbox.send(TOKENIZER, message),
            lambda message: mailbox.send(ROUTER, message),
            max_live=birth.config.http.max_live_requests,
        )
        self.frontend.on_drained = lambda: mailbox.post(SUPERVISOR, Drained())
        self._pages = {name: stats if name == birth.name else StatsPage.attach(fd) for name, fd in birth.all_stats}
        self._stop = asyncio.Event()
        self._failure: Exception | None = None

    def listen(self) -> None:
        """Work on messages in the running loop from now on."""
        self.mailbox.listen(asyncio.get_running_loop(), self._on_records)

    def close(self) -> None:
        """Give every descriptor back."""
        self.mailbox.close()
        for page in {self.stats, *self._pages.values()}:
            page.close()

    async def until_stopped(self) -> None:
        """Returns after Stop; raises what went wrong in the work on messages."""
        await self._stop.wait()
        if self._failure is not None:
            raise self._failure

    def all_stats(self) -> dict[str, dict[str, float]]:
        """{actor: {name: value}}, read from everybody's page; nobody is asked."""
        found = {name: page.read() for name, page in self._pages.items()}
        supervisor = found.get(SUPERVISOR, {})
        lanes = {name: value for name, value in supervisor.items() if "->" in name}
        return {**found, SUPERVISOR: {n: v for n, v in supervisor.items() if n not in lanes}, "lanes": lanes}

    def on_begin(self, begin: Begin) -> None:
        self.frontend.begin(begin)

    def on_reset(self) -> None:
        self.frontend.reset()

    def on_message(self, peer: str, message: Wire) -> None:
        self.frontend.deliver(message)

    def on_control(self, message: Wire) -> None:
        if isinstance(message, Health):
            self.frontend.health(message)

    def _on_records(self, records: list[Record]) -> None:
        try:
            self.handle(self.mailbox.decode(records))
            self.mailbox.flush()
            self.frontend.flush()
        except Exception as error:  # a loop would log it and go on; an actor ends on a bug
            self._failure = error
        if self.stopped or self._failure is not None:
            self._stop.set()
