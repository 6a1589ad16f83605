"""GGUF files: a bounds-checked reader of the header; tensor data is dequantised by the `gguf` library.

The header format is that of ggml's docs/gguf.md, versions 2 and 3, little endian. The library's own reader trusts the
counts in the file; a corrupt file must end in one clear line instead, so the header is parsed here. Imports no torch.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from lightllm_mp.errors import ModelError

MAX_DIMENSIONS = 4
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """Where a tensor lies. `shape` is in numpy order (rows first), `start` and `size` in bytes of the file."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    start: int
    size: int


class GGUFFile:
    """An open GGUF file: `metadata` by key, `tensors` by name, data through `read`."""

    def __init__(self, path: Path, view: mmap.mmap, metadata: dict[str, Any], tensors: dict[str, GGUFTensor]) -> None:
        self.path = path
        self.metadata = metadata
        self.tensors = tensors
        self._view = view

    def read(self, name: str) -> np.ndarray:
        """The tensor as float32 in its shape, dequantised. Raises ModelError for a type that cannot be decoded."""
        tensor = self.tensors[name]
        raw = np.frombuffer(self._view, np.uint8, tensor.size, tensor.start)
        block, block_bytes = GGML_QUANT_SIZES[tensor.type]
        rows = raw.reshape(*tensor.shape[:-1], tensor.shape[-1] // block * block_bytes)
        try:
            values = dequantize(rows, tensor.type).astype(np.float32, copy=False).reshape(tensor.shape)
        except NotImplementedError as error:
            kind = tensor.type.name
            raise ModelError(f"{self.path}: tensor {name} has type {kind}, which is not supported") from error
        return values if values.flags.writeable else values.copy()
        return values

    def most_common_type(self) -> str:
        """Name of the type that most weight matrices are stored in, in lower case."""
        kinds = Counter(t.type.name for t in self.tensors.values() if len(t.shape) > 1)
        names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
        kind = kinds.most_common(1)[0][0] if kinds else "F32"
        return names.get(kind, kind.lower())


def read_gguf(path: Path) -> GGUFFile:
    """Opens a file and parses its header. Raises ModelError when it is not a whole, sane GGUF file."""
    try:
        with path.open("rb") as file:
            view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read ({error})") from error
    header = _Header(view)
    try:
        metadata, tensors = header.parse()
    except (struct.error, ValueError, KeyError, OverflowError, RecursionError) as error:
        raise ModelError(f"{path}: not a valid GGUF file ({error})") from error
    return GGUFFile(path, view, metadata, tensors)


class _Header:
    """A cursor over the mapped file. Every length is checked against the bytes left before it is used."""

    def __init__(self, view: mmap.mmap) -> None:
        self.view = view
        self.at = 0

    def parse(self) -> tuple[dict[str, Any], dict[str, GGUFTensor]]:
        if self.view[:4] != b"GGUF":
            raise ValueError("the file does not begin with GGUF")
        self.at = 4
        version = self._scalar("I")
        if version not in (2, 3):
            raise ValueError(f"version {version} is not supported")
        tensor_count, key_count = self._count(self._scalar("Q")), self._count(self._scalar("Q"))
        metadata: dict[str, Any] = {}
        for _ in range(key_count):
            key = self._string()
            metadata[key] = self._value(self._scalar("I"))
        infos = [self._tensor_info() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"alignment {alignment!r} is no power of two")
        start = -(-self.at // alignment) * alignment
        return metadata, self._tensors(infos, start)

    def _tensor_info(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = self._string(), self._scalar("I")
        if dimensions > MAX_DIMENSIONS:
            raise ValueError(f"tensor {name} has {dimensions} dimensions")
        shape = tuple(self._scalar("Q") for _ in range(dimensions))
        return name, shape[::-1], self._scalar("I"), self._scalar("Q")

    def _tensors(self, infos: list[tuple[str, tuple[int, ...], int, int]], start: int) -> dict[str, GGUFTensor]:
        tensors: dict[str, GGUFTensor] = {}
        for name, shape, kind, offset in infos:
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
            if name in tensors:
                raise ValueError(f"tensor {name} occurs twice")
            if shape and shape[-1] % block:
                raise ValueError(f"tensor {name} has rows of {shape[-1]} in blocks of {block}")
            size = math.prod(shape) // block * block_bytes
            if start + offset + size > len(self.view):
                raise ValueError(f"the file ends inside tensor {name}")
            tensors[name] = GGUFTensor(name, shape, GGMLQuantizationType(kind), start + offset, size)
        return tensors

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._scalar(_SCALARS[kind])
        inner, count = self._scalar("I"), self._count(self._scalar("Q"))
        if inner in (_STRING, _ARRAY):
            return [self._value(inner) for _ in range(count)]
        code = f"<{count}{_SCALARS[inner]}"
        values = struct.unpack_from(code, self.view, self.at)
        self.at += struct.calcsize(code)
        return list(values)

    def _string(self) -> str:
        length = self._count(self._scalar("Q"))
        text = self.view[self.at : self.at + length]
        self.at += length
        return text.decode("utf-8", "replace")

    def _scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.view, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def _count(self, count: int) -> int:
        """A number of things of at least one byte each, that must fit into the rest of the file."""
        if count > len(self.view) - self.at:
            raise ValueError(f"a count of {count} at byte {self.at} exceeds the file")
        return count
