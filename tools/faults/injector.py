"""Injects one fault into one process of a server and waits until the server has recovered, for tools.faults.chaos."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from tools.faults.clients import Outcome
from tools.faults.hooks import CORRUPT, EXIT, GRAB, HANG, RAISE, slow_file
from tools.harness.metrics import parse_rows
from tools.harness.procfs import actors, address_space, age

SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}
HOOKS = {"raise": RAISE, "exit 0": EXIT, "hang": HANG, "corrupt": CORRUPT}
MEMORY, SLOW = "memory", "slow start"
PLAIN_FAULTS = ("kill", "stop", "term", MEMORY)
"""Faults for any server."""
HOOK_FAULTS = (*HOOKS, SLOW)
"""Faults that need hooks in the actors."""
NEEDS_WORK = (*HOOKS, MEMORY)
"""Faults that an actor without messages never reaches."""
WORKLESS = {"embeddings": ("detokenizer", "guide"), "images": ("guide",)}
"""Actors that these loads do not reach."""
HARMLESS = ("term",)
"""Faults after which no process may be replaced."""
UNCERTAIN = (MEMORY,)
"""Without hooks this fault may have no effect: the actor may need no memory while it is short."""
HOLD = {"term": 0.5, MEMORY: 2.0}
"""Seconds after which a fault without effect ends."""
SETTLE = 0.05
"""Seconds within which the front learns that a process is being replaced."""
LOOK = 0.03
"""Seconds between two looks at the server; more frequent ones would slow its recovery."""
TICK = 0.1
"""Seconds by which the supervisor's tick may be late."""
BALLAST = "memory " * 1_000_000
"""A prompt that needs memory; the server refuses it as too long."""
PATIENCE = {"worker": 4.0, "tokenizer": 2.0, "visual": 2.0}
"""In watchdog timeouts, as in the topology; 1 for the others."""


@dataclass
class Round:
    """One injected fault, and the requests that lived through it."""

    actor: str
    fault: str
    injected: float
    recovered: float = 0.0
    """monotonic; 0: not yet"""
    replaced: list[str] = field(default_factory=list)
    trouble: str = ""
    outcomes: list[Outcome] = field(default_factory=list)
    """Requests for which this was the last fault."""
    hit: int = 0
    """Requests that were live when the fault came; several faults may hit one request."""

    @property
    def seconds(self) -> float:
        return self.recovered - self.injected

    def saw(self, outcome: Outcome) -> bool:
        """Whether the request was live between fault and recovery."""
        return outcome.ended >= self.injected and (not self.recovered or outcome.started <= self.recovered)


@dataclass
class Injector:
    """Injects faults into one server. `patience`: seconds that a recovery may take beyond the watchdog."""

    url: str
    supervisor: int
    folder: Path
    watchdog: float
    hooks: bool
    patience: float = 90.0

    async def pid(self, actor: str) -> int:
        while (pid := actors(self.supervisor).get(actor)) is None:
            await asyncio.sleep(0.005)
        return pid

    async def disturb(self, round: Round) -> None:
        """Injects the fault and waits for the recovery. `round.trouble` gets what is wrong."""
        if not await self._up(round.actor):
            round.trouble = "is not there"
        before = actors(self.supervisor)
        pid = await self.pid(round.actor)
        round.injected = time.monotonic()
        self._inject(round.actor, round.fault, pid)
        extra = asyncio.create_task(self._ballast()) if round.fault == MEMORY else None
        hurt = await self._replaced(round, before, pid)
        self._make_good(round.fault, pid)
        if not hurt and self._certain(round.fault):
            round.trouble = "nobody was replaced"
        if hurt and round.fault in HARMLESS:
            round.trouble = "was replaced"
        if hurt:
            await asyncio.sleep(SETTLE)
        if not await self._healthy():
            round.trouble = f"not healthy after {self.patience:.0f} s"
        round.recovered = time.monotonic()
        after = actors(self.supervisor)
        round.replaced = sorted(name for name in before if after.get(name) != before[name])
        if extra is not None:
            extra.cancel()

    def _certain(self, fault: str) -> bool:
        """Whether a process has to be replaced."""
        return fault not in HARMLESS and (self.hooks or fault not in UNCERTAIN)

    def _inject(self, actor: str, fault: str, pid: int) -> None:
        if fault == MEMORY:
            _, hard = resource.prlimit(pid, resource.RLIMIT_AS)
            resource.prlimit(pid, resource.RLIMIT_AS, (address_space(pid), hard))
            if self.hooks:
                os.kill(pid, GRAB)
        elif fault == SLOW:
            slow_file(self.folder, actor).touch()
            os.kill(pid, signal.SIGKILL)
        else:
            os.kill(pid, SIGNALS[fault] if fault in SIGNALS else HOOKS[fault])

    def _make_good(self, fault: str, pid: int) -> None:
        """Undoes a fault without effect."""
        try:
            if fault == MEMORY:
                _, hard = resource.prlimit(pid, resource.RLIMIT_AS)
                resource.prlimit(pid, resource.RLIMIT_AS, (hard, hard))
            elif fault == "stop" and pid in actors(self.supervisor).values():
                os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pass

    async def _replaced(self, round: Round, before: dict[str, int], pid: int) -> bool:
        """Waits until a process has been replaced: the victim or, after garbage, the actor that read it."""
        kind = round.actor.rstrip("0123456789")
        wait = self.patience + PATIENCE.get(kind, 1.0) * self.watchdog
        hold = wait if self._certain(round.fault) else HOLD[round.fault]
        end = time.monotonic() + hold
        while time.monotonic() < end:
            now = actors(self.supervisor)
            if round.fault == "corrupt":
                if any(name in now and now[name] != old for name, old in before.items()):
                    return True
            elif now.get(round.actor, pid) != pid:
                return True
            await asyncio.sleep(LOOK)
        return False

    async def _healthy(self) -> bool:
        """Waits until /health says so. A dispensable actor may still be starting."""
        return await self._until("/health", lambda text: True)

    async def _up(self, actor: str) -> bool:
        """Waits until this actor takes part. The numbers are as old as the supervisor's last look at its children."""

        def up(text: str) -> bool:
            known = age(actors(self.supervisor).get(actor, 0)) > self.watchdog / 5 + TICK
            return known and parse_rows(text, "actor_up", "actor").get(actor) == 1.0

        return await self._until("/metrics", up)

    async def _until(self, path: str, good: Callable[[str], bool]) -> bool:
        end = time.monotonic() + self.patience
        connector = aiohttp.TCPConnector(force_close=True)
        timeout = aiohttp.ClientTimeout(2.0)
        async with aiohttp.ClientSession(self.url, timeout=timeout, connector=connector) as session:
            while time.monotonic() < end:
                try:
                    async with session.get(path) as reply:
                        if reply.status == 200 and good(await reply.text()):
                            return True
                except (aiohttp.ClientError, OSError):
                    pass
                await asyncio.sleep(LOOK)
        return False

    async def _ballast(self) -> None:
        """Sends a large request through every actor; its answer does not matter."""
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(self.url, connector=connector) as session:
            while True:
                try:
                    async with session.post("/generate", json={"inputs": BALLAST}) as reply:
                        await reply.read()
                except (aiohttp.ClientError, OSError):
                    pass
                await asyncio.sleep(0.1)
