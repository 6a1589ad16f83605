"""One interface to weight files: safetensors, torch `.bin`, GGUF.

Opening reads headers only, so names and shapes are checked before any data is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Set
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from lightllm_mp.errors import ModelError
from lightllm_mp.kernels.quantised import BlockRows
from lightllm_mp.models.checkpoint.gguf import GGUFFile
from lightllm_mp.models.checkpoint.weight_files import weight_files

Tensors = Iterator[tuple[str, Any]]
"""Names and tensors, or lazy slices and packed forms of tensors."""

BYTES = {
    **dict.fromkeys(("F64", "I64"), 8),
    **dict.fromkeys(("F32", "I32"), 4),
    **dict.fromkeys(("F16", "BF16"), 2),
    **dict.fromkeys(("F8_E4M3", "F8_E8M0", "I8", "U8"), 1),
}
"""Bytes of an element, by the names of dtypes in safetensors files. Other dtypes are not read."""
FLOATS = ("F64", "F32", "F16", "BF16")
"""Dtypes of plain weights; the others are parts of quantised ones."""


class Checkpoint(Protocol):
    """Tensors by name. `stream` yields each wanted tensor once; those of `partly` may be lazy slices, which read only
    what is indexed. `sizes` are bytes as stored, for progress.
    `quantised` names what comes in a quantised form."""

    shapes: dict[str, tuple[int, ...]]
    sizes: dict[str, int]
    quantised: Set[str]

    def stream(self, wanted: set[str], partly: Set[str] = frozenset()) -> Tensors: ...


class FileTensors(Checkpoint, Protocol):
    """The tensors of files, some of which may be parts of quantised weights: `coded` has those that are no floating
    point numbers of 16 bits or more, and their dtypes."""

    coded: dict[str, str]


def check_plain(checkpoint: FileTensors, names: Set[str], where: str) -> None:
    """ModelError where one of the tensors is not plain."""
    for name in sorted(names & checkpoint.coded.keys()):
        raise ModelError(f"{where}: tensor {name} is stored as {checkpoint.coded[name]}, which is not supported")


def open_folder(folder: Path) -> FileTensors:
    """The checkpoint of a Hugging Face folder: safetensors where present, else `.bin` (read with weights_only)."""
    files = weight_files(folder)
    return SafetensorsFiles(files) if files[0].suffix == ".safetensors" else TorchFiles(files)


BUFFERS = (".position_ids",)
"""Suffixes of integer buffers that old CLIP checkpoints carry beside their weights."""


class SafetensorsFiles:
    """One or more safetensors files."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.sizes: dict[str, int] = {}
        self.coded: dict[str, str] = {}
        self.quantised: Set[str] = frozenset()
        for file in files:
            try:
                with safe_open(str(file), framework="pt") as opened:
                    for name in opened.keys():  # noqa: SIM118 - the handle is not a mapping
                        if not name.endswith(BUFFERS):
                            self._add(file, name, opened.get_slice(name))
            except (SafetensorError, OSError, ValueError) as error:
                raise ModelError(f"{file}: not a whole safetensors file ({error})") from error

    def _add(self, file: Path, name: str, entry: Any) -> None:
        if name in self.shapes:
            raise ModelError(f"{file}: tensor {name} is in another file too")
        if (dtype := entry.get_dtype()) not in BYTES:
            raise ModelError(f"{file}: tensor {name} is stored as {dtype}, which is not supported")
        self.shapes[name] = tuple(entry.get_shape())
        self.sizes[name] = math.prod(self.shapes[name]) * BYTES[dtype]
        if dtype not in FLOATS:
            self.coded[name] = dtype

    def stream(self, wanted: set[str], partly: Set[str] = frozenset()) -> Tensors:
        for file in self.files:
            try:
                with safe_open(str(file), framework="pt") as opened:
                    for name in opened.keys():  # noqa: SIM118
                        if name in wanted:
                            yield name, opened.get_slice(name) if name in partly else opened.get_tensor(name)
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{file}: cannot be read ({error})") from error


DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
}
"""Names of dtypes as in safetensors files."""


class TorchFiles:
    """One or more `.bin` files of tensors. torch's restricted reader refuses anything else in the pickle."""

    def __init__(self, files: list[Path]) -> None:
        self.parts = [_load_bin(file) for file in files]
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.sizes: dict[str, int] = {}
        self.coded: dict[str, str] = {}
        self.quantised: Set[str] = frozenset()
        for file, part in zip(files, self.parts, strict=True):
            for name, tensor in part.items():
                if name.endswith(BUFFERS):
                    continue
                if not isinstance(tensor, torch.Tensor) or tensor.dtype not in DTYPES:
                    raise ModelError(f"{file}: {name} is not a tensor of numbers that are supported")
                if name in self.shapes:
                    raise ModelError(f"{file}: tensor {name} is in another file too")
                self.shapes[name] = tuple(tensor.shape)
                self.sizes[name] = tensor.nbytes
                if DTYPES[tensor.dtype] not in FLOATS:
                    self.coded[name] = DTYPES[tensor.dtype]

    def stream(self, wanted: set[str], partly: Set[str] = frozenset()) -> Tensors:
        for part in self.parts:
            yield from ((name, tensor) for name, tensor in part.items() if name in wanted)


def _load_bin(file: Path) -> dict[str, Any]:
    try:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # files older than the zip format cannot be mapped
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader's errors for malformed files are not documented
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{file}: not a readable weight file ({reason})") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file}: the file does not hold a dictionary of tensors")
    return content


class RenamedCheckpoint:
    """A checkpoint with tensors renamed by `known`. Raises ModelError where two get the same name."""

    def __init__(self, whole: Checkpoint, known: Callable[[str], str]) -> None:
        self._whole = whole
        self._names = {name: known(name) for name in whole.shapes}
        self.shapes = {self._names[name]: shape for name, shape in whole.shapes.items()}
        self.sizes = {self._names[name]: size for name, size in whole.sizes.items()}
        self.quantised: Set[str] = {self._names[name] for name in whole.quantised}
        if len(self.shapes) < len(whole.shapes):
            raise ModelError("the checkpoint holds a tensor under two spellings of its name")

    def stream(self, wanted: set[str], partly: Set[str] = frozenset()) -> Tensors:
        names = {name for name, known in self._names.items() if known in wanted}
        within = {name for name in names if self._names[name] in partly}
        yield from ((self._names[name], tensor) for name, tensor in self._whole.stream(names, within))


class GGUFTensors:
    """A GGUF file. Matrices of `block_types` (ggml's numbers) are yielded as rows of blocks, others dequantised."""

    def __init__(self, file: GGUFFile, block_types: Set[int] = frozenset()) -> None:
        self.file = file
        self.shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
        self.sizes = {name: tensor.size for name, tensor in file.tensors.items()}
        self.in_blocks = {
            name: tensor.type
            for name, tensor in file.tensors.items()
            if tensor.type in block_types and len(tensor.shape) > 1
        }
        self.quantised: Set[str] = self.in_blocks.keys()
        self.coded: dict[str, str] = {}

    def stream(self, wanted: set[str], partly: Set[str] = frozenset()) -> Tensors:
        for name in [name for name in self.file.tensors if name in wanted]:
            if name in self.in_blocks:
                yield name, BlockRows(torch.from_numpy(self.file.rows(name)), self.in_blocks[name])
            else:
                yield name, torch.from_numpy(self.file.read(name))
            self.file.forget(name)
