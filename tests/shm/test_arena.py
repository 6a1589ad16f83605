from __future__ import annotations

import os
import random

import pytest

from lightllm_mp.errors import StartupError
from lightllm_mp.shm import Arena, BlockRef, LeaseError, Segment
from lightllm_mp.shm.freelist import FreeList
from lightllm_mp.shm.layout import PAGE

GRANULE = 4096


@pytest.fixture
def arena():
    arena = Arena.create(16 * GRANULE, GRANULE)
    yield arena
    arena.close()


@pytest.fixture
def reader(arena: Arena):
    reader = Arena.attach(os.dup(arena.fd))
    yield reader
    reader.close()


def test_a_block_is_written_once_and_read_by_reference(arena: Arena, reader: Arena):
    block = arena.alloc(5000)
    assert block is not None
    assert (block.room, arena.used, arena.blocks, arena.capacity) == (8128, 8192, 1, 65536)
    ref = arena.write(block, b"abc", memoryview(bytearray(b"defg")), b"")
    assert ref.length == 7
    assert reader.read(ref) == b"abcdefg"
    with reader.view(ref) as view:
        assert view.readonly
        assert view == b"abcdefg"
    reader.verify(ref)
    arena.free(ref)
    assert (arena.used, arena.blocks) == (0, 0)


def test_filled_in_place(arena: Arena, reader: Arena):
    block = arena.alloc(100)
    with arena.payload(block) as room:
        assert len(room) == GRANULE - 64
        room[:3] = b"xyz"
    with pytest.raises(LeaseError, match="stale"):
        reader.read(BlockRef(block.offset, 0, block.generation))  # FILLING: not yet to be read
    assert reader.read(arena.commit(block, 3)) == b"xyz"
    with pytest.raises(ValueError, match="in a block of"):
        arena.commit(block, GRANULE)
    with pytest.raises(ValueError, match="more than"):
        arena.write(block, bytes(4000), bytes(100))


def test_full_says_none_and_never_fits_raises(arena: Arena):
    blocks = [arena.alloc(GRANULE - 64) for _ in range(16)]
    assert None not in blocks
    assert arena.alloc(1) is None
    assert arena.used == arena.capacity
    arena.free(blocks[3])
    assert arena.alloc(GRANULE) is None  # two granules
    assert arena.alloc(1).offset == blocks[3].offset
    for size in (16 * GRANULE, -1):
        with pytest.raises(ValueError, match="never fits"):
            arena.alloc(size)


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1), (1, 3, 2), (2, 1, 3)])
def test_neighbours_join(arena: Arena, order: tuple[int, ...]):
    blocks = [arena.alloc(1) for _ in range(16)]
    for index in order:
        arena.free(blocks[index])
    joined = arena.alloc(3 * GRANULE - 64)
    assert joined.offset == blocks[1].offset
    assert arena.alloc(1) is None


def test_random_use_keeps_blocks_apart_and_loses_no_granule(arena: Arena, reader: Arena):
    rng = random.Random(3)
    held: dict[BlockRef, bytes] = {}
    for _ in range(3000):
        if held and rng.random() < 0.5:
            ref = rng.choice(list(held))
            assert reader.read(ref) == held.pop(ref)
            arena.free(ref)
        else:
            content = rng.randbytes(rng.randrange(0, 3 * GRANULE))
            block = arena.alloc(len(content))
            if block is not None:
                held[arena.write(block, content)] = content
        assert arena.used == sum(-(-(64 + ref.length) // GRANULE) * GRANULE for ref in held)
    arena.reset()
    assert arena.used == 0
    assert arena.alloc(16 * GRANULE - 64) is not None


def test_free_list_against_a_plain_set():
    rng = random.Random(5)
    free, taken, model = FreeList(40), [], set(range(40))
    for _ in range(5000):
        if taken and rng.random() < 0.5:
            start, count = taken.pop(rng.randrange(len(taken)))
            free.give(start, count)
            model |= set(range(start, start + count))
        else:
            count = rng.randrange(1, 7)
            start = free.take(count)
            fits = [s for s in range(41 - count) if set(range(s, s + count)) <= model]
            assert start == (fits[0] if fits else None)
            if start is not None:
                taken.append((start, count))
                model -= set(range(start, start + count))
        assert free.free == len(model)
    for start, count in taken:
        free.give(start, count)
    assert free.extents == 1


def test_a_stale_lease_is_loud(arena: Arena, reader: Arena):
    ref = arena.write(arena.alloc(10), b"old")
    arena.free(ref)
    with pytest.raises(LeaseError, match="stale"):
        reader.read(ref)
    with pytest.raises(LeaseError, match="no block of generation 1"):
        arena.free(ref)
    new = arena.write(arena.alloc(10), b"new")
    assert new.offset == ref.offset
    with pytest.raises(LeaseError, match="generation 2"):
        reader.view(ref)
    with reader.view(new):
        arena.free(new)
        with pytest.raises(LeaseError):
            reader.verify(new)


@pytest.mark.parametrize(
    "ref",
    [
        BlockRef(0, 1, 1),
        BlockRef(4096 + 8, 1, 1),
        BlockRef(4096 + 16 * GRANULE, 1, 1),
        BlockRef(1 << 62, 1, 1),
        BlockRef(-4096, 1, 1),
        BlockRef(4096, 16 * GRANULE, 1),
        BlockRef(4096, -1, 1),
        BlockRef(4096, 1 << 70, 1),
    ],
)
def test_a_reference_out_of_the_arena_is_refused(arena: Arena, reader: Arena, ref: BlockRef):
    arena.write(arena.alloc(10), b"x")
    with pytest.raises(LeaseError, match=r"outside|stale"):
        reader.read(ref)


def test_a_new_owner_starts_empty_and_old_leases_are_stale(arena: Arena, reader: Arena):
    old = [arena.write(arena.alloc(100), b"before") for _ in range(3)]
    owner = Arena.adopt(os.dup(arena.fd))
    assert owner.used == 0
    ref = owner.write(owner.alloc(100), b"after")
    assert ref.offset == old[0].offset
    assert reader.read(ref) == b"after"
    for stale in old:
        with pytest.raises(LeaseError):
            reader.read(stale)
    owner.close()


def taken(arena: Arena) -> int:
    """Bytes of memory that an arena takes."""
    return os.fstat(arena.fd).st_blocks * 512


def test_memory_is_taken_as_blocks_need_it(arena: Arena):
    assert taken(arena) == PAGE
    block = arena.alloc(5000)
    assert block is not None
    assert taken(arena) == PAGE + 2 * GRANULE
    arena.free(block)
    again = arena.alloc(6000)
    assert again is not None
    assert taken(arena) == PAGE + 2 * GRANULE


def test_a_new_owner_and_a_reader_take_none(arena: Arena):
    Arena.attach(os.dup(arena.fd)).close()
    Arena.adopt(os.dup(arena.fd)).close()
    assert taken(arena) == PAGE


def test_no_memory_for_a_block_is_no_room_now(arena: Arena, monkeypatch: pytest.MonkeyPatch):
    small = arena.alloc(100)
    assert small is not None
    with monkeypatch.context() as refused:
        refused.setattr(Segment, "back", lambda self, start, size: False)
        assert arena.alloc(100) is None
    assert arena.used == GRANULE
    assert arena.alloc(15 * GRANULE - 64) is not None


def test_only_the_owner_allocates(reader: Arena):
    with pytest.raises(RuntimeError, match="only the owner"):
        reader.alloc(1)


def test_attach_refuses_another_segment_and_create_bad_sizes(arena: Arena):
    segment = Segment.create("other", 8192)
    with pytest.raises(StartupError, match="not an arena"):
        Arena.attach(segment.fd)
    segment.close()
    arena.segment.view[8] ^= 1
    with pytest.raises(StartupError, match="not an arena"):
        Arena.attach(arena.fd)
    for size, granule in ((0, 4096), (4096, 100), (4096, 64)):
        with pytest.raises(ValueError, match="multiples of 64"):
            Arena.create(size, granule)
