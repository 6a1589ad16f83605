"""The HTTP actor: the front with a port. It serves from its start and answers 503 until the engine has begun."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Coroutine
from typing import Any

from lightllm_mp.actors.front.actor import FrontActor
from lightllm_mp.actors.front.request_journal import RequestJournal
from lightllm_mp.actors.http.app import create_app
from lightllm_mp.actors.http.live.feed import LiveFeed
from lightllm_mp.actors.http.live.history import LiveHistory
from lightllm_mp.actors.http.security.keys import load_keys
from lightllm_mp.actors.http.security.tls import server_context
from lightllm_mp.actors.http.sockets.listener import serve
from lightllm_mp.actors.http.traces import RepairTimes, Traces
from lightllm_mp.actors.runtime.actor_settings import FrontSettings
from lightllm_mp.actors.runtime.launch_spec import LaunchSpec
from lightllm_mp.actors.runtime.mailbox import Mailbox
from lightllm_mp.actors.runtime.stats_page import StatsPage
from lightllm_mp.actors.topology import ROUTER, worker
from lightllm_mp.messages import Begin, EngineState, Health, ImageCacheState, SchedulerState, Wire
from lightllm_mp.shm import Journal


class HttpActor(FrontActor):
    def __init__(self, launch: LaunchSpec[FrontSettings], mailbox: Mailbox, stats: StatsPage) -> None:
        self._settings, self._listen_fd = launch.settings, launch.listen_fd
        http = launch.settings.http
        self._first, self._epoch = launch.facts is None, launch.epoch
        self._keys = load_keys(http, os.environ)
        self._tls = server_context(http)
        super().__init__(
            launch,
            mailbox,
            stats,
            tenants=len(self._keys),
            queue_seconds=http.max_queue_seconds,
            journal=RequestJournal(Journal.open(launch.journal_fd)) if launch.journal_fd >= 0 else None,
            resume_window=http.resume_window,
        )
        self._repairs = RepairTimes()
        pages = self._pages
        history = LiveHistory(lambda: pages[ROUTER].read(), lambda: pages[worker(0)].read())
        self._feed = LiveFeed(self.frontend, mailbox.send, history)
        self._begun = asyncio.Event()
        self._draining = asyncio.Event()

    def on_begin(self, begin: Begin) -> None:
        super().on_begin(begin)
        self._repairs.began(begin.restarted)
        self._begun.set()
        self._feed.changed()

    def on_reset(self) -> None:
        super().on_reset()
        self._repairs.stopped()
        self._feed.changed()

    def on_message(self, peer: str, message: Wire) -> None:
        if isinstance(message, SchedulerState | ImageCacheState):
            self._feed.take(message)
        else:
            super().on_message(peer, message)

    def on_control(self, message: Wire) -> None:
        super().on_control(message)
        match message:
            case EngineState():
                self._feed.take(message)
            case Health(draining=draining):
                self._feed.changed()
                if draining:
                    self._draining.set()

    def run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self.frontend.recover(self._epoch)
        self.listen()
        endpoint = self._settings.http.otlp_traces_endpoint
        traces = Traces(endpoint, self._repairs) if endpoint else None
        app = create_app(
            self.frontend,
            self._settings.http,
            model=self._settings.model,
            multimodal=self._settings.images,
            stats=self.all_stats,
            keys=self._keys,
            traces=traces,
            feed=self._feed,
        )
        self._feed.start()
        sharing = self._settings.http.reuse_port
        stays = sharing or self._settings.drain_delay > 0
        self.frontend.stay(stays)
        if sharing and self._first:  # the old server keeps all connections until this one is ready
            await _first_of(self._begun.wait(), self.until_stopped())
            if self.stopped:
                return
        port = await serve(app, socket.socket(fileno=self._listen_fd), self._settings.http, tls=self._tls)
        if stays:
            await _first_of(self._time_to_leave(), self.until_stopped())
            if not self.stopped:
                if sharing:
                    await port.leave()
                else:
                    await port.end_connections()
                self.frontend.stay(False)
        await self.until_stopped()
        await port.close()  # skipped after a bug: its handlers would wait for ever
        if traces is not None:
            traces.close()

    async def _time_to_leave(self) -> None:
        """The server drains, and others have had drain_delay to see it."""
        await self._draining.wait()
        await asyncio.sleep(self._settings.drain_delay)


async def _first_of(*waits: Coroutine[Any, Any, object]) -> None:
    """Wait until one of them ends; raises what it raised."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
