"""Memory layout of a lane and of a bell page: version 1, little endian, hot words 128 bytes apart.

Lane (one memfd: a header of 4096 bytes, then a data area of 2^k bytes):

======  =============================================================================  ===========================
offset  field                                                                          written by
======  =============================================================================  ===========================
0       magic u64, version u32, header bytes u32, capacity u64, epoch u64,             the supervisor, while the lane
        features u64, producer u32, consumer u32, CRC-32 of these 48 bytes u32          is not in use
64      incarnation u64: a new random number at each reset of the lane                  the supervisor, likewise
128     tail u64: bytes published, modulo 2^64 (not modulo the capacity)               producer
256     head u64: bytes released, likewise                                             consumer
384     space_wanted u32: ring the producer when half of the lane is free              producer sets, consumer clears
512     state u32                                                                      either
640     puts, full events, doorbells, max backlog: u64 each                            producer
768     gets, space doorbells, max backlog: u64 each                                   consumer
4096    records
======  =============================================================================  ===========================

Record: u32 length, u16 kind, u16 flags (0), payload, padding to 8 bytes. A record never wraps: a record of KIND_PAD
fills the end of the data area. The largest payload is capacity / 8.

Legal transitions of the state word; any other is corruption::

    OPEN -> CLOSED       Sender.finish(): the producer ends. The consumer can still drain published records.
    OPEN -> POISONED     either side found an impossible position, length, kind or padding, or an undecodable payload.
    CLOSED -> POISONED   the same, while the consumer drains the rest.
    any -> OPEN          Lane.reset() by the supervisor, while neither side uses the lane; a new epoch and CRC.

Bell page (one memfd of 4096 bytes; the eventfd is a second descriptor):

======  ========================================================  =========================================
0       magic u64, version u32, actor u32, CRC-32 of these u32     creator
128     parked u32                                                owner sets; the ringing peer clears by exchange
256     epoch u64, pid u64                                        owner
384     parks, wakes: u64 each                                    owner
======  ========================================================  =========================================
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from lightllm_mp.errors import StartupError

PAGE = 4096
VERSION = 1
LANE_MAGIC = int.from_bytes(b"LMPLANE1", "little")
BELL_MAGIC = int.from_bytes(b"LMPBELL1", "little")
FEATURE_COUNTED = 1  # two eventfds count published and released bytes (the Python ring)

TAIL, HEAD, SPACE_WANTED, STATE, PRODUCER_COUNTS, CONSUMER_COUNTS = 128, 256, 384, 512, 640, 768
INCARNATION = 64
PARKED, BELL_EPOCH, BELL_PID, BELL_COUNTS = 128, 256, 264, 384
OPEN, CLOSED, POISONED = 1, 2, 3
STATE_NAMES = {OPEN: "open", CLOSED: "closed", POISONED: "poisoned"}

KIND_MESSAGE = 1  # one msgpack message
KIND_RAW = 2  # bytes without a codec (step plans)
KIND_BLOCK = 3  # a BlockRef of a msgpack message in the sender's arena
KIND_RAW_BLOCK = 4  # a BlockRef of bytes in the sender's arena
KIND_RELEASE = 5  # leases on their way back to the owner of the arena
KIND_LAST = 5
KIND_PAD = 15  # never delivered

_LANE = struct.Struct("<QIIQQQII")
_BELL = struct.Struct("<QII")
_CRC = struct.Struct("<I")


class LaneHeader(NamedTuple):
    capacity: int
    epoch: int
    features: int
    producer: int
    consumer: int


def write_lane_header(view: memoryview, header: LaneHeader) -> None:
    """Writes the header of a lane with its checksum."""
    packed = _LANE.pack(LANE_MAGIC, VERSION, PAGE, *header)
    view[: len(packed) + 4] = packed + _CRC.pack(zlib.crc32(packed))


def read_lane_header(view: memoryview) -> LaneHeader:
    """Reads and checks the header of a lane. StartupError names what does not match."""
    packed = bytes(view[: _LANE.size])
    magic, version, header_bytes, capacity, *rest = _LANE.unpack(packed)
    if magic != LANE_MAGIC:
        raise StartupError("the descriptor is not a lane (wrong magic)")
    if version != VERSION or header_bytes != PAGE:
        raise StartupError(f"the lane has layout version {version}, this program supports version {VERSION}")
    if _CRC.unpack_from(view, _LANE.size)[0] != zlib.crc32(packed):
        raise StartupError("the header of the lane is corrupt (wrong checksum)")
    if not is_capacity(capacity) or len(view) != PAGE + capacity:
        raise StartupError(f"the lane's header says {capacity} bytes of data, but its memory has {len(view) - PAGE}")
    return LaneHeader(capacity, *rest)


def write_bell_header(view: memoryview, actor: int) -> None:
    packed = _BELL.pack(BELL_MAGIC, VERSION, actor)
    view[: len(packed) + 4] = packed + _CRC.pack(zlib.crc32(packed))


def read_bell_header(view: memoryview) -> int:
    """The actor id of a bell page. StartupError if the memory is not a bell page."""
    packed = bytes(view[: _BELL.size])
    magic, version, actor = _BELL.unpack(packed)
    if magic != BELL_MAGIC or len(view) != PAGE:
        raise StartupError("the descriptor is not a bell page")
    if version != VERSION:
        raise StartupError(f"the bell page has layout version {version}, this program supports version {VERSION}")
    if _CRC.unpack_from(view, _BELL.size)[0] != zlib.crc32(packed):
        raise StartupError("the bell page is corrupt (wrong checksum)")
    return actor


def is_capacity(size: int) -> bool:
    """True for the legal sizes of a lane's data area: powers of two from 4 KiB to 1 GiB."""
    return 4096 <= size <= 1 << 30 and size & (size - 1) == 0
