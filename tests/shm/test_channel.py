from __future__ import annotations

import os
from typing import Any

import msgspec
import pytest

from lightllm_mp.shm import (
    KIND_BLOCK,
    KIND_MESSAGE,
    KIND_RAW_BLOCK,
    KIND_RELEASE,
    Arena,
    BlockRef,
    ChannelPort,
    ChannelReceiver,
    ChannelSender,
    Inbox,
    LaneClosed,
    LeaseError,
    ProtocolError,
    Sender,
)
from tests.shm.lanes import Pair, child


class Ask(msgspec.Struct, tag=True, array_like=True):
    rid: int
    body: bytes


class Note(msgspec.Struct, tag=True, array_like=True):
    text: str


ENCODER = msgspec.msgpack.Encoder()
DECODER = msgspec.msgpack.Decoder(Ask | Note)
BIG = os.urandom(300_000)


class Side:
    """One actor with one peer."""

    def __init__(self, out: Pair, back: Pair, own: Arena | None, peer: Arena | None) -> None:
        self.arena = own
        self.sender = Sender(out.lane, out.producer_bell, out.consumer_bell)
        self.inbox = Inbox(back.consumer_bell)
        self.inbox.add(back.lane, back.producer_bell)
        reader = Arena.attach(os.dup(peer.fd)) if peer else None
        self.channel = ChannelSender(self.sender, ENCODER, own)
        self.port = ChannelPort(self.channel, ChannelReceiver(back.lane, DECODER, reader))
        self._parts = [self.sender, self.inbox, *([reader] if reader else [])]

    def take(self, most: int = 256) -> list[Any]:
        return [self.port.decode(kind, payload) for _, kind, payload in self.inbox.drain(most)]

    def close(self) -> None:
        for part in self._parts:
            part.close()


class Talk:
    """Two actors. A Pair names its bells by producer and consumer, so each side sleeps on the other's."""

    def __init__(self) -> None:
        self.there, self.back = Pair(1 << 16), Pair(1 << 16)
        self.arenas = Arena.create(2 << 20), Arena.create(1 << 20)

    def first(self) -> Side:
        return self._keep(Side(self.there, self.back, self.arenas[0], self.arenas[1]))

    def second(self) -> Side:
        return self._keep(Side(self.back, self.there, self.arenas[1], self.arenas[0]))

    def _keep(self, side: Side) -> Side:
        self.sides.append(side)
        return side

    def __enter__(self) -> Talk:
        self.sides: list[Side] = []
        return self

    def __exit__(self, *_: object) -> None:
        for part in (*self.sides, *self.arenas):
            part.close()
        for pair in (self.there, self.back):
            pair.__exit__()


@pytest.fixture
def talk(ring: str):
    with Talk() as talk:
        yield talk


def test_messages_and_raw_bytes_of_all_sizes(talk: Talk):
    a, b = talk.first(), talk.second()
    sent = [Ask(1, b""), Note("hello"), b"raw", Ask(2, BIG), BIG[:200_000], Note("x" * 8000)]
    for item in sent:
        assert a.port.send_raw(item) if isinstance(item, bytes) else a.port.send(item)
    assert a.port.leases == 2
    assert b.take() == sent
    assert a.take() == [None, None]
    assert (a.port.leases, b.port.pending, a.arena.blocks) == (0, 0, 0)


def test_only_what_is_large_goes_through_the_arena(talk: Talk):
    a, b = talk.first(), talk.second()
    assert a.port.send_raw(bytes(8192))
    assert a.port.leases == 0
    assert a.port.send_raw(bytes(8193))
    assert a.port.leases == 1
    assert [len(data) for data in b.take()] == [8192, 8193]


def test_full_arena_holds_nothing_and_goes_on_when_leases_come_back(talk: Talk):
    a, b = talk.first(), talk.second()
    sent = 0
    while a.port.send(Ask(sent, BIG)):
        sent += 1
    assert sent == (2 << 20) // (5 << 16)
    blocks = a.arena.blocks
    assert not a.port.send(Ask(99, BIG))
    assert (a.arena.blocks, a.port.leases) == (blocks, blocks)
    assert [ask.rid for ask in b.take(3)] == [0, 1, 2]
    assert a.inbox.wait(10)
    assert a.take() == [None] * 3
    assert a.port.send(Ask(99, BIG))


def test_a_lent_block_stays_until_its_last_lease_is_back(talk: Talk):
    a, b = talk.first(), talk.second()
    lender, reader = a.channel, talk.arenas[0]
    ref = lender.lend(BIG)
    assert ref is not None
    assert lender.lend_again(ref)
    assert (a.arena.blocks, a.port.leases) == (1, 1)
    assert reader.read(ref) == BIG
    b.port.give_back(ref)
    assert a.take() == [None]
    assert a.arena.blocks == 1
    b.port.give_back(ref)
    assert a.take() == [None]
    assert (a.arena.used, a.port.leases) == (0, 0)
    assert not lender.lend_again(ref)
    b.port.give_back(ref)
    with pytest.raises(ProtocolError, match="returns an unknown lease"):
        a.take()


def test_lending_without_room(talk: Talk):
    a = talk.first()
    lent = []
    while (ref := a.channel.lend(BIG)) is not None:
        lent.append(ref)
    assert len(lent) == (2 << 20) // (5 << 16)
    a.channel.release([(lent[0].offset, lent[0].generation)])
    assert a.channel.lend(BIG) is not None
    a.channel.lend_again(lent[1])
    a.channel.drop_leases()
    assert a.arena.used == 0


def test_full_ring_gives_the_block_back_at_once(talk: Talk):
    a, b = talk.first(), talk.second()
    while a.port.send(Note("x" * 1000)):
        pass
    while a.port.send(Note("")):
        pass
    assert not a.port.send_raw(BIG)
    assert (a.arena.used, a.port.leases) == (0, 0)
    b.take()
    assert a.port.send_raw(BIG)


def test_leases_wait_for_room_on_the_way_back(talk: Talk):
    a, b = talk.first(), talk.second()
    for _ in range(3):
        assert a.port.send_raw(BIG)
    while b.port.send(Note("x" * 1000)):
        pass
    while b.port.send(Note("")):
        pass
    assert b.take() == [BIG] * 3
    assert (b.port.pending, a.port.leases) == (3, 3)
    assert not b.port.flush()
    a.take()
    assert b.port.flush()
    assert a.take() == [None]  # one record for all three
    assert (b.port.pending, a.port.leases) == (0, 0)


def test_what_can_never_be_sent_is_an_error(ring: str, talk: Talk):
    a = talk.first()
    with pytest.raises(ValueError, match="never fits"):
        a.port.send_raw(bytes(3 << 20))
    bare = ChannelSender(a.sender, ENCODER)
    assert bare.send_raw(bytes(8192))
    with pytest.raises(ValueError, match="has no arena"):
        bare.send_raw(bytes(8193))


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (KIND_MESSAGE, b"\xc1"),
        (KIND_MESSAGE, b""),
        (KIND_MESSAGE, msgspec.msgpack.encode(["Ask", "no number", b""])),
        (KIND_MESSAGE, msgspec.msgpack.encode(["Unknown", 1])),
        (KIND_BLOCK, b"\x90"),
        (KIND_RAW_BLOCK, b"garbage"),
        (KIND_RELEASE, b""),
        (KIND_RELEASE, b"123"),
        (KIND_RELEASE, bytes(16)),
        (14, b""),
    ],
)
def test_what_no_correct_peer_sends_poisons_the_lane(talk: Talk, kind: int, payload: bytes):
    b = talk.second()
    with pytest.raises(ProtocolError, match="lane 1 -> 2"):
        b.port.decode(kind, payload)
    assert talk.there.lane.state == "poisoned"
    assert b.inbox.poisoned == [0]
    with pytest.raises(LaneClosed):
        talk.first().port.send(Note("x"))


def test_a_block_with_an_undecodable_message_poisons_too(talk: Talk):
    a, b = talk.first(), talk.second()
    ref = a.arena.write(a.arena.alloc(9), b"not msgpack of ours")
    with pytest.raises(ProtocolError):
        b.port.decode(KIND_BLOCK, msgspec.msgpack.encode(ref))


def test_a_stale_lease_is_a_lease_error(talk: Talk):
    a, b = talk.first(), talk.second()
    ref = a.arena.write(a.arena.alloc(9), b"x")
    a.arena.free(ref)
    with pytest.raises(LeaseError, match="stale"):
        b.port.decode(KIND_RAW_BLOCK, msgspec.msgpack.encode(ref))
    with pytest.raises(LeaseError, match="outside"):
        b.port.decode(KIND_RAW_BLOCK, msgspec.msgpack.encode(BlockRef(1 << 50, 1, 1)))
    assert talk.there.lane.state == "poisoned"


def test_a_lease_cannot_be_given_back_twice(talk: Talk):
    a, b = talk.first(), talk.second()
    assert a.port.send_raw(BIG)
    b.take()
    (record,) = a.inbox.drain()
    assert a.port.decode(*record[1:]) is None
    with pytest.raises(ProtocolError, match="unknown lease"):
        a.port.decode(*record[1:])


def test_a_dead_peer_holds_nothing(talk: Talk):
    a = talk.first()
    for _ in range(3):
        assert a.port.send_raw(BIG)
    assert a.port.leases == 3
    a.port.reset()
    assert (a.port.leases, a.arena.used) == (0, 0)


def test_a_closed_way_back_loses_no_message(talk: Talk):
    a, b = talk.first(), talk.second()
    assert a.port.send_raw(BIG)
    talk.back.lane.poison()
    assert b.take() == [BIG]
    assert b.port.pending == 0
    with pytest.raises(LaneClosed):
        b.port.send(Note("x"))


def test_one_way_ports_refuse_the_other_way(talk: Talk):
    deaf = ChannelPort(ChannelSender(talk.first().sender, ENCODER))
    assert deaf.send(Note("x"))
    assert deaf.flush()
    with pytest.raises(RuntimeError, match="no lane from this peer"):
        deaf.decode(KIND_MESSAGE, b"")
    mute = ChannelPort(incoming=ChannelReceiver(talk.there.lane, DECODER))
    assert mute.decode(KIND_MESSAGE, ENCODER.encode(Note("y"))) == Note("y")
    for send in (mute.send, mute.send_raw):
        with pytest.raises(RuntimeError, match="no lane to this peer"):
            send(b"")
    assert (mute.leases, mute.pending) == (0, 0)


def test_two_processes_exchange_large_messages_both_ways(talk: Talk):
    rounds = 40

    def echo() -> None:
        b, done = talk.second(), 0
        waiting: list[Any] = []
        while done < rounds:
            assert b.inbox.wait(10)
            waiting += [message for message in b.take() if message is not None]
            while waiting and b.port.send(Ask(waiting[0].rid, waiting[0].body[::-1])):
                waiting.pop(0)
                done += 1

    with child(echo) as process:
        a, got, sent = talk.first(), [], 0
        while len(got) < rounds:
            while sent < rounds and a.port.send(Ask(sent, BIG[sent : sent + 90_000 + sent])):
                sent += 1
            assert a.inbox.wait(10)
            got += [message for message in a.take() if message is not None]
        assert process.join() == 0
    assert got == [Ask(n, BIG[n : n + 90_000 + n][::-1]) for n in range(rounds)]
    assert a.port.leases == 0
