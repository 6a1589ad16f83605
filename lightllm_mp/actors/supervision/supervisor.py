"""The supervisor starts the children, watches them, replaces the dead, stops them in reverse. It touches no request.

    STARTING --all Ready--> RUNNING --a child dies--> REPAIRING --everybody reset or replaced--> RUNNING
        any of them --signal, drained, start failed, budget spent--> STOPPING --all gone--> exit code

A crash costs time, never a request (design, spine 9). When a child dies the survivors are told `Reset`: they leave the
data lanes, drop request state and keep what is expensive. Meanwhile the child is started again. When every survivor has
answered and every new child is ready, all data lanes are emptied and `Begin` opens the next epoch; the front submits
again what it still owes its clients. A dispensable child is not waited for: the next epoch begins without it, and when
it is ready that one ends too, for one with it.

Tensor-parallel workers are one crew (see crew.py): when one is gone the others are killed at once, for they may wait
for it inside a step, and all start anew. What reaches one of them must reach all: they leave their lanes after the
router has left its own.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import os
import socket
import time
from collections.abc import Callable

from lightllm_mp.actors.runtime.image_setup import find_vision, image_arenas
from lightllm_mp.actors.runtime.launch_spec import LaunchSpec, renumbered
from lightllm_mp.actors.supervision.child_process import ChildProcess
from lightllm_mp.actors.supervision.control_lanes import ControlLanes
from lightllm_mp.actors.supervision.facts import merge_facts
from lightllm_mp.actors.supervision.restart_budget import RestartBudget
from lightllm_mp.actors.supervision.shared_memory import SharedMemory
from lightllm_mp.actors.supervision.start_stages import StartStages
from lightllm_mp.actors.supervision.worker_group import WorkerGroup
from lightllm_mp.actors.topology import EMBEDDED, HTTP, ROUTER, SUPERVISOR, Child, Topology, topology
from lightllm_mp.config import Config
from lightllm_mp.messages import (
    Begin,
    Drained,
    Facts,
    Failed,
    Health,
    Loading,
    Ping,
    Pong,
    Ready,
    Reset,
    ResetDone,
    Stop,
    Wire,
)
from lightllm_mp.shm import implementation

log = logging.getLogger("lightllm_mp.supervisor")

EXIT_OK, EXIT_START_FAILED, EXIT_GAVE_UP = 0, 69, 70
STOP_GRACE = 3.0
"""Seconds one child has to leave after Stop before it is killed."""


class State(enum.Enum):
    STARTING = enum.auto()
    RUNNING = enum.auto()
    REPAIRING = enum.auto()
    STOPPING = enum.auto()


class Supervisor:
    """One server. `on_progress(child, Loading)` and `on_serving(facts)` are for whoever shows the start to a person;
    `plan` replaces the usual topology."""

    def __init__(
        self,
        config: Config,
        model_path: str,
        *,
        listen: socket.socket | None,
        on_progress: Callable[[str, Loading], None] = lambda name, loading: None,
        on_serving: Callable[[Facts], None] = lambda facts: None,
        plan: Topology | None = None,
    ) -> None:
        self._config = config
        self._model_path = model_path
        self._listen = listen
        self._stages, self._on_serving = StartStages(on_progress), on_serving
        self.topology = plan or self._usual_topology(HTTP if listen is not None else EMBEDDED)
        self._children = {child.name: child for child in self.topology.children}
        self._processes: dict[str, ChildProcess] = {}
        self._budget = RestartBudget(config.supervisor.max_restarts, config.supervisor.restart_window)
        self._restarts = dict.fromkeys(self._children, 0)
        self.state = State.STARTING
        self.epoch = 0
        self.facts = Facts()
        self.reason = ""
        """Why the server ended, when it did not end cleanly."""
        self._awaiting_ready = set(self.topology.actors)
        self._awaiting_reset: set[str] = set()
        self._restarted: set[str] = set()
        self._falling: set[str] = set()
        """Members of a crew that is being replaced whose processes are not gone yet."""
        self._ping_interval = min(2.0, config.supervisor.watchdog_timeout / 5)
        self._pinged: dict[str, float] = {}
        """When each ready child was sent the ping that it has not answered yet."""
        self._suspects: set[str] = set()
        self._dispensable = {child.name for child in self.topology.children if child.dispensable}
        self._draining = False
        self._changed_at = time.monotonic()
        self._timers: list[asyncio.TimerHandle] = []

    def _usual_topology(self, front: str) -> Topology:
        vision = find_vision(self._config, self._model_path)
        images = image_arenas(self._config, vision.spec) if vision else None
        most = self._config.http.max_body_bytes
        return topology(ranks=self._config.engine.tp, front=front, max_body=most, images=images)

    # --- life ---------------------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Start, serve until told to stop, and return the exit code."""
        self._exit: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.wiring = SharedMemory(self.topology)
        self._parent_read, self._parent_write = os.pipe()
        self._crew = WorkerGroup(self.topology, self.wiring)
        self._desk = ControlLanes(self.wiring, self.topology.actors, self._on_control)
        try:
            for child in self.topology.children:
                self._spawn(child)
            self._later(self._config.supervisor.start_timeout, self._check_start, self.epoch)
            self._later(self._ping_interval, self._tick)
            code = await self._exit
            await self._stop_children()
            return code
        finally:
            self.state = State.STOPPING
            for process in self._processes.values():
                process.kill()
            for timer in self._timers:
                timer.cancel()
            self._desk.close()
            self._crew.part()
            os.close(self._parent_write)
            os.close(self._parent_read)
            self.wiring.close()

    def begin_stop(self, code: int = EXIT_OK, reason: str = "") -> None:
        """Leave `run` with this exit code; idempotent, the first call decides."""
        if not self._exit.done():
            if reason:
                log.error("%s", reason)
            self.state, self.reason = State.STOPPING, reason
            self._stages.end()
            self._exit.set_result(code)

    def drain(self) -> None:
        """Refuse new requests, let running ones finish for at most drain_timeout, then stop. A second call: now."""
        if self._draining or self.state is State.STARTING:
            self.begin_stop()
            return
        self._draining = True
        log.info("draining: running requests have %.0f s", self._config.supervisor.drain_timeout)
        self._tell_health()
        self._later(self._config.supervisor.drain_timeout, self._drain_expired)

    def embedded_birth(self) -> LaunchSpec:
        """The start message of a front that lives in this process; its descriptors are duplicates that it owns."""
        duplicates: dict[int, int] = {fd: os.dup(fd) for fd in self.wiring.fds(EMBEDDED)}
        return renumbered(self._birth(Child(EMBEDDED, "")), duplicates)

    # --- children -----------------------------------------------------------------------------------------------------

    def _spawn(self, child: Child) -> None:
        birth = self._birth(child)
        fds = [*self.wiring.fds(child.name), self._parent_read]
        fds += [fd for fd in (birth.listen_fd, birth.meeting_fd) if fd >= 0]
        process = ChildProcess(birth, fds, lambda reason, name=child.name: self._on_exit(name, reason))  # type: ignore[misc]
        self._processes[child.name] = process
        log.info("%s started, pid %d", child.name, process.pid)

    def _birth(self, child: Child) -> LaunchSpec:
        name, front = child.name, self.topology.front
        return LaunchSpec(
            name=name,
            program=child.program,
            rank=child.rank,
            front=front,
            ring=implementation(),
            config=self._config,
            model_path=self._model_path,
            bell=self.wiring.bells[name].fds,
            peers=self.wiring.peers(name),
            stats=self.wiring.stats[name].fd,
            all_stats=tuple((n, page.fd) for n, page in self.wiring.stats.items()) if name == front else (),
            parent_fd=self._parent_read,
            listen_fd=self._listen.fileno() if self._listen and name == HTTP else -1,
            facts=self.facts if self.epoch else None,
            meeting_fd=self._crew.meeting if name in self._crew.members else -1,
            images_fd=self.wiring.images_fd(name),
        )

    def _on_exit(self, name: str, reason: str) -> None:
        self._desk.drain()  # its last words
        self._pinged.pop(name, None)
        self._stages.over(name)
        self._suspects.discard(name)
        if self.state is State.STOPPING:
            return
        if self.state is State.STARTING:
            self.begin_stop(EXIT_START_FAILED, f"start failed: {name} {reason}")
            return
        if name in self._falling:  # killed with its crew
            self._awaiting_ready.add(name)
            self._replace(name)
            return
        log.warning("%s %s", name, reason)
        if not self._budget.spend(time.monotonic()):
            self.begin_stop(EXIT_GAVE_UP, f"giving up: {name} {reason}, and the restart budget is spent")
            return
        self._restarts[name] += 1
        if self.state is not State.RUNNING or name not in self._awaiting_ready:  # else the others are without it anyway
            self._repair(name, reason)
        self._replace(name)

    def _repair(self, name: str, reason: str) -> None:
        """Somebody is gone, or must go: an epoch without it, and without its crew, ends."""
        crew = self._crew.of(name)
        self._awaiting_ready |= crew
        if self.state is State.RUNNING:
            self._end_epoch(crew)
        self._awaiting_reset -= crew
        self._restarted |= crew
        self._falling |= crew
        for member in crew:
            self._processes[member].kill()
        self._tell_health(f"{name} {reason} and is being replaced")
        if name == ROUTER:
            self._on_router_left()

    def _end_epoch(self, fallen: frozenset[str]) -> None:
        self.state = State.REPAIRING
        self.epoch += 1
        self._changed_at = time.monotonic()
        self._restarted.clear()
        self._awaiting_reset = set(self.topology.actors) - fallen - self._awaiting_ready
        for survivor in self._awaiting_reset - self._crew.members:
            self._desk.send(survivor, Reset(self.epoch))
        self._later(self._config.supervisor.start_timeout, self._check_start, self.epoch)

    def _on_router_left(self) -> None:
        """No plan will come any more: the crew can finish those it has got, and leave its lanes."""
        waiting = self._awaiting_reset & self._crew.members
        if waiting and self._crew.torn:
            log.warning("not every rank got the last step: all are replaced")
            self._repair(min(waiting), "waits for a step that not every rank got")
            return
        for member in waiting:
            self._desk.send(member, Reset(self.epoch))

    def _replace(self, name: str) -> None:
        """Start it again; a crew when all of it is gone, so that the old ones hold no memory."""
        self._falling.discard(name)
        crew = self._crew.of(name)
        if crew & self._falling:
            return
        if name in self._crew.members:
            self._crew.part()
        for member in sorted(crew):
            self._desk.reset(member)
            self._spawn(self._children[member])

    def _begin_if_everybody_is_there(self) -> None:
        first = self.state is State.STARTING
        absent = self._awaiting_ready - (set() if first else self._dispensable)
        if absent or self._awaiting_reset or self.state not in (State.STARTING, State.REPAIRING):
            return
        if first:
            self.epoch = 1  # as the lanes are made
        else:
            self.wiring.reset_data(self.epoch)
        self._crew.begin()
        self.state = State.RUNNING
        begin = Begin(self.epoch, self.facts, tuple(self._restarted))
        for name in self.topology.actors:
            if name not in self._awaiting_ready:
                self._desk.send(name, begin)
        self._tell_health()
        seconds = time.monotonic() - self._changed_at
        log.info("epoch %d: %s after %.2f s", self.epoch, "ready" if first else "serving again", seconds)
        if first:
            self._on_serving(self.facts)

    def _check_start(self, epoch: int) -> None:
        late = sorted(self._awaiting_ready | self._awaiting_reset)
        if epoch == self.epoch and late and self.state is not State.STOPPING:
            timeout = self._config.supervisor.start_timeout
            for process in filter(None, map(self._processes.get, late)):
                process.condemn(timeout)
            if self.state is State.RUNNING:  # without somebody dispensable, who is started once more
                self._later(timeout, self._check_start, epoch)
                return
            self.begin_stop(EXIT_START_FAILED, f"start failed: {', '.join(late)} not ready after {timeout:.0f} s")

    # --- control messages ---------------------------------------------------------------------------------------------

    def _on_control(self, name: str, message: Wire) -> None:
        match message:
            case Pong():
                self._pinged.pop(name, None)
                if name in self._suspects:
                    self._suspects.discard(name)
                    self._tell_health()
            case Ready(facts):
                self.facts = merge_facts(self.facts, facts)
                self._awaiting_ready.discard(name)
                self._stages.over(name)
                if self.state is State.RUNNING:
                    self._end_epoch(frozenset())  # for one with everybody
                self._begin_if_everybody_is_there()
            case ResetDone(epoch) if epoch == self.epoch:
                self._awaiting_reset.discard(name)
                if name == ROUTER:
                    self._on_router_left()
                self._begin_if_everybody_is_there()
            case Failed(reason):
                code = EXIT_START_FAILED if self.state is State.STARTING else EXIT_GAVE_UP
                self.begin_stop(code, f"{name} cannot start: {reason}")
            case Loading():
                self._stages.told(name, message)
            case Drained() if self._draining:
                log.info("drained")
                self.begin_stop()

    def _tell_health(self, reason: str = "") -> None:
        suspects = ", ".join(sorted(self._suspects))
        reason = reason or (f"{suspects} does not answer" if suspects else "")
        ok = self.state is State.RUNNING and not reason
        self._desk.send(self.topology.front, Health(ok, reason, self._draining))

    # --- watching -----------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """Ping every ready child; a silence of half its patience makes it suspect, a whole one ends it."""
        now = time.monotonic()
        for name, child in self._children.items():
            if name in self._awaiting_ready or self.state is State.STOPPING:
                continue
            silent = now - self._pinged.setdefault(name, now)
            limit = child.patience * self._config.supervisor.watchdog_timeout
            if silent == 0.0:
                self._desk.send(name, Ping(self.epoch))
            elif silent > limit:
                self._processes[name].condemn(silent)
            elif silent > limit / 2 and name not in self._suspects:
                log.warning("%s has not answered for %.1f s", name, silent)
                self._suspects.add(name)
                self._tell_health()
        self._publish_stats()
        self._later(self._ping_interval, self._tick)

    def _publish_stats(self) -> None:
        up = {f"up.{name}": float(name not in self._awaiting_ready) for name in self._children}
        restarts = {f"restarts.{name}": float(count) for name, count in self._restarts.items()}
        self.wiring.stats[SUPERVISOR].write({"epoch": self.epoch, **up, **restarts, **self.wiring.lane_gauges()})

    # --- the end ------------------------------------------------------------------------------------------------------

    def _drain_expired(self) -> None:
        if self.state is not State.STOPPING:
            log.warning("drain timeout: stopping with requests running")
            self.begin_stop()

    async def _stop_children(self) -> None:
        """Reverse start order, a crew together; whoever is not ready or not gone in time is killed."""
        told: set[str] = set()
        for child in reversed(self.topology.children):
            process = self._processes[child.name]
            for name in self._crew.of(child.name) - told:
                told.add(name)
                if self._processes[name].condemned:
                    continue  # it is being killed, and says first where it hangs
                if name in self._awaiting_ready:
                    self._processes[name].kill()
                else:
                    self._desk.send(name, Stop())
            deadline = time.monotonic() + STOP_GRACE
            while process.alive and time.monotonic() < deadline:
                await asyncio.sleep(0.01)
            if process.alive:
                log.warning("%s did not stop in time: killed", child.name)
                process.kill()
                while process.alive:
                    await asyncio.sleep(0.01)
        if not self.reason:  # else that is the last word
            log.info("stopped")

    def _later(self, seconds: float, call: Callable[..., None], *args: object) -> None:
        loop = asyncio.get_running_loop()
        self._timers = [timer for timer in self._timers if timer.when() > loop.time()]
        self._timers.append(loop.call_later(seconds, call, *args))
