"""Messages over lanes: encodes and decodes them, sends large payloads as leased blocks, and returns the leases.

Payload of a record, by its kind:

==================  ==========================================================================================
KIND_MESSAGE        one msgpack message
KIND_RAW            bytes
KIND_BLOCK          BlockRef (msgpack array) of a message in the sender's arena
KIND_RAW_BLOCK      BlockRef of bytes in the sender's arena
KIND_RELEASE        n x (offset u64, generation u64), little endian: leases of the *receiver's* arena that go back
==================  ==========================================================================================

The life of a lease, between the sender of the block (A) and its receiver (B)::

    A: alloc, write -> A: record published, lease outstanding -> B: copied, lease pending -> B: KIND_RELEASE published
    -> A: freed
    A: alloc, write -> record refused (ring full) -> A: freed at once
    outstanding -> A: freed by drop_leases(), when B has died and its lane is reset

`lend` makes a block whose BlockRef travels in the fields of a message. Such a block may have several leases; B returns
each with `ChannelPort.give_back` when it has read the block.

A pending lease stays with B until the lane to A has room; each decode and flush tries again. A release of a lease that
is not outstanding is a ProtocolError. Actors need not know any of this.
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

INLINE_LIMIT = 65536  # bytes; larger payloads go through the arena
_LEASE = struct.Struct("<QQ")
_encode_ref = msgspec.msgpack.Encoder().encode
_decode_ref = msgspec.msgpack.Decoder(BlockRef).decode


class ChannelSender:
    """Encodes and sends to one peer. `arena` belongs to this side; without it a payload must fit in a record."""

    def __init__(self, sender: Sender, encoder: msgspec.msgpack.Encoder, arena: Arena | None = None) -> None:
        self._put = sender.try_put
        self._encode = encoder.encode
        self._arena = arena
        self._limit = min(INLINE_LIMIT, sender.max_record) if arena is not None else sender.max_record
        self._leases_per_record = sender.max_record // _LEASE.size
        self._outstanding: dict[int, BlockRef] = {}
        self._more: dict[int, int] = {}
        """Number of further leases of a block, by its offset."""

    def send(self, msg: msgspec.Struct) -> bool:
        """False: the ring or the arena is full and nothing was sent; try again when the own bell rings or a lease comes
        back. ValueError: the message is too large for the lane. LaneClosed: the peer is gone."""
        data = self._encode(msg)
        return self._put(data, KIND_MESSAGE) if len(data) <= self._limit else self._send_block(data, KIND_BLOCK)

    def send_raw(self, data: bytes) -> bool:
        """As `send`, for bytes."""
        return self._put(data, KIND_RAW) if len(data) <= self._limit else self._send_block(data, KIND_RAW_BLOCK)

    def _send_block(self, data: bytes, kind: int) -> bool:
        if self._arena is None:
            raise ValueError(f"{len(data)} bytes do not fit in a record of the lane, and it has no arena")
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
        """Copies `data` into a block for the peer; a later message carries its BlockRef. None: no room now."""
        if self._arena is None:
            raise ValueError("this channel has no arena")
        block = self._arena.alloc(len(data))
        if block is None:
            return None
        ref = self._arena.write(block, data)
        self._outstanding[ref.offset] = ref
        return ref

    def lend_again(self, ref: BlockRef) -> bool:
        """Adds a lease to a block. False: all its leases have come back and the block is freed."""
        if self._outstanding.get(ref.offset) != ref:
            return False
        self._more[ref.offset] = self._more.get(ref.offset, 0) + 1
        return True

    @property
    def leases(self) -> int:
        """Number of blocks that the peer has not given back."""
        return len(self._outstanding)

    def release(self, leases: Iterable[tuple[int, int]]) -> None:
        """The peer returns leases, each as (offset, generation). ProtocolError if it does not hold one of them."""
        for offset, generation in leases:
            ref = self._outstanding.get(offset)
            if ref is None or ref.generation != generation or self._arena is None:
                raise ProtocolError(f"the peer returns an unknown lease: offset {offset}, generation {generation}")
            if self._more.get(offset):
                self._more[offset] -= 1
                continue
            self._more.pop(offset, None)
            del self._outstanding[offset]
            self._arena.free(ref)

    def drop_leases(self) -> None:
        """Frees all blocks that the peer holds: it is dead."""
        for ref in self._outstanding.values():
            if self._arena is not None:
                self._arena.free(ref)
        self._outstanding.clear()
        self._more.clear()

    def give_back(self, refs: list[BlockRef]) -> None:
        """Returns leases of the peer's arena while the lane has room. Removes from `refs` those that were sent."""
        while refs:
            batch = refs[: self._leases_per_record]
            if not self._put(b"".join(_LEASE.pack(ref.offset, ref.generation) for ref in batch), KIND_RELEASE):
                return
            del refs[: len(batch)]


class ChannelReceiver:
    """Decodes records from one peer. `arena` is the peer's. An invalid record poisons `lane`."""

    def __init__(self, lane: Lane, decoder: msgspec.msgpack.Decoder[Any], arena: Arena | None = None) -> None:
        self._lane = lane
        self._decode = decoder.decode
        self._arena = arena

    def decode(self, kind: int, payload: bytes) -> tuple[Any, BlockRef | None]:
        """The message or the bytes, and the lease to give back. Poisons the lane before ProtocolError or LeaseError."""
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
        raise self.refuse(f"a record of kind {kind} is not valid on this lane")

    def refuse(self, why: str) -> ProtocolError:
        self._lane.poison()
        return ProtocolError(f"lane {self._lane.producer} -> {self._lane.consumer}: {why}")


class ChannelPort:
    """The channel to one peer: both directions, and their leases.

    `outgoing`: None for a peer that only sends. `incoming`: None for a peer that only receives.
    """

    def __init__(self, outgoing: ChannelSender | None = None, incoming: ChannelReceiver | None = None) -> None:
        self._outgoing = outgoing
        self._incoming = incoming
        self._pending: list[BlockRef] = []
        if outgoing is not None:  # the sender's own methods save a Python frame per message
            self.send = outgoing.send  # type: ignore[method-assign]
            self.send_raw = outgoing.send_raw  # type: ignore[method-assign]

    def send(self, msg: msgspec.Struct) -> bool:
        """Replaced by ChannelSender.send if there is an outgoing lane."""
        raise RuntimeError("there is no lane to this peer")

    def send_raw(self, data: bytes) -> bool:
        """Replaced by ChannelSender.send_raw if there is an outgoing lane."""
        raise RuntimeError("there is no lane to this peer")

    def decode(self, kind: int, payload: bytes) -> Any | None:
        """The content of one record: a message, bytes, or None if it only returns leases.

        Poisons the lane and raises ProtocolError for a record that no correct peer sends, LeaseError for a stale lease.
        """
        if self._incoming is None:
            raise RuntimeError("there is no lane from this peer")
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
        """Returns the lease of a block that the peer has lent; call it when the block is read."""
        self._pending.append(ref)
        self.flush()

    def flush(self) -> bool:
        """Tries to send pending leases back. True: none is pending any more."""
        if self._pending and self._outgoing is not None:
            try:
                self._outgoing.give_back(self._pending)
            except LaneClosed:  # the owner is gone with its arena; the next send raises this too
                self._pending.clear()
        return not self._pending

    @property
    def pending(self) -> int:
        """Number of leases that wait for room in the lane to their owner."""
        return len(self._pending)

    @property
    def leases(self) -> int:
        """Number of blocks that the peer holds."""
        return self._outgoing.leases if self._outgoing is not None else 0

    def reset(self) -> None:
        """For a new epoch, when the lanes were emptied: drops the peer's leases and frees the blocks it holds."""
        self._pending.clear()
        if self._outgoing is not None:
            self._outgoing.drop_leases()

    def _release(self, payload: bytes) -> None:
        assert self._incoming is not None
        if self._outgoing is None or not payload or len(payload) % _LEASE.size:
            raise self._incoming.refuse("a record that returns leases has an impossible length")
        try:
            self._outgoing.release(_LEASE.iter_unpack(payload))
        except ProtocolError as error:
            raise self._incoming.refuse(error.message) from error
