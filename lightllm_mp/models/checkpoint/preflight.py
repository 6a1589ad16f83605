"""Checks before start, from file headers alone, that a checkpoint fits its configuration. Imports no torch."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from lightllm_mp.errors import ModelError
from lightllm_mp.model_files.model_source import ModelSource
from lightllm_mp.models.checkpoint.mxfp4 import is_mxfp4, joined_blocks
from lightllm_mp.models.checkpoint.quant_config import quant_config_of
from lightllm_mp.models.checkpoint.quant_layout import joined_shapes, stored_weights, surplus_biases
from lightllm_mp.models.checkpoint.weight_files import weight_files
from lightllm_mp.models.checkpoint.weight_rules import check_names
from lightllm_mp.models.model_config import gguf_model, hf_model, read_model_config
from lightllm_mp.models.spec import ModelSpec

OLD_BIN = b"\x80\x02"
MAX_HEADER = 100_000_000
"""Bytes of the largest header that the format allows."""


def check_weights(model: ModelSource | Path) -> ModelSpec:
    """The model's spec. Raises ModelError naming the tensor or file that is missing, surplus, mis-shaped or truncated.

    `.bin` files have no header and are only checked for completeness; they are compared with the configuration when
    they are loaded.
    """
    source = ModelSource.of(model)
    path = source.language
    if path.is_file():
        family, spec, keys = gguf_model(path)
        if path != source.path:
            _check_width(source, spec.hidden)
        assert family.gguf_weights is not None
        found = {name: tensor.shape for name, tensor in keys.file.tensors.items()}
        check_names(family.gguf_weights(spec, keys), found, family.gguf_surplus(spec), str(path))
        return spec
    if not path.is_dir():
        return read_model_config(source)  # raises: the path does not exist
    family, spec = hf_model(source)
    files = weight_files(path)
    if files[0].suffix != ".safetensors":
        for archive in files:
            _check_archive(archive)
        return spec
    found = shapes(files)
    params = family.folder_weights(spec, found)
    if quantised := quant_config_of(source.config, str(path)):
        names = {piece.name for param in params for piece in param.pieces}
        weights = stored_weights(quantised, found, str(path))
        surplus = surplus_biases(weights, found, {name for name in found if family.known(name) in names})
        found = joined_shapes({name: shape for name, shape in found.items() if name not in surplus}, weights)
    elif is_mxfp4(source.config):
        found = joined_blocks(found, str(path))
    found = {family.known(name): shape for name, shape in found.items()}
    check_names(params, found, family.folder_ignore(spec), str(path))
    return spec


def _check_width(source: ModelSource, hidden: int) -> None:
    """Checks the width of a vision tower that lies apart from its language model."""
    given = (source.config.get("text_config") or {}).get("hidden_size")
    if given != hidden:
        raise ModelError(f"{source.path}: hidden_size of text_config is {given}, but the language model has {hidden}")


def shapes(files: list[Path]) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors. Raises ModelError for a truncated file."""
    found: dict[str, tuple[int, ...]] = {}
    for file in files:
        found.update(_shapes(file))
    return found


def _check_archive(file: Path) -> None:
    """A `.bin` file is a zip archive with its directory at the end, or in old releases a pickle."""
    try:
        with file.open("rb") as opened:
            old = opened.read(2) == OLD_BIN
        whole = old or zipfile.is_zipfile(file)
    except OSError as error:
        raise ModelError(f"{file}: {error.strerror or error}") from error
    if not whole:
        raise ModelError(f"{file}: not a whole .bin file")


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    size = file.stat().st_size
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 0 < length <= min(MAX_HEADER, size - 8):
                raise ValueError("its header does not fit into it")
            header = json.loads(opened.read(length))
        header.pop("__metadata__", None)
        found = {name: tuple(map(int, entry["shape"])) for name, entry in header.items()}
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelError(f"{file}: not a whole safetensors file ({error})") from error
    if 8 + length + end != size:
        raise ModelError(f"{file}: not a whole safetensors file ({size} of {8 + length + end} bytes)")
    return found
