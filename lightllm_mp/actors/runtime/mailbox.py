"""An actor's side of its lanes: named peers to send to, one inbox to read from.

Control lanes (with the supervisor) live as long as the process. Data lanes live for one epoch: `open_data` after Begin,
`leave_data` on Reset, so that the supervisor can empty them while nobody looks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from lightllm_mp.actors.runtime.launch_spec import LaunchSpec, PeerFds
from lightllm_mp.actors.topology import SUPERVISOR
from lightllm_mp.messages import Message, Wire
from lightllm_mp.shm import (
    Arena,
    Bell,
    BlockRef,
    ChannelPort,
    ChannelReceiver,
    ChannelSender,
    Inbox,
    Lane,
    LaneClosed,
    ProtocolError,
    Record,
    Sender,
)

if TYPE_CHECKING:
    import asyncio

BUDGET = 256
"""Records taken at a time, so that no flood keeps an actor from its other work."""

Received = tuple[str, "Wire | bytes"]
"""(peer, message or plan bytes)"""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


@dataclass
class _Peer:
    """The attached memory of one neighbour; the ends on top of it are made anew in every epoch."""

    name: str
    bell: Bell
    outgoing: Lane
    incoming: Lane
    own_arena: Arena | None
    peer_arena: Arena | None

    @classmethod
    def attach(cls, fds: PeerFds) -> _Peer:
        return cls(
            fds.name,
            Bell.attach(*fds.bell),
            Lane.attach(*fds.to_peer),
            Lane.attach(*fds.from_peer),
            Arena.adopt(fds.own_arena) if fds.own_arena >= 0 else None,
            Arena.attach(fds.peer_arena) if fds.peer_arena >= 0 else None,
        )

    def close(self) -> None:
        for part in (self.bell, self.outgoing, self.incoming, self.own_arena, self.peer_arena):
            if part:
                part.close()


class _Link:
    """One peer in one epoch: the port, and what could not be sent yet."""

    def __init__(self, own: Bell, peer: _Peer) -> None:
        if peer.own_arena:
            peer.own_arena.reset()
        self.sender = Sender(peer.outgoing, own, peer.bell)
        self.outgoing = ChannelSender(self.sender, _encoder, peer.own_arena)
        self.port = ChannelPort(self.outgoing, ChannelReceiver(peer.incoming, _decoder, peer.peer_arena))
        self.waiting: deque[Wire] = deque()
        self._peer = peer

    def read(self, ref: BlockRef) -> bytes:
        assert self._peer.peer_arena is not None
        return self._peer.peer_arena.read(ref)

    def flush(self) -> bool:
        """Send what waits, in order. True: nothing waits any more."""
        self.port.flush()
        while self.waiting and self.port.send(self.waiting[0]):
            self.waiting.popleft()
        return not self.waiting


class Mailbox:
    def __init__(self, birth: LaunchSpec) -> None:
        self.bell = Bell.attach(*birth.bell)
        self.bell.claim()
        self._peers = [_Peer.attach(fds) for fds in birth.peers]
        self._links: dict[str, _Link] = {}
        self._names: list[str] = []
        self._inbox = Inbox(self.bell)
        self._listener: tuple[asyncio.AbstractEventLoop, Callable[[list[Record]], None]] | None = None
        self._early: list[Record] = []
        self._connect(self._peers[:1])

    # --- epochs -------------------------------------------------------------------------------------------------------

    def open_data(self, epoch: int) -> None:
        """Begin: the data lanes are fresh, use them."""
        self.bell.claim(epoch)
        self._rebuild(self._peers)

    def leave_data(self) -> None:
        """Reset: use no data lane any more. What was not yet read or sent on them is gone."""
        self._rebuild(self._peers[:1])

    def close(self) -> None:
        self._disconnect()
        for peer in self._peers:
            peer.close()
        self.bell.close()

    def _rebuild(self, peers: list[_Peer]) -> None:
        # The twin of the ring keeps counts in the ends: what has arrived on the control lane must be taken out of them.
        records = self._inbox.drain(1 << 20)
        self._early += [record for record in records if self._names[record[0]] == SUPERVISOR]
        waiting = self._links[SUPERVISOR].waiting
        self._disconnect()
        self._inbox = Inbox(self.bell)
        self._connect(peers)
        self._links[SUPERVISOR].waiting = waiting
        if self._listener:
            self._attach(*self._listener)

    def _connect(self, peers: list[_Peer]) -> None:
        self._names = [peer.name for peer in peers]
        self._links = {peer.name: _Link(self.bell, peer) for peer in peers}
        for peer in peers:
            self._inbox.add(peer.incoming, peer.bell)

    def _disconnect(self) -> None:
        self._inbox.close()
        for link in self._links.values():
            link.sender.close()
        self._links = {}

    # --- sending ------------------------------------------------------------------------------------------------------

    def send(self, peer: str, message: Wire) -> bool:
        """False: no room now (or no data lanes now); the caller decides what that means. Keeps order with `post`."""
        link = self._links.get(peer)
        if link is None or link.waiting:
            return False
        try:
            return link.port.send(message)
        except LaneClosed:  # the peer found the lane corrupt and is about to be replaced
            return False

    def post(self, peer: str, message: Wire) -> None:
        """Send now or, in order, as soon as there is room. Without data lanes it is dropped: its epoch is over."""
        link = self._links.get(peer)
        if link is not None and not self.send(peer, message):
            link.waiting.append(message)

    def send_plan(self, peer: str, plan: bytes) -> None:
        """Raw bytes to a peer that has room by construction; a full lane is a bug."""
        if not self._links[peer].port.send_raw(plan):
            raise RuntimeError(f"the lane to {peer} cannot take a step plan of {len(plan)} bytes")

    def flush(self) -> None:
        """Retry what waits; called when the bell rang. LaneClosed: a lane is corrupt, the actor must be replaced."""
        for link in self._links.values():
            link.flush()

    def lend(self, peer: str, data: bytes, known: BlockRef | None = None) -> BlockRef | None:
        """Lend `data` to a peer, in a block of its own, or in the `known` one that holds them and is still lent; the
        peer is told in a message. None: no room now, or no data lanes."""
        link = self._links.get(peer)
        if link is None:
            return None
        if known is not None and link.outgoing.lend_again(known):
            return known
        return link.outgoing.lend(data)

    def take_back(self, peer: str, ref: BlockRef) -> None:
        """The peer has not been told of this lease and will not be."""
        self._links[peer].outgoing.release([(ref.offset, ref.generation)])

    def read(self, peer: str, ref: BlockRef) -> bytes:
        """A copy of what `peer` has lent."""
        return self._links[peer].read(ref)

    def give_back(self, peer: str, ref: BlockRef) -> None:
        """What `peer` has lent is not needed any more."""
        if (link := self._links.get(peer)) is not None:
            link.port.give_back(ref)

    @property
    def leased(self) -> int:
        """Bytes of this actor's arenas that its peers have not given back."""
        return sum(peer.own_arena.used for peer in self._peers if peer.own_arena)

    @property
    def backlog(self) -> int:
        """Messages that wait for room."""
        return sum(len(link.waiting) for link in self._links.values())

    # --- receiving ----------------------------------------------------------------------------------------------------

    def receive(self) -> list[Received]:
        """At most BUDGET records, decoded; [] when there is nothing."""
        early, self._early = self._early, []
        return self.decode(early or self._inbox.drain(BUDGET))

    def wait(self, timeout: float | None = None, spin_us: int = 0) -> bool:
        """Sleep until something may have arrived or room may have come back; False after `timeout` seconds."""
        return bool(self._early) or self._inbox.wait(timeout, spin_us)

    def listen(self, loop: asyncio.AbstractEventLoop, on_records: Callable[[list[Record]], None]) -> None:
        """Deliver records, to be decoded, in an asyncio loop from now on, over all epochs. `on_records([])`: room may
        have come back."""
        self._listener = (loop, on_records)
        self._attach(loop, on_records)

    def _attach(self, loop: asyncio.AbstractEventLoop, on_records: Callable[[list[Record]], None]) -> None:
        if self._early:
            early, self._early = self._early, []
            loop.call_soon(on_records, early)
        self._inbox.attach(loop, on_records, BUDGET)

    def decode(self, records: list[Record]) -> list[Received]:
        """What the records say. ProtocolError when a peer sent what cannot be right: the actor must be replaced."""
        if len(records) < BUDGET and (poisoned := self._inbox.poisoned):
            names = ", ".join(self._names[lane] for lane in poisoned)
            raise ProtocolError(f"what came from {names} cannot be right; its lane is poisoned")
        found: list[Received] = []
        for lane, kind, payload in records:
            name = self._names[lane] if lane < len(self._names) else SUPERVISOR
            message = self._links[name].port.decode(kind, payload)
            if message is not None:
                found.append((name, message))
        return found
