"""The ends that a supervisor has of lanes: control lanes to and from every actor, and on a machine that only holds
ranks those with the router, which is elsewhere."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from lightllm_mp.actors.supervision.shared_memory import SharedMemory
from lightllm_mp.actors.topology import ROUTER, SUPERVISOR
from lightllm_mp.messages import Message, Wire
from lightllm_mp.shm import (
    ChannelPort,
    ChannelReceiver,
    ChannelSender,
    Inbox,
    LaneClosed,
    ProtocolError,
    Record,
    Sender,
)

log = logging.getLogger("lightllm_mp.supervisor")


class LaneEnds:
    """Those of the actor `own`. The running loop calls `on_message(name, message)` for what arrives."""

    def __init__(
        self, wiring: SharedMemory, own: str, names: tuple[str, ...], on_message: Callable[[str, Wire], None]
    ) -> None:
        self._wiring, self._own, self._names, self._on_message = wiring, own, names, on_message
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Message)
        self._ports: dict[str, ChannelPort] = {}
        self._senders: dict[str, Sender] = {}
        self._open()

    def drain(self) -> None:
        """Deliver everything that has arrived."""
        while records := self._inbox.drain():
            self._deliver(records)

    def _open(self) -> None:
        own = self._wiring.bells[self._own]
        self._inbox = Inbox(own)
        for name in self._names:
            peer = self._wiring.bells[name]
            incoming = self._wiring.lane(name, self._own)
            sender = Sender(self._wiring.lane(self._own, name), own, peer)
            if arena := self._wiring.arena(self._own, name):
                arena.reset()
            self._senders[name] = sender
            self._ports[name] = ChannelPort(
                ChannelSender(sender, self._encoder, arena), ChannelReceiver(incoming, self._decoder)
            )
            self._inbox.add(incoming, peer)
        self._inbox.attach(asyncio.get_running_loop(), self._deliver)

    def close(self) -> None:
        self._inbox.close()
        for sender in self._senders.values():
            sender.close()

    def _deliver(self, records: list[Record]) -> None:
        for lane, kind, payload in records:
            name = self._names[lane]
            try:
                message = self._ports[name].decode(kind, payload)
            except ProtocolError as error:
                log.error("%s sent an invalid control message: %s", name, error)
                continue
            if message is not None:
                self._on_message(name, message)


class ControlLanes(LaneEnds):
    """The supervisor's, to and from every actor."""

    def __init__(self, wiring: SharedMemory, names: tuple[str, ...], on_message: Callable[[str, Wire], None]) -> None:
        super().__init__(wiring, SUPERVISOR, names, on_message)

    def send(self, name: str, message: Wire) -> None:
        """Never waits. A full lane means that the process does not read; the watchdog ends such a process."""
        try:
            if not self._ports[name].send(message):
                log.warning("%s does not read its control lane", name)
        except LaneClosed:
            log.warning("the control lane to %s is closed", name)

    def reset(self, name: str) -> None:
        """The process is dead: deliver its last messages and empty its lanes for its successor."""
        self.drain()
        self.close()
        self._wiring.reset_control(name)
        self._open()


class PlanLanes(LaneEnds):
    """The router's, to ranks of this machine that never answer it."""

    def __init__(self, wiring: SharedMemory, names: tuple[str, ...]) -> None:
        self._space = asyncio.Event()
        super().__init__(wiring, ROUTER, names, lambda name, message: None)

    async def send(self, plan: bytes) -> None:
        """To all of them. It waits where a rank does not read."""
        for name in self._names:
            while not self._ports[name].send_raw(plan):
                self._space.clear()
                await self._space.wait()

    def begin(self, epoch: int) -> None:
        """A new epoch: the ranks have left their lanes."""
        self.close()
        self._wiring.reset_data(epoch)
        self._open()

    def _deliver(self, records: list[Record]) -> None:
        super()._deliver(records)
        self._space.set()
