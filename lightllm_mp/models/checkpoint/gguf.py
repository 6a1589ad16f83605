"""GGUF files: finds tensors by the checked header; the `gguf` library dequantises their data.

Imports no torch.
"""

from __future__ import annotations

import math
import mmap
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from lightllm_mp.errors import ModelError
from lightllm_mp.model_files.gguf_header import GGUFCursor

MAX_DIMENSIONS = 4


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """Place of a tensor. `shape` is in numpy order (rows first); `start` and `size` are bytes of the file."""

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

    def rows(self, name: str) -> np.ndarray:
        """The tensor's bytes, uint8 [..., rows, bytes of a row]: a view of the file, private to this process."""
        tensor = self.tensors[name]
        return np.frombuffer(self._view, np.uint8, tensor.size, tensor.start).reshape(*tensor.shape[:-1], -1)

    def forget(self, name: str) -> None:
        """Frees the pages of a tensor that was read; another access reads them from the file again."""
        tensor, page = self.tensors[name], mmap.PAGESIZE
        begin, end = tensor.start // page * page, (tensor.start + tensor.size) // page * page
        if end > begin:
            self._view.madvise(mmap.MADV_DONTNEED, begin, end - begin)

    def most_common_type(self) -> str:
        """Name, in lower case, of the type of most weights."""
        kinds: Counter[str] = Counter()
        for tensor in self.tensors.values():
            if len(tensor.shape) > 1:
                kinds[tensor.type.name] += math.prod(tensor.shape)
        names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
        kind = kinds.most_common(1)[0][0] if kinds else "F32"
        return names.get(kind, kind.lower())


def read_gguf(path: Path) -> GGUFFile:
    """Opens a file and parses its header. Raises ModelError when it is not a whole, sane GGUF file."""
    try:
        with path.open("rb") as file:
            view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read ({error})") from error
    cursor = GGUFCursor(view, path.name)
    metadata, count = cursor.header()
    infos = [_tensor_info(cursor) for _ in range(_sane(cursor, count, len(view)))]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise cursor.corrupt(f"alignment {alignment!r} is not a power of two")
    start = -(-cursor.at // alignment) * alignment
    return GGUFFile(path, view, metadata, _tensors(cursor, infos, start, len(view)))


Info = tuple[str, tuple[int, ...], int, int]
"""Name, shape with rows first, type, offset."""


def _sane(cursor: GGUFCursor, count: int, size: int) -> int:
    """Checks a number of tensors against the bytes left: each description takes more than one."""
    if count > size - cursor.at:
        raise cursor.corrupt(f"{count} tensors")
    return count


def _tensor_info(cursor: GGUFCursor) -> Info:
    name, dimensions = cursor.string(), cursor.number("<I", 4)
    if dimensions > MAX_DIMENSIONS:
        raise cursor.corrupt(f"tensor {name} has {dimensions} dimensions")
    shape = tuple(cursor.number("<Q", 8) for _ in range(dimensions))
    return name, shape[::-1], cursor.number("<I", 4), cursor.number("<Q", 8)


def _tensors(cursor: GGUFCursor, infos: list[Info], start: int, end: int) -> dict[str, GGUFTensor]:
    tensors: dict[str, GGUFTensor] = {}
    for name, shape, number, offset in infos:
        if name in tensors:
            raise cursor.corrupt(f"tensor {name} occurs twice")
        try:
            kind = GGMLQuantizationType(number)
        except ValueError:
            raise cursor.corrupt(f"tensor {name} has the unknown type {number}") from None
        block, block_bytes = GGML_QUANT_SIZES[kind]
        if not shape or 0 in shape or shape[-1] % block:
            raise cursor.corrupt(f"tensor {name} has the shape {shape} in blocks of {block}")
        size = math.prod(shape) // block * block_bytes
        if start + offset + size > end:
            raise cursor.corrupt(f"the file ends inside tensor {name}")
        tensors[name] = GGUFTensor(name, shape, kind, start + offset, size)
    return tensors
