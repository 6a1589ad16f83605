"""Records in shared memory that outlive the process that writes them: the next owner reads what the last one wrote.

Layout, little endian: a page with magic u64, version u32, block u32, count u32 and their CRC-32; a table of `count`
entries of 16 bytes (first block u64, 0: the entry is free; length u64); then `count` blocks of `block` bytes, numbered
from 1. A block holds the number of the next block (u64), then payload. A record is the chain of blocks from `first`;
its content is a row of frames, each a u32 length and that many bytes.

The owner may be killed between any two stores. It stores blocks first and then one word that makes them count:
`first` for a new record, `length` for an appended frame. What was not made to count is free for the next owner. Which
blocks are free is private memory of the owner, found again from the table.

The journal takes memory when records need it, and keeps it. Blocks exist before they are written, so no write raises
SIGBUS.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from lightllm_mp.errors import StartupError
from lightllm_mp.shm.layout import PAGE
from lightllm_mp.shm.segment import Segment

BLOCK = 4096
STEP = 64
"""Blocks that are backed with memory at once."""
MAGIC = int.from_bytes(b"LMPJRNL1", "little")
VERSION = 1
_HEADER = struct.Struct("<QIII")
_LINK, _FRAME = 8, 4


class Journal:
    """The supervisor calls `create`, the front `open`; one process at a time writes."""

    def __init__(self, segment: Segment, count: int) -> None:
        self.segment = segment
        self._count = count
        self._data = PAGE + -(-16 * count // PAGE) * PAGE
        self._table = segment.view[PAGE : PAGE + 16 * count].cast("Q")
        self._free: list[int] = []
        self._entries: list[int] = []
        self._tails: dict[int, list[int]] = {}
        """The blocks of each record, in order."""
        self._backed = 0
        """Blocks 1 to this one exist."""

    @classmethod
    def create(cls, size: int) -> Journal:
        """An empty journal for about `size` bytes. StartupError if there is too little memory."""
        count = max(STEP, size // BLOCK)
        table = -(-16 * count // PAGE) * PAGE
        segment = Segment.create("journal", PAGE + table + count * BLOCK, sparse=True)
        if not segment.back(0, PAGE + table):
            segment.close()
            raise StartupError("there is too little memory for the journal of requests")
        header = _HEADER.pack(MAGIC, VERSION, BLOCK, count)
        segment.view[: _HEADER.size + 4] = header + zlib.crc32(header).to_bytes(4, "little")
        return cls(segment, count)

    @classmethod
    def open(cls, fd: int) -> Journal:
        """The journal as its last owner left it; drops damaged records. StartupError if `fd` is none of this
        version. It owns `fd`."""
        segment = Segment.attach(fd)
        header = bytes(segment.view[: _HEADER.size])
        crc = int.from_bytes(segment.view[_HEADER.size : _HEADER.size + 4], "little")
        magic, version, block, count = _HEADER.unpack(header)
        if (magic, version, block, crc) != (MAGIC, VERSION, BLOCK, zlib.crc32(header)):
            segment.close()
            raise StartupError("the descriptor is not a journal of this layout version")
        journal = cls(segment, count)
        journal._recover()
        return journal

    @property
    def fd(self) -> int:
        return self.segment.fd

    @property
    def capacity(self) -> int:
        """Bytes of all blocks."""
        return self._count * BLOCK

    @property
    def used(self) -> int:
        """Bytes of the blocks that hold records."""
        return sum(map(len, self._tails.values())) * BLOCK

    def add(self, frame: bytes) -> int | None:
        """A new record that starts with this frame; returns its number. None: there is no room for it."""
        if not self._entries:
            return None
        entry = self._entries[-1]
        self._tails[entry] = []
        self._table[2 * entry + 1] = 0
        if not self.append(entry, frame):
            del self._tails[entry]
            return None
        self._table[2 * entry] = self._tails[entry][0]
        return self._entries.pop()

    def append(self, record: int, frame: bytes) -> bool:
        """Add a frame to a record. False: there is no room, and the record is as before."""
        blocks, length = self._tails[record], self._table[2 * record + 1]
        content = len(frame).to_bytes(_FRAME, "little") + frame
        end = length + len(content)
        number, inside = divmod(length, BLOCK - _LINK)
        if inside and inside + len(content) <= BLOCK - _LINK:  # the usual case
            start = self._start(blocks[number]) + _LINK + inside
            self.segment.view[start : start + len(content)] = content
            self._table[2 * record + 1] = end
            return True
        if not self._extend(blocks, -(-end // (BLOCK - _LINK)) - len(blocks)):
            return False
        at = 0
        while at < len(content):
            number, inside = divmod(length + at, BLOCK - _LINK)
            part = min(len(content) - at, BLOCK - _LINK - inside)
            start = self._start(blocks[number]) + _LINK + inside
            self.segment.view[start : start + part] = content[at : at + part]
            at += part
        self._table[2 * record + 1] = end
        return True

    def remove(self, record: int) -> None:
        self._table[2 * record] = 0
        self._free += self._tails.pop(record)
        self._entries.append(record)

    def records(self) -> Iterator[tuple[int, list[bytes]]]:
        """(number, frames) of each record."""
        for record in list(self._tails):
            yield record, self.frames(record)

    def frames(self, record: int) -> list[bytes]:
        """Copies of the frames of a record."""
        length, found, at = self._table[2 * record + 1], list[bytes](), 0
        starts = [self._start(block) + _LINK for block in self._tails[record]]
        content = b"".join(self.segment.view[start : start + BLOCK - _LINK] for start in starts)[:length]
        while at < length:
            size = int.from_bytes(content[at : at + _FRAME], "little")
            found.append(content[at + _FRAME : at + _FRAME + size])
            at += _FRAME + size
        return found

    def close(self) -> None:
        self._table.release()
        self.segment.close()

    def _start(self, block: int) -> int:
        return self._data + (block - 1) * BLOCK

    def _extend(self, blocks: list[int], count: int) -> bool:
        """Chain `count` more blocks to those of a record. False: there are not enough."""
        while len(self._free) < count:
            step = min(STEP, self._count - self._backed)
            if not step or not self.segment.back(self._start(self._backed + 1), step * BLOCK):
                return False
            self._free += range(self._backed + step, self._backed, -1)
            self._backed += step
        for _ in range(count):
            block = self._free.pop()
            if blocks:
                last = self._start(blocks[-1])
                self.segment.view[last : last + _LINK] = block.to_bytes(_LINK, "little")
            blocks.append(block)
        return True

    def _recover(self) -> None:
        taken: set[int] = set()
        for entry in range(self._count):
            first, length = self._table[2 * entry], self._table[2 * entry + 1]
            chain = self._chain(first, length, taken) if first else None
            if chain is None:
                self._table[2 * entry] = 0
                self._entries.append(entry)
            else:
                self._tails[entry] = chain
                taken.update(chain)
        self._backed = max(taken, default=0)
        self._free = [block for block in range(self._backed, 0, -1) if block not in taken]

    def _chain(self, block: int, length: int, taken: set[int]) -> list[int] | None:
        """The blocks of `length` bytes from `block` on. None if they are damaged: out of range, or used twice."""
        chain: list[int] = []
        seen: set[int] = set()
        for _ in range(-(-length // (BLOCK - _LINK))):
            if not 0 < block <= self._count or block in taken or block in seen:
                return None
            chain.append(block)
            seen.add(block)
            start = self._start(block)
            block = int.from_bytes(self.segment.view[start : start + _LINK], "little")
        return chain or None
