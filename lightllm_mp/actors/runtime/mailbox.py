"""An actor's ends of its lanes: it sends to named peers and reads from one inbox.

Control lanes (to the supervisor) live as long as the process. Data lanes live for one epoch: `open_data` after Begin,
`leave_data` on Reset, so that the supervisor can empty them while no actor uses them.
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
"""Most records taken at a time, so that a flood of messages leaves time for an actor's other work."""

Received = tuple[str, "Wire | bytes"]
"""(peer, message or plan bytes)"""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


@dataclass
class _Peer:
    """The attached memory of one peer. Every epoch makes new lane ends on top of it (`_Link`)."""

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
    """One peer in one epoch: the port, and the messages that wait for space."""

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
        """Send waiting messages in order. True: none is left."""
        self.port.flush()
        while self.waiting and self.port.send(self.waiting[0]):
            self.waiting.popleft()
        return not self.waiting


class Mailbox:
    def __init__(self, launch: LaunchSpec) -> None:
        self.bell = Bell.attach(*launch.bell)
        self.bell.claim()
        self._peers = [_Peer.attach(fds) for fds in launch.peers]
        self._links: dict[str, _Link] = {}
        self._names: list[str] = []
        self._inbox = Inbox(self.bell)
        self._listener: tuple[asyncio.AbstractEventLoop, Callable[[list[Record]], None]] | None = None
        self._early: list[Record] = []
        self._connect(self._peers[:1])

    # --- epochs -------------------------------------------------------------------------------------------------------

    def open_data(self, epoch: int) -> None:
        """On Begin: the data lanes are empty; use them."""
        self.bell.claim(epoch)
        self._rebuild(self._peers)

    def leave_data(self) -> None:
        """On Reset: use no data lane. Messages that were not read or sent yet are lost."""
        self._rebuild(self._peers[:1])

    def close(self) -> None:
        self._disconnect()
        for peer in self._peers:
            peer.close()
        self.bell.close()

    def _rebuild(self, peers: list[_Peer]) -> None:
        # The Python ring keeps counts in its lane ends: drain the control lane before its end is replaced.
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
        """False: no space, or no data lanes now; the caller decides what that means. Keeps the order with `post`."""
        link = self._links.get(peer)
        if link is None or link.waiting:
            return False
        try:
            return link.port.send(message)
        except LaneClosed:  # the peer found the lane corrupt and will be replaced
            return False

    def post(self, peer: str, message: Wire) -> None:
        """Send now or, in order, when there is space. Without data lanes the message is dropped: its epoch is over."""
        link = self._links.get(peer)
        if link is not None and not self.send(peer, message):
            link.waiting.append(message)

    def send_plan(self, peer: str, plan: bytes) -> bool:
        """Send raw bytes. False: the lane has no room now."""
        return self._links[peer].port.send_raw(plan)

    def flush(self) -> None:
        """Send waiting messages, after the bell rang. LaneClosed: a lane is corrupt; the actor must be replaced."""
        for link in self._links.values():
            link.flush()

    def lend(self, peer: str, data: bytes, known: BlockRef | None = None) -> BlockRef | None:
        """Lend `data` to a peer, in a new block or in the `known` block that holds the data and is still lent. The
        caller tells the peer in a message. None: no space, or no data lanes now."""
        link = self._links.get(peer)
        if link is None:
            return None
        if known is not None and link.outgoing.lend_again(known):
            return known
        return link.outgoing.lend(data)

    def take_back(self, peer: str, ref: BlockRef) -> None:
        """End a lease that the peer was not told of."""
        self._links[peer].outgoing.release([(ref.offset, ref.generation)])

    def read(self, peer: str, ref: BlockRef) -> bytes:
        """A copy of a block that `peer` has lent."""
        return self._links[peer].read(ref)

    def give_back(self, peer: str, ref: BlockRef) -> None:
        """Return a block that `peer` has lent."""
        if (link := self._links.get(peer)) is not None:
            link.port.give_back(ref)

    @property
    def leased(self) -> int:
        """Bytes of this actor's arenas that its peers have not given back."""
        return sum(peer.own_arena.used for peer in self._peers if peer.own_arena)

    @property
    def backlog(self) -> int:
        """Number of messages that wait for space."""
        return sum(len(link.waiting) for link in self._links.values())

    # --- receiving ----------------------------------------------------------------------------------------------------

    def receive(self, most: int = BUDGET) -> list[Received]:
        """At most `most` records, decoded, of one lane after the other; [] if none has arrived."""
        early, self._early = self._early, []
        return self.decode(early or self._inbox.drain(most))

    def wait(self, timeout: float | None = None, spin_us: int = 0) -> bool:
        """Sleep until a record may have arrived or a lane may have space again; False after `timeout` seconds."""
        return bool(self._early) or self._inbox.wait(timeout, spin_us)

    def listen(self, loop: asyncio.AbstractEventLoop, on_records: Callable[[list[Record]], None]) -> None:
        """Call `on_records` with undecoded records in an asyncio loop from now on, over all epochs; with [] when a full
        lane may have space again."""
        self._listener = (loop, on_records)
        self._attach(loop, on_records)

    def _attach(self, loop: asyncio.AbstractEventLoop, on_records: Callable[[list[Record]], None]) -> None:
        if self._early:
            early, self._early = self._early, []
            loop.call_soon(on_records, early)
        self._inbox.attach(loop, on_records, BUDGET)

    def decode(self, records: list[Record]) -> list[Received]:
        """Decode records. ProtocolError if a peer sent an invalid record: the actor must be replaced."""
        if len(records) < BUDGET and (poisoned := self._inbox.poisoned):
            names = ", ".join(self._names[lane] for lane in poisoned)
            raise ProtocolError(f"invalid record from {names}: the lane is poisoned")
        found: list[Received] = []
        for lane, kind, payload in records:
            name = self._names[lane] if lane < len(self._names) else SUPERVISOR
            message = self._links[name].port.decode(kind, payload)
            if message is not None:
                found.append((name, message))
        return found
