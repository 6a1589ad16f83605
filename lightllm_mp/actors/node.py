"""The local stand-in for another machine that holds ranks of this engine. The supervisor and the router see a rank.

It waits until the machine joins, tells it what to start, and passes on control messages and plans; the embeddings that
a plan names go before it. Messages of the ranks to the supervisor come back. The stand-in ends when the machine loses a
rank or is lost itself: the supervisor sees the death of a rank. When the supervisor kills the stand-in, the machine
kills its ranks.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Mapping

from lightllm_mp.actors.http.security.keys import RELAY_ENVIRONMENT, relay_keys
from lightllm_mp.actors.runtime.actor_settings import WorkerSettings
from lightllm_mp.actors.runtime.async_actor import AsyncActor
from lightllm_mp.actors.runtime.launch_spec import LaunchSpec
from lightllm_mp.actors.runtime.mailbox import Mailbox, Received
from lightllm_mp.actors.runtime.node_link import (
    PIECE,
    FrameKind,
    NodeLaunch,
    NodeLink,
    NodeLost,
    decode_message,
    encode_launch,
    greet,
)
from lightllm_mp.actors.runtime.rank_actor import plans_first
from lightllm_mp.actors.runtime.stats_page import StatsPage
from lightllm_mp.actors.topology import SUPERVISOR
from lightllm_mp.errors import ConfigError, StartupError
from lightllm_mp.messages import Begin, Reset, Stop, Wire
from lightllm_mp.plan import unpack
from lightllm_mp.shm import Arena

log = logging.getLogger("lightllm_mp.node")


class NodeActor(AsyncActor):
    """`launch.rank` is the number of the machine."""

    def __init__(self, launch: LaunchSpec[WorkerSettings], mailbox: Mailbox, stats: StatsPage) -> None:
        super().__init__(mailbox, stats)
        self._launch, self._node = launch, launch.rank
        self._key = node_key(os.environ)
        self._images = Arena.attach(launch.images_fd) if launch.images_fd >= 0 else None
        self._shipped: dict[int, int] = {}
        """Start of a block of embeddings -> the generation of that block that the machine has."""
        self._link: NodeLink
        engine = launch.settings.engine
        self._address = engine.nccl_host, engine.nccl_port + self._node
        try:
            self._listening = socket.create_server(self._address)
        except OSError as error:
            raise StartupError(
                f"node {self._node} cannot join at {self._address[0]}:{self._address[1]}: {error}"
            ) from None

    def ready(self) -> None:
        """Does nothing: the machine sends Ready when its ranks are ready."""

    def run(self) -> None:
        try:
            asyncio.run(self._serve())
        except NodeLost as error:
            log.error("%s", error.message)
            sys.exit(1)

    async def _serve(self) -> None:
        self.stage(f"waiting for node {self._node} to join at {self._address[0]}:{self._address[1]}")
        self._link = await self._joined()
        self._link.send(FrameKind.LAUNCH, encode_launch(self._node_launch()))
        self.listen()
        relaying = asyncio.ensure_future(self._relay())
        relaying.add_done_callback(lambda _: self._end.set())
        try:
            await self.until_stopped()
            await relaying  # after Stop, the machine's last frame says that its ranks have ended
        finally:
            relaying.cancel()
            self._link.close()

    async def _joined(self) -> NodeLink:
        """The connection of the first peer that proves the key."""
        joined: asyncio.Future[NodeLink] = asyncio.get_running_loop().create_future()

        async def welcome(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await greet(reader, writer, self._key, node=self._node, first=True)
            except NodeLost as error:
                log.warning("%s", error.message)
                writer.transport.abort()
                return
            if joined.done():
                writer.transport.abort()
                return
            log.info("node %d joins from %s", self._node, writer.get_extra_info("peername")[0])
            joined.set_result(NodeLink(reader, writer, f"node {self._node}"))

        server = await asyncio.start_server(welcome, sock=self._listening, limit=PIECE)
        try:
            return await joined
        finally:
            server.close()

    def _node_launch(self) -> NodeLaunch:
        launch = self._launch
        images = self._images.capacity if self._images else 0
        return NodeLaunch(launch.settings, launch.model, launch.meeting, launch.facts, launch.epoch, images)

    async def _relay(self) -> None:
        """Pass on the machine's messages until its last frame. NodeLost."""
        while True:
            kind, payload = await self._link.receive()
            match kind:
                case FrameKind.MESSAGE:
                    self.mailbox.post(SUPERVISOR, decode_message(payload))
                case FrameKind.LOST if self.stopped:
                    return
                case _:
                    raise NodeLost(f"node {self._node}: {payload.decode(errors='replace')}")

    def handle(self, received: list[Received]) -> None:
        super().handle(plans_first(self.mailbox, received))

    def on_plan(self, plan: bytes) -> None:
        if self._images is not None:
            self._ship(plan, self._images)
        self._link.send(FrameKind.PLAN, plan)

    def _ship(self, plan: bytes, images: Arena) -> None:
        """Send the blocks that a plan names, each once. The router holds their leases until the step is answered."""
        places = unpack(plan).images[:, 3:5].copy().view("<i8")[:, 0].tolist()
        for place in set(places):
            block = images.at(place)
            if self._shipped.get(place) != block.generation:
                self._link.send_image(place, images.view(block))
                self._shipped[place] = block.generation

    def _on_supervisor(self, message: Wire | bytes) -> None:
        assert isinstance(message, Wire)
        match message:
            case Reset():
                self.live = False
                self.mailbox.leave_data()
            case Begin(epoch):
                self.mailbox.open_data(epoch)
                self.live = True
            case Stop():
                self.stopped = True
        self._link.send_message(message)


def node_key(environment: Mapping[str, str]) -> bytes:
    """The secret that the machines of an engine share. ConfigError if there is none."""
    keys = relay_keys(environment)
    if not keys:
        raise ConfigError(f"--nnodes needs a secret that all nodes have in {RELAY_ENVIRONMENT}", param="nnodes")
    return keys[0].encode()
