"""Fronts that follow each other over one journal, and the engine played by hand."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator

import pytest

from lightllm_mp import messages as say
from lightllm_mp.actors.front.image_files import Upload
from lightllm_mp.actors.front.live_request import Event, LiveRequest
from lightllm_mp.actors.front.request_journal import RequestJournal
from lightllm_mp.actors.front.request_limits import RequestLimits
from lightllm_mp.actors.front.resumable_table import ResumableTable
from lightllm_mp.messages import LENGTH, RUNNING, Sampling, Terms
from lightllm_mp.shm import Journal
from tests.actors.front.front_lanes import FACTS, Lanes, texts

KEY, OTHER = b"k" * 32, b"o" * 32


class Memory:
    """The shared memory that fronts leave to each other. A front that is given up has died."""

    def __init__(self, size: int = 1 << 20) -> None:
        self._memory = Journal.create(size)
        self._open: list[Journal] = []
        self.blamed: list[tuple[str, int]] = []
        """What the fronts say of the deaths of processes."""

    def front(
        self,
        *,
        window: float = 60.0,
        max_live: int = 8,
        images: Images | None = None,
        epoch: int = 1,
        retained_bytes: int = 1 << 30,
    ) -> tuple[ResumableTable, Lanes]:
        """The next front, at work from this epoch on. Call it in a running loop."""
        self.die()
        self._open.append(Journal.open(os.dup(self._memory.fd)))
        lanes = Lanes()
        table = ResumableTable(
            lanes.to_tokenizer,
            lanes.to_router,
            limits=RequestLimits(max_live),
            images=images,  # type: ignore[arg-type]
            journal=RequestJournal(self._open[0]),
            resume_window=window,
            retained_bytes=retained_bytes,
        )
        table.on_blame = lambda name, epoch: self.blamed.append((name, epoch))
        table.recover(epoch)
        table.begin(say.Begin(epoch=epoch, facts=FACTS, restarted=("http",)))
        return table, lanes

    def die(self) -> None:
        while self._open:
            self._open.pop().close()

    def close(self) -> None:
        self.die()
        self._memory.close()


@pytest.fixture
def memory() -> Iterator[Memory]:
    made = Memory()
    with contextlib.closing(made):
        yield made


def submit(table: ResumableTable, label: str = "id", *, tenant: bytes = KEY, n: int = 1, **more) -> LiveRequest:
    terms = Terms(Sampling(seed=7, max_new_tokens=50), n=n, tenant=tenant)
    return table.submit("hello", terms, label=label, form=b"form", **more)


def produce(table: ResumableTable, live: LiveRequest, first: int, last: int, *, finish: bool = False) -> None:
    """Tokens first..last of answer 0; the token at a position is always the same."""
    for count in range(first, last + 1):
        end = LENGTH if finish and count == last else RUNNING
        table.deliver(texts((live.rid, count % 90, f"<{count}>", count, end)))


def words(events: list[Event]) -> str:
    return "".join(event.text for event in events)


def run(body) -> None:
    async def main() -> None:
        async with asyncio.timeout(20):
            await body()

    asyncio.run(main())


class Images:
    """An image lane that only holds."""

    takes_images = True

    def __init__(self) -> None:
        self.held: list[bytes] = []
        self.pushed: list[tuple[int, tuple[Upload, ...]]] = []

    def check(self, uploads, max_input) -> None: ...
    def abort(self, rid) -> None: ...
    def flush(self) -> None: ...
    def clear(self) -> None: ...

    def hold(self, uploads, tenant, *, checked=True):
        self.held += [upload.key for upload in uploads]
        return tuple(uploads)

    def push(self, rid, uploads) -> None:
        self.pushed.append((rid, uploads))

    def let_go(self, uploads) -> None:
        for upload in uploads:
            self.held.remove(upload.key)
