"""Both ends of a lane in one process, and an attacker who writes into their memory; as ring.c, above the C code."""

from __future__ import annotations

import contextlib
import os
from collections import deque

from lightllm_mp.errors import StartupError
from lightllm_mp.shm import Bell, Inbox, Lane, LaneClosed, Sender
from lightllm_mp.shm.layout import HEAD, KIND_LAST, PAGE
from tools.fuzz.reader import Reader

CAPACITY = 4096
LARGEST = CAPACITY // 8
HOT = (0, 8, 16, 24, 32, 48, 64, 128, 256, 384, 512, 640, 648, 656, 664, 768, 776, 784)


class Attacked:
    """A lane under attack beside a healthy one in one inbox."""

    def __init__(self) -> None:
        self.bells = Bell.create(1), Bell.create(2)
        self.lane, self.good = Lane.create(CAPACITY, 1, 2), Lane.create(CAPACITY, 1, 2)
        self.inbox = Inbox(self.bells[1])
        self.inbox.add(self.lane, self.bells[0])
        self.inbox.add(self.good, self.bells[0])
        self.sender, self.other = Sender(self.lane, *self.bells), Sender(self.good, *self.bells)
        self.damaged = False
        self._sent: deque[tuple[int, bytes]] = deque()
        """The records in the lane, as long as the attacker has not written into it."""
        self._number = 0

    def put(self, kind: int, lengths: list[int]) -> None:
        records = [(self._number + i).to_bytes(2, "little") * (length // 2) for i, length in enumerate(lengths)]
        self._number = (self._number + len(records)) & 0xFFF
        try:
            done = self.sender.put_many(records, kind)
        except LaneClosed:
            assert self.damaged, "an untouched lane was refused"
            return
        self._sent += [(kind, record) for record in records[:done]]

    def drain(self, most: int) -> None:
        published = self.lane.stats().backlog_bytes
        found = self.inbox.drain(most)
        assert len(found) <= most
        for lane, kind, payload in found:
            assert lane == 0
            assert 1 <= kind <= KIND_LAST
            assert len(payload) <= LARGEST
            if not self.damaged:
                assert (kind, payload) == self._sent.popleft()
        room = CAPACITY if self.lane.implementation == "python" else published  # the twin does not use its positions
        assert sum(8 + len(payload) for _, _, payload in found) <= room, "more was taken than was published"
        if not self.damaged:
            assert len(found) == most or not self._sent, "records are left behind"
            assert self.lane.state == "open"

    def write(self, at: int, data: bytes) -> None:
        self.damaged = True
        view = self.lane.segment.view
        view[at : at + len(data)] = data[: len(view) - at]

    def add(self, at: int, more: int) -> None:
        """Damages a word of the header."""
        word = int.from_bytes(self.lane.segment.view[at : at + 8], "little")
        self.write(at, (word + more & (1 << 64) - 1).to_bytes(8, "little"))

    def set_header(self, behind: int, header: int) -> None:
        """Damages a record that is read next, `behind` bytes after the consumer's position."""
        head = int.from_bytes(self.lane.segment.view[HEAD : HEAD + 8], "little")
        self.write(PAGE + (head + behind) % CAPACITY // 8 * 8, header.to_bytes(8, "little"))

    def flip(self, bit: int) -> None:
        self.damaged = True
        self.lane.segment.view[bit // 8] ^= 1 << bit % 8

    def count(self, which: int, value: int) -> None:
        """The attacker changes the byte counts of the twin's lane."""
        if fds := self.lane.fds[1:]:
            self.damaged = True
            with contextlib.suppress(BlockingIOError, OSError):
                os.eventfd_write(fds[which % 2], value)

    def sleep(self) -> None:
        if self.inbox.park():
            self.inbox.unpark()
        self.inbox.wait(0)

    def attach(self) -> None:
        """A new process checks the header."""
        fds = [os.dup(fd) for fd in self.lane.fds]
        try:
            Lane.attach(*fds).close()
        except StartupError:
            assert self.damaged
            for fd in fds:
                os.close(fd)

    def check(self) -> None:
        """Checks that the healthy lane is undisturbed and the other one works again when it is emptied."""
        assert self.other.try_put(b"still here")
        found = [record for _ in range(3) for record in self.inbox.drain(1 << 20)]
        assert (1, 1, b"still here") in found
        assert self.inbox.poisoned in ([], [0])
        assert self.lane.state in ("open", "poisoned") or self.damaged
        self.lane.stats()
        self.lane.reset(2)
        assert self.sender.try_put(b"new")
        assert self.inbox.drain() == [(0, 1, b"new")]

    def close(self) -> None:
        for part in (self.sender, self.other, self.inbox, self.lane, self.good, *self.bells):
            part.close()


def ring(data: bytes) -> None:
    """Operations on a lane of the implementation that LIGHTLLM_MP_RING names."""
    reader, lane = Reader(data), Attacked()
    try:
        while reader:
            operate(lane, reader)
        lane.check()
    finally:
        lane.close()


def operate(lane: Attacked, reader: Reader) -> None:
    match reader.number(1) % 12:
        case 0:
            lane.put(1 + reader.number(1) % KIND_LAST, [reader.number(2) % (LARGEST + 1)])
        case 1:
            lane.put(1, [reader.number(1) for _ in range(reader.number(1) % 16)])
        case 2 | 3:
            lane.drain(1 + reader.number(1))
        case 4:
            lane.write(HOT[reader.number(1) % len(HOT)], reader.take(8))
        case 5:
            lane.write(PAGE + 8 * (reader.number(2) % (CAPACITY // 8)), reader.take(8))
        case 6:
            lane.flip(reader.number(2) % (8 * (PAGE + CAPACITY)))
        case 7:
            lane.count(reader.number(1), reader.number(8))
        case 8:
            lane.sleep()
        case 9:
            lane.attach()
        case 10:
            lane.add(HOT[reader.number(1) % len(HOT)], int.from_bytes(reader.take(2), "little", signed=True))
        case 11:
            lane.set_header(8 * reader.number(1), reader.number(2) | (reader.number(1) & 15) << 32)


def ring_seeds() -> list[bytes]:
    """A full lane and its drain; records that wrap around its end; each kind of damage."""
    full = b"\x00\x00\xff\x01" * 8
    exactly, long = b"\x00\x00\xf8\x01", b"\x0b\x00\x00\x02\x01"  # a record of 512 bytes and one of 520
    return [
        full + b"\x02\xff",
        (b"\x00\x01\xf0\x01\x02\x05") * 12,
        b"\x01\x0f" + bytes(range(15)) + b"\x08\x02\x03" * 5,
        b"\x00\x00\x08\x00\x05\x00\x00" + bytes([200, 0, 0, 0, 1, 0, 0, 0]) + b"\x02\x01",
        full + b"\x04\x07" + b"\xff" * 8 + b"\x02\x01" + full,
        full + b"\x04\x08" + b"\x08" + bytes(7) + full,
        full + b"\x07\x00\x04" + bytes(7) + b"\x02\x10\x07\x01\x08" + bytes(7) + full,
        b"\x09\x06\x41\x00\x09",
        full + b"\x0a\x08\x04\x00\x02\x08",
        exactly * 8 + b"\x02\x06" + exactly * 7 + long + b"\x02\xff",
        exactly * 8 + b"\x02\x06\x0a\x08\xfc\x01\x02\xff",
        exactly * 8 + b"\x0a\x07\x00\x02\x02\xff",
        full + b"\x02\x03" + full + b"\x0b\x00\x58\x02\x01\x02\x10",
    ]
