"""Shared blocks with one owner: bulk data is written once and travels as a BlockRef.

Layout, little endian: a page with magic u64, version u32, granule u32, capacity u64 and the CRC-32 of these, at 64 the
last generation u64; then `capacity` bytes in granules. A block is a run of granules: a header of 64 bytes (generation
u64, length u64, state u32), then the payload, aligned to 64 bytes.

The index (which granules are free, which generation lies where) is private memory of the owner, so no peer can corrupt
or hold it. Legal states of a block, all set by the owner::

    free --alloc--> FILLING --commit/write--> READY --free--> FREE
                    FILLING --free--> FREE

A reader holds a lease: the BlockRef it was sent. A generation is never used twice, so a lease that outlives its block
is recognised: the reader compares the header before and after its copy and raises LeaseError, which is an engine bug.
That the bytes are there when the BlockRef is follows from the lane that carried it (release/acquire).

Memory is taken as blocks need it, first the lowest granules, and kept: an arena is as large as its largest message ever
asked for, and most stay nearly empty. A block's pages exist before it is handed out, so nobody meets a SIGBUS.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import msgspec

from lightllm_mp.errors import StartupError
from lightllm_mp.shm.errors import LeaseError
from lightllm_mp.shm.freelist import FreeList
from lightllm_mp.shm.layout import PAGE
from lightllm_mp.shm.segment import Segment

BLOCK_HEADER = 64
GENERATION = 64
MAGIC = int.from_bytes(b"LMPAREN1", "little")
VERSION = 1
FREE, FILLING, READY = 0, 1, 2
_ARENA = struct.Struct("<QIIQ")
_BLOCK = struct.Struct("<QQI")


class BlockRef(msgspec.Struct, frozen=True, array_like=True):
    """The right to read one block of a known arena. offset: of the block header in the arena's memory, bytes."""

    offset: int
    length: int
    generation: int


@dataclass(frozen=True, slots=True)
class Block:
    """A block as its owner knows it. room: bytes of payload that fit."""

    offset: int
    room: int
    generation: int


class Arena:
    """One sealed, sparse memfd. An owner calls create or adopt; a reader attach, then read, or view and verify."""

    def __init__(self, segment: Segment, granule: int, owner: bool) -> None:
        self.segment = segment
        self.granule = granule
        self.capacity = segment.size - PAGE
        self._free = FreeList(self.capacity // granule) if owner else None
        self._blocks: dict[int, Block] = {}
        self._backed = bytearray(self.capacity // granule if owner else 0)
        """For each granule: 1 when its pages are known to exist."""
        self._generation = int.from_bytes(segment.view[GENERATION : GENERATION + 8], "little")

    @classmethod
    def create(cls, size: int, granule: int = 65536) -> Arena:
        """An arena of at least `size` bytes, rounded up to whole granules. StartupError when memory lacks."""
        if size <= 0 or granule < 128 or granule % 64:
            raise ValueError(
                f"arena of {size} bytes in granules of {granule}: granules are multiples of 64 from 128 on"
            )
        capacity = -(-size // granule) * granule
        segment = Segment.create("arena", PAGE + capacity, sparse=True)
        header = _ARENA.pack(MAGIC, VERSION, granule, capacity)
        segment.view[: _ARENA.size + 4] = header + zlib.crc32(header).to_bytes(4, "little")
        return cls(segment, granule, owner=True)

    @classmethod
    def attach(cls, fd: int) -> Arena:
        """The reader's side of an inherited descriptor. StartupError when it is no arena of this version and size."""
        segment = Segment.attach(fd)
        header = bytes(segment.view[: _ARENA.size])
        crc = int.from_bytes(segment.view[_ARENA.size : _ARENA.size + 4], "little")
        magic, version, granule, capacity = _ARENA.unpack(header)
        if magic != MAGIC or version != VERSION or crc != zlib.crc32(header) or segment.size != PAGE + capacity:
            raise StartupError("the descriptor is not an arena of this layout version")
        return cls(segment, granule, owner=False)

    @classmethod
    def adopt(cls, fd: int) -> Arena:
        """As attach, but for the process that owns the arena from now on. It starts empty: old leases become stale."""
        arena = cls.attach(fd)
        count = arena.capacity // arena.granule
        arena._free, arena._backed = FreeList(count), bytearray(count)
        at = arena.segment.data(PAGE)
        while at is not None:  # what was never written to is free as it is
            offset = PAGE + (at - PAGE) // arena.granule * arena.granule
            arena._write_header(offset, 0, 0, FREE)
            at = arena.segment.data(offset + arena.granule)
        return arena

    @property
    def fd(self) -> int:
        return self.segment.fd

    @property
    def blocks(self) -> int:
        return len(self._blocks)

    @property
    def used(self) -> int:
        """Bytes in taken granules, headers and rounding included."""
        return self.capacity - self._owned().free * self.granule

    def footprint(self, n: int) -> int:
        """What a block for `n` bytes takes of `capacity`."""
        return -(-(BLOCK_HEADER + n) // self.granule) * self.granule

    def alloc(self, n: int) -> Block | None:
        """A block for `n` bytes, FILLING; None when no free run is long enough, or the machine has no memory for it.
        ValueError if it never can be."""
        count = self.footprint(n) // self.granule
        free = self._owned()
        if n < 0 or count > free.total:
            raise ValueError(f"a block of {n} bytes never fits an arena of {self.capacity}")
        start = free.take(count)
        if start is None:
            return None
        if not self._back(start, count):
            free.give(start, count)
            return None
        self._generation += 1
        self.segment.view[GENERATION : GENERATION + 8] = self._generation.to_bytes(8, "little")
        block = Block(PAGE + start * self.granule, count * self.granule - BLOCK_HEADER, self._generation)
        self._blocks[block.offset] = block
        self._write_header(block.offset, block.generation, 0, FILLING)
        return block

    def payload(self, block: Block) -> memoryview:
        """The `room` bytes of a block, writable, to be filled in place. Release it before the arena is closed."""
        self._own(block.offset, block.generation)
        start = block.offset + BLOCK_HEADER
        return self.segment.view[start : start + block.room]

    def commit(self, block: Block, length: int) -> BlockRef:
        """FILLING -> READY: the first `length` bytes are valid; what is returned may be sent."""
        self._own(block.offset, block.generation)
        if not 0 <= length <= block.room:
            raise ValueError(f"{length} bytes in a block of {block.room}")
        self._write_header(block.offset, block.generation, length, READY)
        return BlockRef(block.offset, length, block.generation)

    def write(self, block: Block, *buffers: bytes | memoryview) -> BlockRef:
        """Copies `buffers` one behind the other and commits."""
        at = 0
        with self.payload(block) as room:
            for buffer in buffers:
                with memoryview(buffer).cast("B") as source:
                    if at + len(source) > block.room:
                        raise ValueError(f"more than {block.room} bytes for the block")
                    room[at : at + len(source)] = source
                    at += len(source)
        return self.commit(block, at)

    def free(self, block: Block | BlockRef) -> None:
        """Gives the granules back. LeaseError when the block is not, or no longer, allocated."""
        known = self._own(block.offset, block.generation)
        del self._blocks[known.offset]
        self._write_header(known.offset, 0, 0, FREE)
        count = (known.room + BLOCK_HEADER) // self.granule
        self._owned().give((known.offset - PAGE) // self.granule, count)

    def reset(self) -> None:
        """Frees every block. Leases of before are recognised as stale, for generations go on."""
        for block in list(self._blocks.values()):
            self.free(block)

    def view(self, ref: BlockRef) -> memoryview:
        """The payload in place, read-only. Call `verify` after use, before the lease goes back."""
        start = ref.offset + BLOCK_HEADER
        inside = ref.length >= 0 and ref.offset >= PAGE and start + ref.length <= self.segment.size
        if not inside or (ref.offset - PAGE) % self.granule:
            raise LeaseError(f"{ref} lies outside of the arena")
        self.verify(ref)
        return self.segment.view[start : start + ref.length].toreadonly()

    def verify(self, ref: BlockRef) -> None:
        """LeaseError unless the block still is the one that was leased."""
        generation, length, state = _BLOCK.unpack_from(self.segment.view, ref.offset)
        if (generation, length, state) != (ref.generation, ref.length, READY):
            raise LeaseError(f"{ref} is stale: the block has generation {generation}, {length} bytes, state {state}")

    def read(self, ref: BlockRef) -> bytes:
        """A copy of the payload, checked before and after."""
        with self.view(ref) as view:
            copy = bytes(view)
        self.verify(ref)
        return copy

    def close(self) -> None:
        self.segment.close()

    def _back(self, start: int, count: int) -> bool:
        """Whether the pages of `count` granules exist, now or already."""
        end = start + count
        if 0 in self._backed[start:end]:
            if not self.segment.back(PAGE + start * self.granule, count * self.granule):
                return False
            self._backed[start:end] = b"\1" * count
        return True

    def _own(self, offset: int, generation: int) -> Block:
        block = self._blocks.get(offset)
        if block is None or block.generation != generation:
            raise LeaseError(f"no block of generation {generation} at {offset}")
        return block

    def _owned(self) -> FreeList:
        if self._free is None:
            raise RuntimeError("only the owner of an arena has its index")
        return self._free

    def _write_header(self, offset: int, generation: int, length: int, state: int) -> None:
        _BLOCK.pack_into(self.segment.view, offset, generation, length, state)
