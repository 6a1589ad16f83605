"""Where weights come from: safetensors files, torch `.bin` files, or one GGUF file, behind one interface.

Opening reads headers only, so names and shapes can be checked before any data is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from lightllm_mp.errors import ModelError
from lightllm_mp.models.config import read_json
from lightllm_mp.models.gguf import GGUFFile

Tensors = Iterator[tuple[str, torch.Tensor]]


class Checkpoint(Protocol):
    """Tensors by name. `stream` yields each wanted tensor once; `sizes` are bytes as stored, for progress."""

    shapes: dict[str, tuple[int, ...]]
    sizes: dict[str, int]

    def stream(self, wanted: set[str]) -> Tensors: ...


def open_folder(folder: Path) -> Checkpoint:
    """The checkpoint of a Hugging Face folder: safetensors where present, else `.bin` (read with weights_only)."""
    if files := _weight_files(folder, "model", ".safetensors"):
        return SafetensorsFiles(files)
    if files := _weight_files(folder, "pytorch_model", ".bin"):
        return TorchFiles(files)
    raise ModelError(f"{folder}: no weights found (model.safetensors, pytorch_model.bin, or shards with their index)")


def _weight_files(folder: Path, stem: str, suffix: str) -> list[Path]:
    """Files named by the index, or the single file, or shards without an index; [] when there is none."""
    index = folder / f"{stem}{suffix}.index.json"
    if index.is_file():
        return _indexed_files(index)
    single = folder / f"{stem}{suffix}"
    if single.is_file():
        return [single]
    shards = sorted(folder.glob(f"{stem}-*-of-*{suffix}"))
    if not shards and len(others := list(folder.glob(f"*{suffix}"))) == 1:
        return others
    return shards


def _indexed_files(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index}: weight_map is missing or empty")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise ModelError(f"{index}: names {name!r}, which is not in the folder")
    return [index.parent / name for name in names]


class SafetensorsFiles:
    """One or more safetensors files."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.sizes: dict[str, int] = {}
        for file in files:
            try:
                with safe_open(str(file), framework="pt") as opened:
                    for name in opened.keys():  # noqa: SIM118 - the handle is no mapping
                        self._add(file, name, opened.get_slice(name))
            except (SafetensorError, OSError, ValueError) as error:
                raise ModelError(f"{file}: not a whole safetensors file ({error})") from error

    def _add(self, file: Path, name: str, entry: Any) -> None:
        if name in self.shapes:
            raise ModelError(f"{file}: tensor {name} is in another file too")
        if entry.get_dtype() not in ("F64", "F32", "F16", "BF16"):
            raise ModelError(f"{file}: tensor {name} is stored as {entry.get_dtype()}, which is not supported")
        self.shapes[name] = tuple(entry.get_shape())
        count = 1
        for extent in self.shapes[name]:
            count *= extent
        self.sizes[name] = count * {"F64": 8, "F32": 4}.get(entry.get_dtype(), 2)

    def stream(self, wanted: set[str]) -> Tensors:
        for file in self.files:
            try:
                with safe_open(str(file), framework="pt") as opened:
                    for name in opened.keys():  # noqa: SIM118
                        if name in wanted:
                            yield name, opened.get_tensor(name)
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{file}: cannot be read ({error})") from error


class TorchFiles:
    """One or more `.bin` files of tensors. Anything else in the pickle is refused by torch's restricted reader."""

    def __init__(self, files: list[Path]) -> None:
        self.parts = [_load_bin(file) for file in files]
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.sizes: dict[str, int] = {}
        for file, part in zip(files, self.parts, strict=True):
            for name, tensor in part.items():
                if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
                    raise ModelError(f"{file}: {name} is no tensor of floating point numbers")
                if name in self.shapes:
                    raise ModelError(f"{file}: tensor {name} is in another file too")
                self.shapes[name] = tuple(tensor.shape)
                self.sizes[name] = tensor.nbytes

    def stream(self, wanted: set[str]) -> Tensors:
        for part in self.parts:
            yield from ((name, tensor) for name, tensor in part.items() if name in wanted)


def _load_bin(file: Path) -> dict[str, Any]:
    try:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # files older than the zip format cannot be mapped
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # what a malformed file makes the reader raise is no documented set
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{file}: not a readable weight file ({reason})") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file}: a dictionary of tensors is expected")
    return content


class GGUFTensors:
    """A GGUF file, dequantised tensor by tensor."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self.shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
        self.sizes = {name: tensor.size for name, tensor in file.tensors.items()}

    def stream(self, wanted: set[str]) -> Tensors:
        for name in self.file.tensors:
            if name in wanted:
                yield name, torch.from_numpy(self.file.read(name))
