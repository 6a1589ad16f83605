"""One page of numbers per actor: only its owner writes it; the front reads it for /metrics without any message.

Layout: uint32 bytes of names (0: not published yet), uint32 offset of the values, the names as JSON, then aligned
float64 values. Aligned 8-byte loads and stores do not tear on the supported processors; a reader may see two gauges of
different moments.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence

from lightllm_mp.shm import Segment

HEADER = struct.Struct("<II")
NAMES_BYTES, MAX_VALUES = 6144, 256
"""Room for the names of an actor whose names the maker of the page does not know, and for their values."""


class StatsPage:
    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        _, self._start = HEADER.unpack_from(segment.view)
        self._values = segment.view[self._start :].cast("d")
        self._names: tuple[str, ...] = ()

    @classmethod
    def create(cls, name: str, names: Sequence[str] = ()) -> StatsPage:
        """A page with room for exactly these names, or for those of any actor."""
        start = HEADER.size + len(_encoded(names)) if names else NAMES_BYTES
        start = -(-start // 8) * 8
        segment = Segment.create(f"stats-{name}", start + 8 * (len(names) or MAX_VALUES))
        HEADER.pack_into(segment.view, 0, 0, start)
        return cls(segment)

    @classmethod
    def attach(cls, fd: int) -> StatsPage:
        return cls(Segment.attach(fd))

    @property
    def fd(self) -> int:
        return self._segment.fd

    def write(self, values: Mapping[str, float]) -> None:
        """Publish `values`. The first call fixes the names and their order; later calls must use the same. ValueError
        if the page has no room for them."""
        if not self._names:
            self._publish_names(tuple(values))
        for index, value in enumerate(values.values()):
            self._values[index] = value

    def read(self) -> dict[str, float]:
        """The owner's last values; empty before its first write."""
        length, _ = HEADER.unpack_from(self._segment.view)
        if not length:
            return {}
        names = json.loads(bytes(self._segment.view[HEADER.size : HEADER.size + length]))
        return dict(zip(names, self._values, strict=False))

    def close(self) -> None:
        self._values.release()
        self._segment.close()

    def _publish_names(self, names: tuple[str, ...]) -> None:
        data = _encoded(names)
        if HEADER.size + len(data) > self._start or len(names) > len(self._values):
            raise ValueError(f"{len(names)} values do not fit one stats page")
        self._names = names
        self._segment.view[HEADER.size : HEADER.size + len(data)] = data
        HEADER.pack_into(self._segment.view, 0, len(data), self._start)


def _encoded(names: Sequence[str]) -> bytes:
    return json.dumps(list(names)).encode()
