"""Reads the header of a GGUF file (ggml's docs/gguf.md, versions 2 and 3, little endian), but not the tensors.

The file is not trusted: every length is checked against the file before memory is allocated. The `gguf` library reads
the same keys, but takes seconds for a vocabulary, because it makes a numpy view for each string.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lightllm_mp.errors import ModelError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_KEYS = 65_536
_MAX_ITEMS = 16_777_216
_STRING, _ARRAY = 8, 9
_SCALARS: dict[int, str] = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}


def is_gguf(path: Path) -> bool:
    """True if `path` is a regular file that begins with the GGUF magic."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == _MAGIC


def read_header(path: Path, *, wanted: Callable[[str], bool] = lambda key: True) -> dict[str, Any]:
    """Keys and values of the header of `path`: str, int, float, bool, list of str, or a numpy array of numbers.

    Keys that are not `wanted` are left out. ModelError if the file is not GGUF or is truncated.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
            return GGUFCursor(buffer, path.name).header(wanted)[0]
    except (OSError, ValueError) as error:
        raise ModelError(f"{path.name} cannot be read as GGUF: {error}") from error


class GGUFCursor:
    """A read position in a mapped file. ModelError for a read beyond the end and for impossible values."""

    def __init__(self, buffer: mmap.mmap, name: str) -> None:
        self._buffer = buffer
        self._size = len(buffer)
        self._name = name
        self._at = 0

    @property
    def at(self) -> int:
        """Number of bytes read so far."""
        return self._at

    def header(self, wanted: Callable[[str], bool] = lambda key: True) -> tuple[dict[str, Any], int]:
        """Reads from the start. Returns the keys and values, and the number of tensor descriptions that follow."""
        if self._take(4) != _MAGIC:
            raise ModelError(f"{self._name} is not a GGUF file")
        version = self.number("<I", 4)
        if version not in _VERSIONS:
            raise ModelError(f"{self._name} has GGUF version {version}; versions 2 and 3 (little endian) are supported")
        tensors, count = self.number("<Q", 8), self.number("<Q", 8)
        if count > _MAX_KEYS:
            raise self.corrupt(f"{count} keys")
        values = {}
        for _ in range(count):
            key = self.string()
            value = self._value(self.number("<I", 4))
            if wanted(key):
                values[key] = value
        return values, tensors

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array()
        return self._numbers(kind, 1)[0].item()

    def _array(self) -> list[str] | np.ndarray:
        kind, count = self.number("<I", 4), self.number("<Q", 8)
        if count > _MAX_ITEMS:
            raise self.corrupt(f"an array of {count} items")
        return self._strings(count) if kind == _STRING else self._numbers(kind, count)

    def _numbers(self, kind: int, count: int) -> np.ndarray:
        if kind not in _SCALARS:
            raise self.corrupt(f"value type {kind}")
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(self._take(count * dtype.itemsize), dtype)

    def _strings(self, count: int) -> list[str]:
        buffer, size, at = self._buffer, self._size, self._at
        length_of = struct.Struct("<Q").unpack_from
        strings = []
        for _ in range(count):
            begin = at + 8
            if begin > size:
                raise self.corrupt("a truncated array of strings")
            at = begin + length_of(buffer, at)[0]
            if at > size:
                raise self.corrupt("a string beyond the end of the file")
            strings.append(buffer[begin:at].decode("utf-8", "replace"))
        self._at = at
        return strings

    def string(self) -> str:
        return self._take(self.number("<Q", 8)).decode("utf-8", "replace")

    def number(self, layout: str, size: int) -> int:
        return struct.unpack(layout, self._take(size))[0]

    def _take(self, count: int) -> bytes:
        end = self._at + count
        if end > self._size:
            raise self.corrupt("a value beyond the end of the file")
        data = self._buffer[self._at : end]
        self._at = end
        return data

    def corrupt(self, what: str) -> ModelError:
        return ModelError(f"the GGUF header of {self._name} is corrupt: {what}")
