"""Messages over lanes: the codec, large payloads through leased blocks, and the way back of the leases.

What the records of a lane mean:

==================  ==========================================================================================
KIND_MESSAGE        one msgpack message
KIND_RAW            bytes, handed on as they are
KIND_BLOCK          BlockRef (msgpack array) of a message in the sender's arena
KIND_RAW_BLOCK      BlockRef of bytes in the sender's arena
KIND_RELEASE        n x (offset u64, generation u64), little endian: leases of the *receiver's* arena that go back
==================  ==========================================================================================

The life of a lease, seen from the sender of the block (A) and its receiver (B)::

    A: alloc, write -> A: record published, lease outstanding -> B: copied, lease pending -> B: KIND_RELEASE published
    -> A: freed
    A: alloc, write -> record refused (ring full) -> A: freed at once, nothing is held
    outstanding -> A: freed by drop_leases(), when B has died and its lane is reset

A block may also be lent by itself (`lend`): its BlockRef then travels in the fields of a message, several leases of one
block may be out, and B gives each back with `ChannelPort.give_back` when it has read.

A pending lease stays with B until the lane to A has room; every decode and flush tries again. A release for a lease
that is not outstanding is a ProtocolError. The actors see none of this.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

import msgspec

from lightllm_mp.shm.arena import Arena, BlockRef
from lightllm_mp.shm.errors import LaneClosed, LeaseError, ProtocolError
from lightllm_mp.shm.lane import Lane
from lightllm_mp.shm.layout import KIND_BLOCK, KIND_MESSAGE, KIND_RAW, KIND_RAW_BLOCK, KIND_RELEASE
from lightllm_mp.shm.sender import Sender

INLINE_LIMIT = 65536  # bytes; more goes through the arena
_LEASE = struct.Struct("<QQ")
_encode_ref = msgspec.msgpack.Encoder().encode
_decode_ref = msgspec.msgpack.Decoder(BlockRef).decode


class ChannelSender:
    """Encodes and sends to one peer. `arena` is this side's; without one a payload must fit a record of the lane."""

    def __init__(self, sender: Sender, encoder: msgspec.msgpack.Encoder, arena: Arena | None = None) -> None:
        self._put = sender.try_put
        self._encode = encoder.encode
        self._arena = arena
        self._limit = min(INLINE_LIMIT, sender.max_record) if arena is not None else sender.max_record
        self._leases_per_record = sender.max_record // _LEASE.size
        self._outstanding: dict[int, BlockRef] = {}
        self._more: dict[int, int] = {}
        """Further leases of a block, by its offset."""

    def send(self, msg: msgspec.Struct) -> bool:
        """False: ring or arena is full, nothing is held, the own bell rings or a lease comes back when it is worth
        another try. ValueError: the message can never be sent. LaneClosed: the peer is gone."""
        data = self._encode(msg)
        return self._put(data, KIND_MESSAGE) if len(data) <= self._limit else self._send_block(data, KIND_BLOCK)

    def send_raw(self, data: bytes) -> bool:
        """The same for bytes that are no message."""
        return self._put(data, KIND_RAW) if len(data) <= self._limit else self._send_block(data, KIND_RAW_BLOCK)

    def _send_block(self, data: bytes, kind: int) -> bool:
        if self._arena is None:
            raise ValueError(f"{len(data)} bytes are more than the lane takes, and it has no arena")
        block = self._arena.alloc(len(data))
        if block is None:
            return False
        ref = self._arena.write(block, data)
        sent = False
        try:
            sent = self._put(_encode_ref(ref), kind)
        finally:
            if not sent:
                self._arena.free(ref)
        if sent:
            self._outstanding[ref.offset] = ref
        return sent

    def lend(self, data: bytes | memoryview) -> BlockRef | None:
        """A block with `data`, lent to the peer, who is told of it in a message. None: no room now."""
        if self._arena is None:
            raise ValueError("this way has no arena")
        block = self._arena.alloc(len(data))
        if block is None:
            return None
        ref = self._arena.write(block, data)
        self._outstanding[ref.offset] = ref
        return ref

    def lend_again(self, ref: BlockRef) -> bool:
        """One more lease of a block; False: all its leases have come back and it is gone."""
        if self._outstanding.get(ref.offset) != ref:
            return False
        self._more[ref.offset] = self._more.get(ref.offset, 0) + 1
        return True

    @property
    def leases(self) -> int:
        """How many blocks the peer has not given back."""
        return len(self._outstanding)

    def release(self, leases: Iterable[tuple[int, int]]) -> None:
        """The peer gives (offset, generation) back. ProtocolError when it did not hold one of them."""
        for offset, generation in leases:
            ref = self._outstanding.get(offset)
            if ref is None or ref.generation != generation or self._arena is None:
                raise ProtocolError(f"a lease came back that was not given: offset {offset}, generation {generation}")
            if self._more.get(offset):
                self._more[offset] -= 1
                continue
            self._more.pop(offset, None)
            del self._outstanding[offset]
            self._arena.free(ref)

    def drop_leases(self) -> None:
        """The peer is dead: takes all its leases back."""
        for ref in self._outstanding.values():
            if self._arena is not None:
                self._arena.free(ref)
        self._outstanding.clear()
        self._more.clear()

    def give_back(self, refs: list[BlockRef]) -> None:
        """Sends leases of the peer's arena home, as far as there is room; the sent ones are removed from `refs`."""
        while refs:
            batch = refs[: self._leases_per_record]
            if not self._put(b"".join(_LEASE.pack(ref.offset, ref.generation) for ref in batch), KIND_RELEASE):
                return
            del refs[: len(batch)]


class ChannelReceiver:
    """Decodes what one peer sends. `arena` is the peer's, attached. A record that cannot be right poisons `lane`."""

    def __init__(self, lane: Lane, decoder: msgspec.msgpack.Decoder[Any], arena: Arena | None = None) -> None:
        self._lane = lane
        self._decode = decoder.decode
        self._arena = arena

    def decode(self, kind: int, payload: bytes) -> tuple[Any, BlockRef | None]:
        """The message or the bytes, and the lease to give back. ProtocolError poisons the lane; LeaseError is a bug."""
        try:
            if kind == KIND_MESSAGE:
                return self._decode(payload), None
            if kind == KIND_RAW:
                return payload, None
            if kind in (KIND_BLOCK, KIND_RAW_BLOCK) and self._arena is not None:
                ref = _decode_ref(payload)
                data = self._arena.read(ref)
                return (self._decode(data) if kind == KIND_BLOCK else data), ref
        except LeaseError:
            self._lane.poison()
            raise
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self.refuse(f"a record of kind {kind} cannot be decoded: {error}") from error
        raise self.refuse(f"a record of kind {kind} on a lane that has no use for it")

    def refuse(self, why: str) -> ProtocolError:
        self._lane.poison()
        return ProtocolError(f"lane {self._lane.producer} -> {self._lane.consumer}: {why}")


class ChannelPort:
    """One peer: what goes to it, what comes from it, and the leases in both directions.

    outgoing: None for a peer that is only listened to; incoming: None for one that is only told.
    """

    def __init__(self, outgoing: ChannelSender | None = None, incoming: ChannelReceiver | None = None) -> None:
        self._outgoing = outgoing
        self._incoming = incoming
        self._pending: list[BlockRef] = []
        if outgoing is not None:  # the senders' own methods: one frame less on the way of every message
            self.send = outgoing.send  # type: ignore[method-assign]
            self.send_raw = outgoing.send_raw  # type: ignore[method-assign]

    def send(self, msg: msgspec.Struct) -> bool:
        """Replaced by ChannelSender.send where there is a way out."""
        raise RuntimeError("this peer is only listened to")

    def send_raw(self, data: bytes) -> bool:
        """Replaced by ChannelSender.send_raw where there is a way out."""
        raise RuntimeError("this peer is only listened to")

    def decode(self, kind: int, payload: bytes) -> Any | None:
        """One record of the peer: a message, bytes, or None when it only gave leases back.

        Raises ProtocolError, after poisoning the lane, for what no correct peer sends; LeaseError for a stale lease.
        """
        if self._incoming is None:
            raise RuntimeError("this peer is only told")
        if kind == KIND_RELEASE:
            self._release(payload)
            return None
        value, lease = self._incoming.decode(kind, payload)
        if lease is not None:
            self._pending.append(lease)
        if self._pending:
            self.flush()
        return value

    def give_back(self, ref: BlockRef) -> None:
        """A block that was lent to this side has been read."""
        self._pending.append(ref)
        self.flush()

    def flush(self) -> bool:
        """Tries again to send leases home. True: none is pending."""
        if self._pending and self._outgoing is not None:
            try:
                self._outgoing.give_back(self._pending)
            except LaneClosed:  # the owner is gone and its arena with it; the next send reports that
                self._pending.clear()
        return not self._pending

    @property
    def pending(self) -> int:
        """Leases that wait for room on the way back."""
        return len(self._pending)

    @property
    def leases(self) -> int:
        """Blocks that the peer holds."""
        return self._outgoing.leases if self._outgoing is not None else 0

    def reset(self) -> None:
        """The lanes of this peer were emptied for a new epoch: forgets its leases, takes the own ones back."""
        self._pending.clear()
        if self._outgoing is not None:
            self._outgoing.drop_leases()

    def _release(self, payload: bytes) -> None:
        assert self._incoming is not None
        if self._outgoing is None or not payload or len(payload) % _LEASE.size:
            raise self._incoming.refuse("leases came back in an impossible record")
        try:
            self._outgoing.release(_LEASE.iter_unpack(payload))
        except ProtocolError as error:
            raise self._incoming.refuse(error.message) from error
