"""Reads an input of a fuzzer as a list of operations and their arguments."""

from __future__ import annotations


class Reader:
    """Takes numbers and bytes from the front of `data`; missing ones at its end are 0 or empty."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def __bool__(self) -> bool:
        """Whether bytes are left."""
        return self._at < len(self._data)

    def number(self, size: int) -> int:
        """`size` bytes, little endian, unsigned."""
        return int.from_bytes(self.take(size), "little")

    def take(self, size: int) -> bytes:
        part = self._data[self._at : self._at + size]
        self._at += size
        return part

    def rest(self) -> bytes:
        return self.take(len(self._data))
