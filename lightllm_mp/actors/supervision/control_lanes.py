"""The supervisor's ends of the control lanes: one lane to and one from every actor."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from lightllm_mp.actors.supervision.shared_memory import SharedMemory
from lightllm_mp.actors.topology import SUPERVISOR
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


class ControlLanes:
    """Sends to every actor; the running loop calls `on_message(name, message)` for what arrives."""

    def __init__(self, wiring: SharedMemory, names: tuple[str, ...], on_message: Callable[[str, Wire], None]) -> None:
        self._wiring, self._names, self._on_message = wiring, names, on_message
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Message)
        self._ports: dict[str, ChannelPort] = {}
        self._senders: dict[str, Sender] = {}
        self._inbox = Inbox(wiring.bells[SUPERVISOR])
        self._open()

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
        self._inbox = Inbox(self._wiring.bells[SUPERVISOR])
        self._open()

    def drain(self) -> None:
        """Deliver everything that has arrived."""
        while records := self._inbox.drain():
            self._deliver(records)

    def _open(self) -> None:
        own = self._wiring.bells[SUPERVISOR]
        for name in self._names:
            peer = self._wiring.bells[name]
            incoming = self._wiring.lane(name, SUPERVISOR)
            sender = Sender(self._wiring.lane(SUPERVISOR, name), own, peer)
            self._senders[name] = sender
            self._ports[name] = ChannelPort(
                ChannelSender(sender, self._encoder), ChannelReceiver(incoming, self._decoder)
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
