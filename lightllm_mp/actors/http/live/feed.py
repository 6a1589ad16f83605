"""The live view's feed. While there are viewers it asks the other actors once a second for their state and makes one
snapshot for all viewers. Without viewers it only keeps the history.

An event is encoded once. A slow viewer gets the newest event when it has read the one before, so its memory is bounded
by the buffer of its connection. No actor waits for viewers: questions and answers are lost if a lane is full, and the
feed waits at most PATIENCE for an answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress

import msgspec
from msgspec.structs import replace

from lightllm_mp.actors.front.resumable_table import ResumableTable
from lightllm_mp.actors.http.live.history import LiveHistory
from lightllm_mp.actors.http.live.snapshot import Told, rids_of, shown, snapshot
from lightllm_mp.actors.http.live.snapshot_schema import LiveSnapshot
from lightllm_mp.actors.topology import ROUTER, SUPERVISOR, VISUAL
from lightllm_mp.errors import Overloaded, Unavailable
from lightllm_mp.messages import EngineState, ImageCacheState, Inspect, SchedulerState, Wire

log = logging.getLogger("lightllm_mp.http")

MOST_VIEWERS = 8
INTERVAL = 1.0
"""Seconds between two events."""
SOONEST = 0.1
"""Seconds between two events if something important has changed."""
PATIENCE = 0.25
"""Seconds to wait for answers."""
RECENT = 10
"""Points of the history in an event, so that a viewer that lost some events has no gap."""

ASKED = (SUPERVISOR, ROUTER, VISUAL)

_encode = msgspec.json.Encoder().encode


class LiveFeed:
    """`ask(peer, Inspect)` returns False if that actor cannot be asked now."""

    def __init__(self, frontend: ResumableTable, ask: Callable[[str, Inspect], bool], history: LiveHistory) -> None:
        self._frontend, self._ask, self._history = frontend, ask, history
        self._told = Told()
        self._rids = b""
        """The sequences that the router was asked for."""
        self._awaited: set[str] = set()
        self._answered, self._changed, self._published = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._viewers = self._number = 0
        self._snapshot: LiveSnapshot | None = None
        self._event = b""
        self._task: asyncio.Task[None] | None = None
        """Exists while there are viewers."""
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    # --- the front's side ---

    def start(self) -> None:
        """Keep the history from now on, in the running loop."""
        self._timer = asyncio.get_running_loop().call_later(INTERVAL, self.start)
        self._history.sample()

    def close(self) -> None:
        """End all streams."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._stop()

    def take(self, message: Wire) -> None:
        """Takes an answer to Inspect. One that is too late for its event is used if it is about the same sequences."""
        match message:
            case EngineState():
                self._told.engine = message
                self._awaited.discard(SUPERVISOR)
            case SchedulerState(rids) if rids == self._rids:
                self._told.scheduler = message
                self._awaited.discard(ROUTER)
            case ImageCacheState():
                self._told.images = message
                self._awaited.discard(VISUAL)
        if not self._awaited:
            self._answered.set()

    def changed(self) -> None:
        """A repair begins or ends, or the health changes: the next event comes early."""
        self._changed.set()

    # --- the viewers' side ---

    @contextmanager
    def watching(self) -> Iterator[AsyncIterator[bytes]]:
        """Snapshots as JSON, the first with the whole history, until the server drains or stops. Raises Overloaded or
        Unavailable."""
        if self._closed or self._frontend.state.draining:
            raise Unavailable("the server is shutting down")
        if self._viewers >= MOST_VIEWERS:
            raise Overloaded(f"{MOST_VIEWERS} clients watch already", retry_after=5.0)
        self._viewers += 1
        if self._task is None:
            self._task = asyncio.create_task(self._watch())
            self._task.add_done_callback(self._ended)
        try:
            yield self._events(self._task)
        finally:
            self._viewers -= 1
            if not self._viewers:
                self._stop()

    async def _events(self, task: asyncio.Task[None]) -> AsyncIterator[bytes]:
        seen = 0
        while True:
            if self._snapshot is not None and self._number != seen:
                whole = not seen
                seen = self._number
                yield _encode(replace(self._snapshot, history=self._history.last())) if whole else self._event
            elif task.done():
                return
            else:
                await self._published.wait()

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Ends the streams of this task. A bug of the view ends nothing else."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the live view failed", exc_info=error)
        if task is self._task:
            self._task = None
        if self._task is None:
            self._snapshot, self._told = None, Told()
        self._wake()

    def _wake(self) -> None:
        """Wakes the viewers; a later one waits for the next event."""
        self._published.set()
        self._published = asyncio.Event()

    # --- making events ---

    async def _watch(self) -> None:
        while True:
            await self._look()
            if self._frontend.state.draining:
                return
            await asyncio.sleep(SOONEST)
            with suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL - SOONEST):
                    await self._changed.wait()

    async def _look(self) -> None:
        """Asks, waits for the answers, and publishes an event."""
        self._changed.clear()
        answers = shown(self._frontend)
        self._rids, self._told.scheduler = rids_of(answers), None
        inspect = Inspect(self._rids)
        self._answered.clear()
        self._awaited = {peer for peer in ASKED if self._ask(peer, inspect)}
        if VISUAL not in self._awaited:
            self._told.images = None
        if self._awaited:
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    await self._answered.wait()
        self._number += 1
        self._snapshot = snapshot(
            self._frontend,
            answers,
            self._told,
            self._history.router(),
            number=self._number,
            at=self._history.now,
            viewers=self._viewers,
            history=self._history.last(RECENT),
        )
        self._event = _encode(self._snapshot)
        self._wake()
