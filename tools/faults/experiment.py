"""One run of faults against one server: learn the answers, disturb under load, look for what is left behind."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from lightllm_mp import Server
from tools.faults.clients import Clients
from tools.faults.hooks import BOOKS, books_file
from tools.faults.injector import HOOK_FAULTS, NEEDS_WORK, PLAIN_FAULTS, WORKLESS, Injector, Round
from tools.faults.report import Report
from tools.faults.server import Setting
from tools.harness.metrics import not_idle, parse, parse_rows
from tools.harness.procfs import Process, actors, alive, descendants, descriptors

IDLE_AFTER = 30.0
"""Seconds within which a server without clients holds nothing."""

UNBOUNDED = 1 << 30
"""Faults."""
CALM = 10.0
"""Most seconds between a recovery and the next fault."""
LIVED = 1
"""A request may have lived through this many faults when the next one comes. The server gives up a request that gets no
token over three deaths of an actor."""
ORPHANED = 5.0
"""Seconds within which the children of a dead process end."""


@dataclass
class Experiment:
    """`clients` requests are live at any time while faults of all kinds hit all actors, at most `total` of them, for at
    most `seconds`."""

    server: Server
    folder: Path
    setting: Setting
    report: Report
    clients_count: int
    seconds: float
    seed: int
    actors: Sequence[str] = ()
    faults: Sequence[str] = ()
    total: int = UNBOUNDED
    deadline: float = 120.0
    seen: set[Process] = field(default_factory=set)
    """Processes of the server, and former ones that have not ended."""

    def __post_init__(self) -> None:
        pid, url = self.server.pid, self.server.base_url
        self.clients = Clients(url, pid, self.clients_count, self.seed, self.deadline, self.report.add)
        self.injector = Injector(url, pid, self.folder, self.setting.watchdog, self.setting.hooks)
        known = [name for name in actors(pid) if name != "supervisor"]
        self.actors = [name for name in sorted(known) if not self.actors or name in self.actors]
        possible = PLAIN_FAULTS + (HOOK_FAULTS if self.setting.hooks else ())
        self.faults = [fault for fault in possible if not self.faults or fault in self.faults]

    async def run(self) -> None:
        await self.clients.learn(self.setting.load)
        await self._until_idle()
        before = self._descriptors()
        restarts = await self._restarts()
        self.clients.start()
        await asyncio.sleep(0.3)
        await self._disturb()
        await self.clients.stop()
        await self._until_idle()
        await self._compare_descriptors(before)
        await self._check_books()
        self._check_restarts(restarts, await self._restarts())

    async def _disturb(self) -> None:
        rng = random.Random(self.seed)
        end = time.monotonic() + self.seconds
        cells: list[tuple[str, str]] = []
        while time.monotonic() < end and len(self.report.rounds) < self.total:
            if not cells:
                cells = [(actor, fault) for actor in self.actors for fault in self.faults if self._hits(actor, fault)]
                rng.shuffle(cells)
            await self._calm(rng.randint(1, self.clients_count))
            self.seen |= descendants(self.server.pid)
            if self.server.exit_code is not None:
                self.report.problem(f"the server ended with code {self.server.exit_code}")
                return
            round = Round(*cells.pop(), time.monotonic())
            self.report.rounds.append(round)
            await self.injector.disturb(round)
            self.report.over(round)
            await self._check_orphans(round)

    def _hits(self, actor: str, fault: str) -> bool:
        """Whether this load makes the actor reach the fault."""
        load = self.setting.load
        idle = WORKLESS["embeddings"] if load.embeds else WORKLESS["images"] if load.images else ()
        return not (actor in idle and fault in NEEDS_WORK)

    async def _calm(self, requests: int) -> None:
        """Waits until this many requests have ended and no live one is old."""
        end = time.monotonic() + CALM
        wanted = len(self.report.outcomes) + requests
        young = self.report.rounds[-LIVED].injected if len(self.report.rounds) >= LIVED else 0.0
        while time.monotonic() < end:
            old = any(outcome.started <= young for outcome in self.clients.live.values())
            if not old and len(self.report.outcomes) >= wanted:
                return
            await asyncio.sleep(0.01)

    async def _check_orphans(self, round: Round) -> None:
        """Checks that the children of dead processes have ended."""
        end = time.monotonic() + ORPHANED
        while orphans := alive(self.seen) - descendants(self.server.pid):
            if time.monotonic() > end:
                self.report.problem(f"{round.actor} {round.fault} has left {sorted(pid for pid, _ in orphans)} behind")
                break
            await asyncio.sleep(0.01)
        self.seen = alive(self.seen) - orphans

    # --- what is left behind ------------------------------------------------------------------------------------------

    async def metrics(self) -> str:
        connector = aiohttp.TCPConnector(force_close=True)
        timeout = aiohttp.ClientTimeout(10.0)
        async with (
            aiohttp.ClientSession(self.server.base_url, connector=connector, timeout=timeout) as session,
            session.get("/metrics") as reply,
        ):
            return await reply.text()

    async def _until_idle(self) -> None:
        end = time.monotonic() + IDLE_AFTER
        held: dict[str, float] = {"metrics": -1.0}
        while held and time.monotonic() < end:
            await asyncio.sleep(0.1)
            try:
                held = not_idle(parse(await self.metrics()), images=self.setting.load.images)
            except (aiohttp.ClientError, OSError):
                held = {"metrics": -1.0}
        if held:
            self.report.problem(f"still held {IDLE_AFTER:.0f} s after the last request: {held}")

    def _descriptors(self) -> dict[str, list[str]]:
        return {name: descriptors(pid) for name, pid in actors(self.server.pid).items()}

    async def _compare_descriptors(self, before: dict[str, list[str]]) -> None:
        """Checks that every actor has as many descriptors as at the start, once the last connection is closed."""
        end = time.monotonic() + 5.0
        while (after := self._descriptors()) and time.monotonic() < end:
            if all(len(after.get(name, ())) <= len(old) for name, old in before.items()):
                break
            await asyncio.sleep(0.1)
        if set(before) != set(after):
            self.report.problem(f"processes {sorted(after)} instead of {sorted(before)}")
        for name in set(before) & set(after):
            if len(after[name]) > len(before[name]):
                more = Counter(map(kind, after[name])) - Counter(map(kind, before[name]))
                self.report.problem(f"{name} has more descriptors: {dict(more)}")

    async def _check_books(self) -> None:
        """Checks that no actor holds a block of another one and no message waits for room. Needs hooks."""
        for name, pid in actors(self.server.pid).items():
            if not self.setting.hooks or name == "supervisor":
                continue
            file = books_file(self.folder, name)
            os.kill(pid, BOOKS)
            end = time.monotonic() + 5.0
            while not file.exists() and time.monotonic() < end:
                await asyncio.sleep(0.02)
            books = json.loads(file.read_text()) if file.exists() else {"no answer": 1}
            if any(books.values()):
                self.report.problem(f"{name} still holds {books}")

    async def _restarts(self) -> float:
        return sum(parse_rows(await self.metrics(), "actor_restarts_total", "actor").values())

    def _check_restarts(self, before: float, after: float) -> None:
        """Checks for more than one replacement a fault: an actor was replaced without cause, or the machine is too slow
        for the watchdog."""
        effective = sum(bool(round.replaced) for round in self.report.rounds)
        both = sum(round.fault == "corrupt" for round in self.report.rounds)
        if after - before > effective + both:
            self.report.problem(f"{after - before:.0f} restarts after {effective} faults that had an effect")


def kind(link: str) -> str:
    """The target of a descriptor without its number."""
    return link.partition(":[")[0]


def check_end(server: Server, seen: set[Process], report: Report) -> None:
    """Stops the server, which must end with code 0 and leave no process."""
    seen = seen | descendants(server.pid)
    code = server.drain(60.0)
    if code:
        report.problem(f"the server ended with code {code}")
    end = time.monotonic() + 5.0
    while (left := alive(seen)) and time.monotonic() < end:
        time.sleep(0.05)
    if left:
        report.problem(f"processes are left: {sorted(pid for pid, _ in left)}")
