"""Starts the processes of a server, watches them, replaces dead ones and stops them. It touches no request.

`StateMachine` decides what happens when: exits, control messages, timers and signals are its events. The supervisor
executes the actions that the machine returns.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable

from lightllm_mp.actors.runtime.actor_settings import FrontSettings, child_settings, front_settings
from lightllm_mp.actors.runtime.launch_spec import LaunchSpec, S, renumbered
from lightllm_mp.actors.supervision.actions import (
    Action,
    After,
    CompareRanks,
    Exit,
    Kill,
    Log,
    Progress,
    ResetData,
    Send,
    Serving,
    Spawn,
)
from lightllm_mp.actors.supervision.child_process import ChildProcess, reaped_orphans
from lightllm_mp.actors.supervision.control_lanes import ControlLanes
from lightllm_mp.actors.supervision.engine_state import engine_state
from lightllm_mp.actors.supervision.image_arenas import image_arenas
from lightllm_mp.actors.supervision.shared_memory import SharedMemory
from lightllm_mp.actors.supervision.state_machine import EXIT_OK, State, StateMachine
from lightllm_mp.actors.supervision.worker_group import WorkerGroup
from lightllm_mp.actors.topology import EMBEDDED, HTTP, SUPERVISOR, Child, Topology, topology
from lightllm_mp.config import Config
from lightllm_mp.facts import Facts
from lightllm_mp.messages import Inspect, Loading, Wire
from lightllm_mp.model_description import ModelDescription
from lightllm_mp.shm import implementation

log = logging.getLogger("lightllm_mp.supervisor")


class Supervisor:
    """One server. The constructor needs a running loop; it raises StartupError if shared memory is too small.

    `on_progress(child, Loading)` and `on_serving(facts)` show the start to the operator; `plan` replaces the usual
    topology.
    """

    def __init__(
        self,
        config: Config,
        model: ModelDescription,
        *,
        listen: socket.socket | None,
        on_progress: Callable[[str, Loading], None] = lambda name, loading: None,
        on_serving: Callable[[Facts], None] = lambda facts: None,
        plan: Topology | None = None,
    ) -> None:
        self._config, self._settings = config, child_settings(config)
        self._model = model
        self._listen = listen
        self._on_progress, self._on_serving = on_progress, on_serving
        self.topology = plan or self._usual_topology(HTTP if listen is not None else EMBEDDED)
        self._machine = StateMachine(self.topology, config.supervisor, time.monotonic())
        self._processes: dict[str, ChildProcess] = {}
        self._ping_interval = min(2.0, config.supervisor.watchdog_timeout / 5)
        self._exit: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        kept = max(config.http.resume_window, config.http.response_window)
        journal = config.http.journal_size if listen is not None and kept else 0
        self.wiring = SharedMemory(self.topology, journal=journal)
        self._parent_read, self._parent_write = os.pipe()
        engine = config.engine
        self._group = WorkerGroup(self._machine.ranks, self.wiring, engine.nccl_host if engine.nnodes > 1 else "")
        self._control = ControlLanes(self.wiring, self.topology.actors, self._on_control)

    def _usual_topology(self, front: str) -> Topology:
        vision = self._model.vision
        images = image_arenas(self._config.multimodal, self._config.model.data_type, vision.spec) if vision else None
        engine, most = self._config.engine, self._config.http.max_body_bytes
        return topology(ranks=engine.tp, nodes=engine.nnodes, front=front, max_body=most, images=images)

    # --- for its owner ------------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        return self._machine.state

    @property
    def epoch(self) -> int:
        return self._machine.epoch

    @property
    def facts(self) -> Facts:
        return self._machine.facts

    @property
    def reason(self) -> str:
        """Why the server ended; empty after a clean end."""
        return self._machine.reason

    @property
    def restarts(self) -> dict[str, int]:
        """How often each process was replaced after its own death."""
        return {child.name: self._machine.children[child.name].restarts for child in self.topology.children}

    @property
    def pids(self) -> dict[str, int]:
        return {name: process.pid for name, process in self._processes.items()}

    def kill(self, name: str) -> None:
        """SIGKILL a process, as a crash would."""
        self._processes[name].kill()

    async def run(self) -> int:
        """Start, serve until told to stop, and return the exit code. Once."""
        try:
            self._do(self._machine.start())
            self._later(self._ping_interval, self._tick)
            return await self._exit
        finally:
            self._machine.stop()
            for process in self._processes.values():
                process.kill()
            self._control.close()
            self._group.close()
            os.close(self._parent_write)
            os.close(self._parent_read)
            self.wiring.close()

    def begin_stop(self, code: int = EXIT_OK, reason: str = "") -> None:
        """Leave `run` with this exit code; idempotent, the first call decides."""
        self._do(self._machine.stop(code, reason))

    def drain(self) -> None:
        """After drain_delay refuse new requests, let running ones finish for at most drain_timeout, then stop. A second
        call: now."""
        self._do(self._machine.drain())

    @property
    def draining(self) -> bool:
        return self._machine.draining

    def reap_orphans(self) -> None:
        """Reap processes that lost their parent and were given to this one, which is PID 1 or a subreaper. Only for a
        program that starts no processes but these; the loop reaps its own children (`ChildProcess`)."""
        if not reaped_orphans(self._processes.values()):
            asyncio.get_running_loop().call_soon(self.reap_orphans)

    def embedded_launch(self) -> LaunchSpec[FrontSettings]:
        """The start message of a front that lives in this process; its descriptors are duplicates that it owns."""
        duplicates: dict[int, int] = {fd: os.dup(fd) for fd in self.wiring.fds(EMBEDDED)}
        return renumbered(self._launch(Child(EMBEDDED, ""), front_settings(self._config)), duplicates)

    # --- actions ------------------------------------------------------------------------------------------------------

    def _do(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Send(name, message):
                    self._control.send(name, message)
                case Spawn(names, replace):
                    self._spawn(names, replace=replace)
                case Kill(name, silent):
                    if name in self._processes:
                        self._processes[name].kill(silent)
                case ResetData(epoch):
                    self.wiring.reset_data(epoch)
                    self._group.begin()
                case CompareRanks():
                    self._do(self._machine.ranks_compared(self._group.torn, time.monotonic()))
                case After(seconds, event, args):
                    self._later(seconds, event, *args)
                case Progress(name, loading):
                    self._on_progress(name, loading)
                case Serving(facts):
                    self._on_serving(facts)
                case Log(level, text):
                    log.log(level, "%s", text)
                case Exit(code):
                    self._exit.set_result(code)

    def _later(self, seconds: float, event: Callable[..., Iterable[Action]], *args: object) -> None:
        def expire() -> None:
            if not self._exit.done():
                self._do(event(*args))

        asyncio.get_running_loop().call_later(seconds, expire)

    def _spawn(self, names: tuple[str, ...], *, replace: bool) -> None:
        """Start these. The state machine is told which the system refuses."""
        left = list(names)
        try:
            if replace and names == self._group.members:
                self._group.part()
            for name in names:
                if replace:
                    self._control.reset(name)
                self._start(self._machine.children[name].spec)
                left.remove(name)
        except OSError as error:  # no memory, process or descriptor for it
            self._later(0.0, self._machine.refused, tuple(left), str(error), time.monotonic())

    def _start(self, child: Child) -> None:
        launch = self._launch(child, self._settings[child.name])
        fds = [*self.wiring.fds(child.name), self._parent_read]
        fds += [fd for fd in (launch.listen_fd, launch.meeting_fd) if fd >= 0]
        process = ChildProcess(launch, fds, functools.partial(self._on_exit, child.name))
        self._processes[child.name] = process
        log.info("%s started, pid %d", child.name, process.pid)

    def _launch(self, child: Child, settings: S) -> LaunchSpec[S]:
        logs = self._config.supervisor
        name, front = child.name, self.topology.front
        return LaunchSpec(
            name=name,
            program=child.program,
            rank=child.rank,
            front=front,
            ring=implementation(),
            settings=settings,
            log_level=logs.log_level,
            log_json=logs.log_json,
            model=self._model,
            bell=self.wiring.bells[name].fds,
            peers=self.wiring.peers(name),
            stats=self.wiring.stats[name].fd,
            all_stats=tuple((n, page.fd) for n, page in self.wiring.stats.items()) if name == front else (),
            parent_fd=self._parent_read,
            listen_fd=self._listen.fileno() if self._listen and name == HTTP else -1,
            facts=self.facts if self.epoch else None,
            meeting_fd=self._group.meeting if name in self._group.members else -1,
            meeting=self._group.address,
            images_fd=self.wiring.images_fd(name),
            journal_fd=self.wiring.journal_fd(name),
            epoch=self.epoch,
        )

    # --- events -------------------------------------------------------------------------------------------------------

    def _on_exit(self, name: str, reason: str) -> None:
        self._control.drain()  # the last messages of the dead process
        self._do(self._machine.exited(name, reason, time.monotonic()))

    def _on_control(self, name: str, message: Wire) -> None:
        if isinstance(message, Inspect):
            self._control.send(name, engine_state(self._machine, self._processes, self.wiring, time.monotonic()))
            return
        self._do(self._machine.received(name, message, time.monotonic()))

    def _tick(self) -> Iterable[Action]:
        """Every ping interval. Statistics come last: no error in them ends the watchdog."""
        self._later(self._ping_interval, self._tick)  # first: nothing that fails below ends the watchdog
        self._do(self._machine.tick(time.monotonic()))
        up = {name: self._machine.children[name].ready for name in self.restarts}
        self.wiring.stats[SUPERVISOR].write(self.wiring.gauges(self.epoch, up, self.restarts))
        return ()
