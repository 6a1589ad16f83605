"""Shared memory for large payloads: the owner writes a block once and sends its BlockRef, a reader copies it.

Layout, little endian: a page with magic u64, version u32, granule u32, capacity u64 and their CRC-32, and at offset 64
the last generation u64; then `capacity` bytes in granules. A block is a run of granules: a header of 64 bytes
(generation u64, length u64, state u32), then the payload, aligned to 64 bytes.

The index (free granules, the generation of each block) is private memory of the owner, so no peer can corrupt it.
Legal states of a block, all set by the owner::

    free --alloc--> FILLING --commit/write--> READY --free--> FREE
                    FILLING --free--> FREE

A reader holds a lease: the BlockRef that it received. A generation is never used twice. The reader compares the header
before and after its copy; if the lease has outlived its block, it raises LeaseError, which is a bug of the engine. The
lane that carries a BlockRef makes the bytes of the block visible with it (release/acquire).

The arena takes memory when blocks need it, lowest granules first, and keeps it. So its capacity is only a bound, and
most arenas stay nearly empty. The pages of a block exist before `alloc` returns it, so no access raises SIGBUS.
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
    """A lease: the right to read one block of an arena. `offset`: of the block's header in the arena, in bytes."""

    offset: int
    length: int
    generation: int


@dataclass(frozen=True, slots=True)
class Block:
    """A block, as its owner sees it. `room`: bytes of payload that fit."""

    offset: int
    room: int
    generation: int


class Arena:
    """A sparse memfd with blocks. The owner calls `create` or `adopt`; a reader `attach`, then `read` or `view`."""

    def __init__(self, segment: Segment, granule: int, owner: bool) -> None:
        self.segment = segment
        self.granule = granule
        self.capacity = segment.size - PAGE
        self._free = FreeList(self.capacity // granule) if owner else None
        self._blocks: dict[int, Block] = {}
        self._backed = bytearray(self.capacity // granule if owner else 0)
        """For each granule: 1 if its pages are known to exist."""
        self._generation = int.from_bytes(segment.view[GENERATION : GENERATION + 8], "little")

    @classmethod
    def create(cls, size: int, granule: int = 65536) -> Arena:
        """An arena of `size` bytes, rounded up to whole granules. StartupError if there is too little memory."""
        if size <= 0 or granule < 128 or granule % 64:
            raise ValueError(f"arena: size {size} must be positive, granules {granule} multiples of 64 from 128 on")
        capacity = -(-size // granule) * granule
        segment = Segment.create("arena", PAGE + capacity, sparse=True)
        header = _ARENA.pack(MAGIC, VERSION, granule, capacity)
        segment.view[: _ARENA.size + 4] = header + zlib.crc32(header).to_bytes(4, "little")
        return cls(segment, granule, owner=True)

    @classmethod
    def attach(cls, fd: int) -> Arena:
        """A reader's view of an inherited descriptor. StartupError if it is not an arena of this version."""
        segment = Segment.attach(fd)
        header = bytes(segment.view[: _ARENA.size])
        crc = int.from_bytes(segment.view[_ARENA.size : _ARENA.size + 4], "little")
        magic, version, granule, capacity = _ARENA.unpack(header)
        if magic != MAGIC or version != VERSION or crc != zlib.crc32(header) or segment.size != PAGE + capacity:
            raise StartupError("the descriptor is not an arena of this layout version")
        return cls(segment, granule, owner=False)

    @classmethod
    def adopt(cls, fd: int) -> Arena:
        """As `attach`, but for a new owner of the arena. The arena starts empty: old leases become stale."""
        arena = cls.attach(fd)
        count = arena.capacity // arena.granule
        arena._free, arena._backed = FreeList(count), bytearray(count)
        at = arena.segment.data(PAGE)
        while at is not None:  # a granule that was never written to has the state FREE
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
        """Bytes in allocated granules, with headers and rounding."""
        return self.capacity - self._owned().free * self.granule

    def footprint(self, n: int) -> int:
        """Bytes of `capacity` that a block with `n` bytes of payload takes."""
        return -(-(BLOCK_HEADER + n) // self.granule) * self.granule

    def alloc(self, n: int) -> Block | None:
        """A block for `n` bytes in state FILLING. None if no free run is long enough or the machine has no memory for
        it. ValueError if the arena is too small for it."""
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
        """FILLING -> READY: the first `length` bytes are valid. The BlockRef may be sent."""
        self._own(block.offset, block.generation)
        if not 0 <= length <= block.room:
            raise ValueError(f"{length} bytes do not fit in a block of {block.room}")
        self._write_header(block.offset, block.generation, length, READY)
        return BlockRef(block.offset, length, block.generation)

    def write(self, block: Block, *buffers: bytes | memoryview) -> BlockRef:
        """Copies `buffers` one after the other and commits. ValueError if they do not fit."""
        at = 0
        with self.payload(block) as room:
            for buffer in buffers:
                with memoryview(buffer).cast("B") as source:
                    if at + len(source) > block.room:
                        raise ValueError(f"the buffers have more than the {block.room} bytes of the block")
                    room[at : at + len(source)] = source
                    at += len(source)
        return self.commit(block, at)

    def free(self, block: Block | BlockRef) -> None:
        """Frees the block. LeaseError if it is not allocated."""
        known = self._own(block.offset, block.generation)
        del self._blocks[known.offset]
        self._write_header(known.offset, 0, 0, FREE)
        count = (known.room + BLOCK_HEADER) // self.granule
        self._owned().give((known.offset - PAGE) // self.granule, count)

    def reset(self) -> None:
        """Frees every block. Old leases are stale, since generations go on."""
        for block in list(self._blocks.values()):
            self.free(block)

    def view(self, ref: BlockRef) -> memoryview:
        """The payload in place, read-only. Call `verify` after use and before the lease goes back."""
        start = ref.offset + BLOCK_HEADER
        inside = ref.length >= 0 and ref.offset >= PAGE and start + ref.length <= self.segment.size
        if not inside or (ref.offset - PAGE) % self.granule:
            raise LeaseError(f"{ref} is outside the arena")
        self.verify(ref)
        return self.segment.view[start : start + ref.length].toreadonly()

    def at(self, payload: int) -> BlockRef:
        """The block whose payload begins at this offset, for a reader that knows that it is leased."""
        generation, length, _ = _BLOCK.unpack_from(self.segment.view, payload - BLOCK_HEADER)
        return BlockRef(payload - BLOCK_HEADER, length, generation)

    def verify(self, ref: BlockRef) -> None:
        """LeaseError if the block is not the leased one any more."""
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
        """Allocates the pages of `count` granules. False: too little memory."""
        end = start + count
        if 0 in self._backed[start:end]:
            if not self.segment.back(PAGE + start * self.granule, count * self.granule):
                return False
            self._backed[start:end] = b"\1" * count
        return True

    def _own(self, offset: int, generation: int) -> Block:
        block = self._blocks.get(offset)
        if block is None or block.generation != generation:
            raise LeaseError(f"there is no block of generation {generation} at offset {offset}")
        return block

    def _owned(self) -> FreeList:
        if self._free is None:
            raise RuntimeError("only the owner of an arena can allocate and free blocks")
        return self._free

    def _write_header(self, offset: int, generation: int, length: int, state: int) -> None:
        _BLOCK.pack_into(self.segment.view, offset, generation, length, state)
