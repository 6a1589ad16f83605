"""Holds this machine's ranks of an engine whose other actors run on another machine, its first node.

The agent joins the first node again and again. There its connection ends in a stand-in (actors/node.py), and the two
act as a long lane: plans and control messages go to every rank of this machine; an answer that all ranks owe goes back
when the last rank has given it. Ranks are the same processes as on a single machine, with the same lanes. When a rank
dies, the agent reports it and ends the others; when the connection ends, it ends all ranks. Then it joins again.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
from contextlib import suppress

from msgspec.structs import replace

from lightllm_mp.actors.runtime.launch_spec import LaunchSpec
from lightllm_mp.actors.runtime.node_link import (
    PIECE,
    FrameKind,
    NodeLaunch,
    NodeLink,
    NodeLost,
    decode_image,
    decode_launch,
    decode_message,
    greet,
)
from lightllm_mp.actors.supervision.child_process import ChildProcess, reaped_orphans
from lightllm_mp.actors.supervision.control_lanes import ControlLanes, PlanLanes
from lightllm_mp.actors.supervision.shared_memory import SharedMemory
from lightllm_mp.actors.topology import ROUTER, WORKER, Child, Topology, control_edge, plan_edge, ranks_of, worker
from lightllm_mp.config import Config, SupervisorConfig
from lightllm_mp.errors import EngineError
from lightllm_mp.messages import Begin, Failed, Loading, Stop, Wire
from lightllm_mp.shm import implementation

log = logging.getLogger("lightllm_mp.node")

PAUSE = 0.3
"""Seconds between two attempts to join."""


class NodeAgent:
    """`config`: of this machine; the engine's own comes from the first node, except for the model's place. `program`:
    what each rank runs, whatever the first node asks for."""

    def __init__(self, config: Config, key: bytes, program: str = WORKER) -> None:
        self._config, self._key, self._program = config, key, program
        self._said = ""
        """The last reported reason why it cannot join."""
        self._host: RankHost | None = None

    async def run(self) -> None:
        """Serve one generation of ranks after another, until it is cancelled."""
        engine = self._config.engine
        address = engine.nccl_host, engine.nccl_port + engine.node_rank
        while True:
            try:
                reader, writer = await asyncio.open_connection(*address, limit=PIECE)
            except OSError as error:
                self._say(f"waiting for the first node at {address[0]}:{address[1]} ({error.strerror or error})")
            else:
                await self._join(reader, writer)
            await asyncio.sleep(PAUSE)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await greet(reader, writer, self._key, node=self._config.engine.node_rank, first=False)
        except NodeLost as error:
            self._say(error.message)
            writer.transport.abort()
            return
        self._said = ""
        link = NodeLink(reader, writer, "the first node")
        try:
            kind, payload = await link.receive()
            if kind is not FrameKind.LAUNCH:
                raise NodeLost("the first node does not begin with a launch")
            await self._serve(link, self._own(decode_launch(payload)))
        except EngineError as error:
            log.warning("%s", error.message)
        finally:
            await link.finish()

    def _own(self, launch: NodeLaunch) -> NodeLaunch:
        """The launch with this machine's place of the model, if the machine has one."""
        engine = replace(launch.settings.engine, node_rank=self._config.engine.node_rank)
        found = replace(launch, settings=replace(launch.settings, engine=engine))
        path = self._config.model.model_dir
        return found if path is None else replace(found, model=replace(found.model, path=path))

    async def _serve(self, link: NodeLink, launch: NodeLaunch) -> None:
        try:
            host = RankHost(link, launch, self._program, self._config.supervisor)
        except (EngineError, OSError) as error:  # memory, processes or descriptors are exhausted
            link.send_message(Failed(str(error)))
            return
        log.info("joined: %s", ", ".join(host.names))
        self._host = host
        try:
            await host.serve()
        finally:
            await host.close()

    def reap_orphans(self) -> None:
        """See Supervisor."""
        if not reaped_orphans(self._host.processes if self._host else ()):
            asyncio.get_running_loop().call_soon(self.reap_orphans)

    def _say(self, reason: str) -> None:
        if reason != self._said:
            log.warning("%s", reason)
        self._said = reason


class RankHost:
    """One generation of this machine's ranks. Raises what SharedMemory and ChildProcess raise."""

    def __init__(self, link: NodeLink, launch: NodeLaunch, program: str, logs: SupervisorConfig) -> None:
        engine = launch.settings.engine
        ranks = ranks_of(engine.node_rank, engine.tp, engine.nnodes)
        children = tuple(Child(worker(rank), program, rank=rank, shares_fate=True) for rank in ranks)
        edges = (*map(plan_edge, children), *(control_edge(child.name) for child in children))
        self.names = tuple(child.name for child in children)
        self._link, self._launch, self._logs = link, launch, logs
        self._answers: dict[type[Wire], set[str]] = {}
        """Answers that other ranks still owe -> the ranks that have given them."""
        self._processes: dict[str, ChildProcess] = {}
        self._stopping = False
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when a rank has ended; after Stop, when the last one has."""
        self._wiring = SharedMemory(Topology(ROUTER, children, edges, launch.images))
        self._parent_read, self._parent_write = os.pipe()
        self._control = ControlLanes(self._wiring, self.names, self._on_control)
        self._plans = PlanLanes(self._wiring, self.names)
        try:
            for child in children:
                self._start(child)
        except OSError:
            self._ended.set_result(None)
            for process in self._processes.values():
                process.kill()
            self._release()
            raise

    def _start(self, child: Child) -> None:
        launch = self._launch
        spec = LaunchSpec(
            name=child.name,
            program=child.program,
            rank=child.rank,
            front=ROUTER,
            ring=implementation(),
            settings=launch.settings,
            log_level=self._logs.log_level,
            log_json=self._logs.log_json,
            model=launch.model,
            bell=self._wiring.bells[child.name].fds,
            peers=self._wiring.peers(child.name),
            stats=self._wiring.stats[child.name].fd,
            parent_fd=self._parent_read,
            facts=launch.facts,
            images_fd=self._wiring.images_fd(child.name),
            epoch=launch.epoch,
            meeting=launch.meeting,
        )
        fds = [*self._wiring.fds(child.name), self._parent_read]
        process = ChildProcess(spec, fds, functools.partial(self._on_exit, child.name))
        self._processes[child.name] = process
        log.info("%s started, pid %d", child.name, process.pid)

    @property
    def processes(self) -> tuple[ChildProcess, ...]:
        return tuple(self._processes.values())

    async def serve(self) -> None:
        """Serve until a rank or the connection ends. NodeLost."""
        reading = asyncio.ensure_future(self._read())
        try:
            await asyncio.wait((reading, self._ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            reading.cancel()
            with suppress(asyncio.CancelledError):
                await reading

    async def _read(self) -> None:
        while True:
            kind, payload = await self._link.receive()
            match kind:
                case FrameKind.PLAN:
                    await self._plans.send(payload)
                case FrameKind.IMAGE:
                    if not self._wiring.write_image(*decode_image(payload)):
                        raise NodeLost("there is too little memory for embeddings of images")
                case FrameKind.MESSAGE:
                    self._pass_on(decode_message(payload))
                case _:
                    raise NodeLost(f"the first node sends a frame of kind {kind.name}")

    def _pass_on(self, message: Wire) -> None:
        match message:
            case Begin(epoch):
                self._plans.begin(epoch)
            case Stop():
                self._stopping = True
        for name in self.names:
            self._control.send(name, message)

    def _on_control(self, name: str, message: Wire) -> None:
        match message:
            case Loading():
                if name == self.names[0]:
                    self._link.send_message(message)
            case Failed(reason):
                self._link.send_message(Failed(f"{name}: {reason}"))
            case _:
                said = self._answers.setdefault(type(message), set())
                said.add(name)
                if len(said) == len(self.names):
                    said.clear()
                    self._link.send_message(message)

    def _on_exit(self, name: str, reason: str) -> None:
        if self._ended.done():
            return
        self._control.drain()  # the last messages of the rank
        if self._stopping and any(process.alive for process in self._processes.values()):
            return
        self._link.send(FrameKind.LOST, f"{name} {reason}".encode())
        log.log(logging.INFO if self._stopping else logging.WARNING, "%s %s", name, reason)
        self._ended.set_result(None)

    async def close(self) -> None:
        """End all ranks. When it returns, their memory is free."""
        if not self._ended.done():
            self._ended.set_result(None)
        for process in self._processes.values():
            process.kill()
        while any(process.alive for process in self._processes.values()):
            await asyncio.sleep(0.01)
        self._release()

    def _release(self) -> None:
        self._control.close()
        self._plans.close()
        self._wiring.close()
        os.close(self._parent_read)
        os.close(self._parent_write)
