"""Clients that send requests without a pause while tools.faults.chaos disturbs the server, and their outcomes."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import aiohttp

from tools.faults.answers import NATIVE, Answer, Broken, Refused, WrongShape, ask, first_difference
from tools.faults.api_requests import apis, embeddings, image_chats
from tools.faults.requests import Case, Load, images, texts, with_stop
from tools.harness.procfs import actors

RETRY_PAUSE = 0.1
"""Seconds before the next try; a real client would wait for Retry-After."""
STOPPED = ("greedy", "seeded", "image")
"""Kinds of requests that are also sent with a stop string."""
DEATH_SHOWS = 5.0
"""Seconds within which a death of the http actor is visible from outside."""


@dataclass
class Outcome:
    """One request. `end`: identical, different, left or lost."""

    kind: str
    started: float
    end: str = "lost"
    note: str = ""
    ended: float = 0.0
    refused: int = 0
    broken: int = 0
    """Connections that broke before the dead http actor knew the request. The client opened a new one for each."""
    resumed: int = 0
    """Broken connections whose client reconnected for the rest."""
    pause: float = 0.0


@dataclass
class Clients:
    """`count` clients of one server in one event loop. `on_end` gets every request that has ended."""

    url: str
    supervisor: int
    count: int
    seed: int
    deadline: float
    on_end: Callable[[Outcome], None] = lambda outcome: None
    cases: list[Case] = field(default_factory=list)
    expected: list[Answer | None] = field(default_factory=list)
    live: dict[int, Outcome] = field(default_factory=dict)
    """{client: its request}"""
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _stop: bool = False

    def session(self) -> aiohttp.ClientSession:
        """Opens a connection for every request: a reused one may break for other reasons."""
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        return aiohttp.ClientSession(self.url, connector=connector, timeout=aiohttp.ClientTimeout(self.deadline))

    async def learn(self, load: Load) -> None:
        """Sends every request twice to the undisturbed server. Raises ValueError if the two answers differ."""
        async with self.session() as session:
            found = cases(self.seed, load)
            answers = await self._all(session, found)
            for case, answer in zip(found, answers, strict=True):
                if answer is not None and (400 <= answer.status < 500) != case.refused:
                    raise ValueError(f"{case.kind} is answered with {answer}")
            stops = [
                with_stop(case, answer.text)
                for case, answer in zip(found, answers, strict=True)
                if case.kind in STOPPED and case.path in NATIVE and answer is not None
            ]
            self.cases = found + stops
            self.expected = answers + await self._all(session, stops)
            for case, want, got in zip(self.cases, self.expected, await self._all(session, self.cases), strict=True):
                if case.leave_after is None and (want is None or got is None or not want.same(got)):
                    raise ValueError(f"two undisturbed answers differ ({case.kind}): {want} and {got}")

    async def _all(self, session: aiohttp.ClientSession, wanted: list[Case]) -> list[Answer | None]:
        gate = asyncio.Semaphore(4)

        async def one(case: Case) -> Answer | None:
            async with gate:
                return await ask(session, case)

        return list(await asyncio.gather(*map(one, wanted)))

    def start(self) -> None:
        self._stop = False
        self._tasks = [asyncio.create_task(self._client(number)) for number in range(self.count)]

    async def stop(self) -> None:
        """Sends no new requests and waits for the running ones."""
        self._stop = True
        await asyncio.gather(*self._tasks)

    async def _client(self, number: int) -> None:
        rng = random.Random(f"{self.seed} {number}")
        async with self.session() as session:
            while not self._stop:
                index = rng.randrange(len(self.cases))
                outcome = self.live[number] = Outcome(self.cases[index].kind, time.monotonic())
                await self._perform(outcome, session, self.cases[index], self.expected[index])
                del self.live[number]
                outcome.ended = time.monotonic()
                self.on_end(outcome)

    async def _perform(self, outcome: Outcome, session: aiohttp.ClientSession, case: Case, want: Answer | None) -> None:
        """Sends the request until there is an answer. `outcome` says how the request ended."""
        while True:
            front = actors(self.supervisor).get("http")
            try:
                return self._compare(outcome, case, await ask(session, case), want)
            except Refused:
                outcome.refused += 1
                if time.monotonic() - outcome.started > self.deadline:
                    outcome.note = "refused to the end"
                    return None
                await asyncio.sleep(RETRY_PAUSE)
            except Broken as error:
                if not await self._died(front):
                    outcome.note = f"broken without a death of http: {error}"
                    return None
                outcome.broken += 1
            except WrongShape as error:
                outcome.note = str(error)
                return None
            except TimeoutError:
                outcome.note = f"no end after {self.deadline:.0f} s"
                return None

    @staticmethod
    def _compare(outcome: Outcome, case: Case, answer: Answer | None, want: Answer | None) -> None:
        outcome.resumed = answer.resumed if answer is not None else 0
        if answer is None or case.leave_after is not None:
            outcome.end = "left"
        elif want is not None and answer.same(want):
            outcome.end, outcome.pause = "identical", answer.pause
        else:
            wanted = want.status if want is not None else 0
            outcome.end = "different" if answer.status == wanted else "lost"
            outcome.note = first_difference(answer, want or Answer())

    async def _died(self, front: int | None) -> bool:
        """Whether the http process that ran when the request began has ended."""
        end = time.monotonic() + DEATH_SHOWS
        while (now := actors(self.supervisor).get("http")) == front and now is not None:
            if time.monotonic() > end:
                return False
            await asyncio.sleep(0.02)
        return True


def cases(seed: int, load: Load) -> list[Case]:
    """The whole load."""
    if load.embeds:
        return embeddings(seed)
    return texts(seed, load) + (images(seed, load) + image_chats(seed, load) if load.images else apis(seed, load))
