"""Loads the vision half of a model into a `VisionEncoder`; reads no tensor of the language model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lightllm_mp.errors import ModelError
from lightllm_mp.models.checkpoint.dummy_weights import RandomWeights
from lightllm_mp.models.checkpoint.files import FileTensors, GGUFTensors, check_plain, open_folder
from lightllm_mp.models.checkpoint.gguf import read_gguf
from lightllm_mp.models.checkpoint.weight_rules import Param, check_names
from lightllm_mp.vision.spec import VisionModel
from lightllm_mp.vision.tower.encoder import VisionEncoder
from lightllm_mp.vision.tower_rules import TowerSection, sections


def load_encoder(
    model: VisionModel,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype,
    load_format: Literal["auto", "dummy"] = "auto",
) -> VisionEncoder:
    """The encoder with the weights of `load_weights`."""
    return VisionEncoder(model.spec, load_weights(model, device=device, dtype=dtype, load_format=load_format))


def load_weights(
    model: VisionModel,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype,
    load_format: Literal["auto", "dummy"] = "auto",
) -> dict[str, Tensor]:
    """Weights by target (see tower_rules.py), of `dtype` on `device`; `dummy`: random ones, without reading weight
    files.

    Raises ModelError, naming the tensor or file, for anything missing, surplus, mis-shaped or corrupt.
    """
    device = torch.device(device)
    weights: dict[str, Tensor] = {}
    opened: dict[Path, FileTensors] = {}
    for section in sections(model):
        if load_format == "dummy":
            made = RandomWeights(section.params, device=device, dtype=dtype)
            weights |= _assembled(section.params, made.stream(set(made.shapes)), device, dtype)
            continue
        if section.folder not in opened:
            opened[section.folder] = _opened(section.folder)
        weights |= _read(section, opened[section.folder], device, dtype)
    if model.spec.temporal > 1 and weights["patch"].dim() == 4:  # kernels of the frames, stacked
        weights["patch"] = weights["patch"].unflatten(0, (model.spec.temporal, -1)).movedim(0, 2).contiguous()
    return weights


def _opened(path: Path) -> FileTensors:
    return GGUFTensors(read_gguf(path)) if path.is_file() else open_folder(path)


def _read(
    section: TowerSection, checkpoint: FileTensors, device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    prefix = _prefix(section, checkpoint)
    found = {name.removeprefix(prefix): shape for name, shape in checkpoint.shapes.items() if name.startswith(prefix)}
    where = f"{section.folder} ({prefix}*)"
    check_names(section.params, found, section.ignore, where)
    check_plain(checkpoint, {prefix + piece.name for param in section.params for piece in param.pieces}, where)
    return _assembled(section.params, _streamed(checkpoint, prefix, section.params), device, dtype)


def _prefix(section: TowerSection, checkpoint: FileTensors) -> str:
    first = section.params[0].pieces[0].name
    for prefix in section.prefixes:
        if prefix + first in checkpoint.shapes:
            return prefix
    raise ModelError(f"{section.folder}: missing tensor {section.prefixes[0]}{first}")


def _streamed(checkpoint: FileTensors, prefix: str, params: Iterable[Param]) -> Iterator[tuple[str, Tensor]]:
    wanted = {prefix + piece.name for param in params for piece in param.pieces}
    for name, tensor in checkpoint.stream(wanted):
        yield name.removeprefix(prefix), tensor


def _assembled(
    params: Iterable[Param], tensors: Iterable[tuple[str, Tensor]], device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Parameters by target; pieces are stacked along the first dimension."""
    weights = {param.target: torch.empty(param.shape, dtype=dtype, device=device) for param in params}
    places = {}
    for param in params:
        row = 0
        for piece in param.pieces:
            places[piece.name] = (param.target, row, piece)
            row += piece.shape[0]
    for name, tensor in tensors:
        target, row, piece = places[name]
        weights[target][row : row + piece.shape[0]].copy_(piece.transform(tensor) if piece.transform else tensor)
    return weights
