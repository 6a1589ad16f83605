"""Finds the weight files of a model folder. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from lightllm_mp.errors import ModelError
from lightllm_mp.model_files.model_source import read_json


def weight_files(folder: Path) -> list[Path]:
    """Safetensors files where present, else `.bin` files: those of the index, the single file, or shards without index.

    Raises ModelError when there are none, or when the index names a missing file.
    """
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        if files := _named(folder, stem, suffix):
            return files
    for suffix in (".safetensors", ".bin"):
        if len(files := list(folder.glob(f"*{suffix}"))) == 1:
            return files
    raise ModelError(f"{folder}: no weights found (model.safetensors, pytorch_model.bin, or shards with their index)")


def _named(folder: Path, stem: str, suffix: str) -> list[Path]:
    index = folder / f"{stem}{suffix}.index.json"
    if index.is_file():
        return _indexed(index)
    single = folder / f"{stem}{suffix}"
    return [single] if single.is_file() else sorted(folder.glob(f"{stem}-*-of-*{suffix}"))


def _indexed(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index}: weight_map is missing or empty")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise ModelError(f"{index}: names {name!r}, which is not in the folder")
    return [index.parent / name for name in names]
