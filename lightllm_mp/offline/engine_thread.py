"""The thread of an embedded engine's front and supervisor, and the calls of other threads and event loops to it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import CancelledError, Future, wait
from typing import Any, TypeVar

import msgspec

from lightllm_mp.actors.front.actor import FrontActor
from lightllm_mp.actors.front.resumable_table import ResumableTable
from lightllm_mp.actors.runtime.logs import set_up_logging
from lightllm_mp.actors.runtime.mailbox import Mailbox
from lightllm_mp.actors.runtime.stats_page import StatsPage
from lightllm_mp.actors.supervision.state_machine import EXIT_GAVE_UP
from lightllm_mp.actors.supervision.supervisor import Supervisor
from lightllm_mp.cli.model_check import check_model
from lightllm_mp.config import Config
from lightllm_mp.errors import ConfigError, EngineError, StartupError
from lightllm_mp.facts import Facts
from lightllm_mp.model_files.default_model import find_model

T = TypeVar("T")
LOOK = 1.0
"""Seconds between two checks of a waiting call whether the thread is alive: a loop that ends before the first step of a
call never completes its future."""


class EngineEnded(EngineError):
    """The engine is closed or has failed. The message says why."""

    code = "engine_ended"


class EngineThread:
    """Starts the engine and returns when it serves. StartupError if it cannot start."""

    def __init__(self, config: Config | None, model_dir: str | None) -> None:
        config = config or Config()
        if model_dir is not None:
            config = msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, model_dir=model_dir))
        if config.engine.node_rank:
            raise ConfigError(
                "--node-rank is for lightllm-mp serve; an engine in a program is node 0", param="node_rank"
            )
        set_up_logging("warning" if config.supervisor.log_level == "info" else config.supervisor.log_level)
        self.config = config
        images = config.multimodal.enable_multimodal
        self._model = check_model(
            find_model(config.model.model_dir, images=images),
            ranks=config.engine.tp,
            ep=config.engine.ep,
            weights=False,
            images=images,
            task=config.model.task,
            score_tokens=config.model.score_tokens,
        )
        self._loop = asyncio.new_event_loop()
        self._serving: Future[Facts] = Future()
        self._thread = threading.Thread(target=self._main, name="lightllm-mp", daemon=True)
        self._thread.start()
        try:
            self.facts = self._serving.result()
        except EngineError:
            self._thread.join()
            raise

    @property
    def frontend(self) -> ResumableTable:
        """The table of requests. Use it only on the thread's loop."""
        return self._front.frontend

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def wait(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run `work` on the thread's loop and block. EngineEnded if the engine is closed, or ends meanwhile."""
        running = _awaited(work)
        future = self._scheduled(running)
        while not future.done() and self.alive:
            wait([future], timeout=LOOK)
        try:
            return future.result(timeout=0)
        except (CancelledError, TimeoutError):
            running.close()  # has no effect if it has run
            raise self._ended() from None

    async def ask(self, work: Callable[[], Awaitable[T]]) -> T:
        """As `wait`, for a caller on another loop. If the caller is cancelled, so is `work`."""
        running = _awaited(work)
        future = self._scheduled(running)
        told = asyncio.wrap_future(future)
        try:
            while not told.done() and self.alive:
                await asyncio.wait([told], timeout=LOOK)
        finally:
            future.cancel()  # at once, before the caller's next call; has no effect if it is done
        try:
            return told.result()
        except (asyncio.CancelledError, asyncio.InvalidStateError):
            running.close()
            raise self._ended() from None

    def close(self) -> None:
        """Stop all processes. Idempotent."""
        if self.alive:
            self._loop.call_soon_threadsafe(self.supervisor.begin_stop)
            self._thread.join()

    def _scheduled(self, running: Coroutine[Any, Any, T]) -> Future[T]:
        try:
            return asyncio.run_coroutine_threadsafe(running, self._loop)
        except RuntimeError:  # the loop is closed
            running.close()
            raise self._ended() from None

    def _ended(self) -> EngineEnded:
        return EngineEnded(self.supervisor.reason or "the engine is closed")

    async def _watch_front(self) -> None:
        try:
            await self._front.until_stopped()
        except Exception as error:
            self.supervisor.begin_stop(EXIT_GAVE_UP, f"the front failed: {error}")

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._run())
        except BaseException as error:
            if self._serving.done():
                raise
            self._serving.set_exception(error)
        finally:
            self._loop.close()

    async def _run(self) -> None:
        supervisor = Supervisor(self.config, self._model, listen=None, on_serving=self._serving.set_result)
        self.supervisor = supervisor
        running = asyncio.create_task(supervisor.run())
        launch = supervisor.embedded_launch()
        mailbox = Mailbox(launch)
        self._front = FrontActor(launch, mailbox, StatsPage.attach(launch.stats))
        self._front.listen()
        self._front.ready()
        watch = asyncio.create_task(self._watch_front())
        try:
            await running
        finally:
            watch.cancel()
            while calls := asyncio.all_tasks() - {asyncio.current_task()}:
                for call in calls:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)
            self._front.close()
            if not self._serving.done():
                self._serving.set_exception(StartupError(supervisor.reason or "the engine did not start"))


async def _awaited(work: Callable[[], Awaitable[T]]) -> T:
    return await work()
