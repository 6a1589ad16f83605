"""One page of numbers per actor: only its owner writes it; the front reads it for /metrics without any message.

Layout: 6144 bytes of JSON with the names (written once, length in the first 4 bytes), then 256 aligned float64. Aligned
8-byte loads and stores do not tear on the supported processors; a reader may see two gauges of different moments.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping

from lightllm_mp.shm import Segment

NAMES_BYTES, MAX_VALUES = 6144, 256
PAGE_BYTES = NAMES_BYTES + 8 * MAX_VALUES


class StatsPage:
    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self._values = segment.view[NAMES_BYTES:PAGE_BYTES].cast("d")
        self._names: tuple[str, ...] = ()

    @classmethod
    def create(cls, name: str) -> StatsPage:
        return cls(Segment.create(f"stats-{name}", PAGE_BYTES))

    @classmethod
    def attach(cls, fd: int) -> StatsPage:
        return cls(Segment.attach(fd))

    @property
    def fd(self) -> int:
        return self._segment.fd

    def write(self, values: Mapping[str, float]) -> None:
        """Publish `values`. The first call fixes the names and their order; later calls must use the same."""
        if not self._names:
            self._publish_names(tuple(values))
        for index, value in enumerate(values.values()):
            self._values[index] = value

    def read(self) -> dict[str, float]:
        """The owner's last values; empty before its first write."""
        length = struct.unpack_from("<I", self._segment.view)[0]
        if not length:
            return {}
        names = json.loads(bytes(self._segment.view[4 : 4 + length]))
        return dict(zip(names, self._values, strict=False))

    def close(self) -> None:
        self._values.release()
        self._segment.close()

    def _publish_names(self, names: tuple[str, ...]) -> None:
        data = json.dumps(names).encode()
        if len(data) + 4 > NAMES_BYTES or len(names) > MAX_VALUES:
            raise ValueError(f"{len(names)} values do not fit one stats page")
        self._names = names
        self._segment.view[4 : 4 + len(data)] = data
        struct.pack_into("<I", self._segment.view, 0, len(data))
