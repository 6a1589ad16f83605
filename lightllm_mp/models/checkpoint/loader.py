"""Loads a model folder or GGUF file into a `Decoder`."""

from __future__ import annotations

import math
from collections.abc import Callable, Set
from pathlib import Path
from typing import Literal

import torch

from lightllm_mp.errors import ModelError
from lightllm_mp.kernels.select import op_table
from lightllm_mp.kernels.table import OpTable
from lightllm_mp.machine import format_bytes, free_memory
from lightllm_mp.model_files.model_source import ModelSource
from lightllm_mp.models.checkpoint.assembly import ModelWeights, types_in_blocks
from lightllm_mp.models.checkpoint.dummy_weights import RandomWeights
from lightllm_mp.models.checkpoint.files import Checkpoint, GGUFTensors, RenamedCheckpoint, check_plain, open_folder
from lightllm_mp.models.checkpoint.mxfp4 import Mxfp4Checkpoint, is_mxfp4
from lightllm_mp.models.checkpoint.quant_checkpoint import QuantisedCheckpoint
from lightllm_mp.models.checkpoint.quant_config import quant_config_of
from lightllm_mp.models.checkpoint.weight_rules import Param, check_names
from lightllm_mp.models.decoder.decoder import Decoder
from lightllm_mp.models.model_config import gguf_model, hf_model, read_model_config
from lightllm_mp.models.parallel.group import RankGroup, SingleRank
from lightllm_mp.models.parallel.sharding import cut_of, local_model
from lightllm_mp.models.spec import ModelSpec

Progress = Callable[[int, int], None]
"""Called with (bytes read, total bytes) after each tensor."""


def load_model(
    model: ModelSource | Path | str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype,
    progress: Progress | None = None,
    ops: OpTable | None = None,
    quantization: Literal["none", "int8", "fp8"] = "none",
    group: RankGroup | None = None,
    ep: int = 1,
    dummy: bool = False,
) -> Decoder:
    """Reads a Hugging Face folder or a `.gguf` file into a decoder with weights of `dtype` on `device`.

    `ops` replaces the op table that `kernels.select` would choose. `quantization` applies to the projections inside the
    layers, one by one as they are read; quantised checkpoints stay in 4 and 8 bits, GGUF files in the blocks that the
    op table keeps. A rank of a `group` reads and keeps its own part; `ep` parts of the group hold whole experts (see
    `sharding`). `dummy`: random weights; only config.json of the folder is read. Raises ModelError, naming the tensor
    or file, for anything missing, surplus, mis-shaped or corrupt.
    """
    source = ModelSource.of(model)
    path = source.language
    ops = ops or op_table(device, dtype)
    kept = types_in_blocks(ops, dtype) | ops.expert_block_types
    spec, checkpoint, params, ignore = _random(source, device, dtype) if dummy else _opened(source, device, kept)
    if quantization != "none" and checkpoint.quantised:
        raise ModelError(f"{path}: --quantization {quantization}: the checkpoint is quantised already")
    check_names(params, checkpoint.shapes, ignore, str(path))
    group = group or SingleRank()
    found = {param.target: cut_of(param, spec, group.rank, group.size, ep) for param in params}
    cuts = {target: cut for target, cut in found.items() if cut is not None}
    params = [param for param in params if param.target in cuts]
    weights = ModelWeights(params, ops, device=device, dtype=dtype, quantization=quantization, cuts=cuts)
    if torch.device(device).type == "cpu" or (quantization == "none" and not checkpoint.quantised):
        # Quantised on a GPU, weights take less than this, and how much less is known only at the end.
        check_room(weights.nbytes - _saved(checkpoint, weights) // group.size, device, group.size)
    wanted = weights.names
    total, done = sum(checkpoint.sizes[name] for name in wanted), 0
    for name, tensor in checkpoint.stream(wanted, {name for name in wanted if weights.partly(name)}):
        weights.add(name, tensor)
        done += checkpoint.sizes[name]
        if progress is not None:
            progress(done, total)
    local, shard = local_model(spec, group.rank, group.size, ep)
    return Decoder(local, ops, weights, device=device, group=group, shard=shard)


def _saved(checkpoint: Checkpoint, weights: ModelWeights) -> int:
    """Bytes that quantised weights save against the model's dtype."""
    if isinstance(checkpoint, GGUFTensors | Mxfp4Checkpoint | RandomWeights):
        kept = [name for name, kind in checkpoint.in_blocks.items() if weights.keeps_blocks(name, kind)]
    elif weights.dtype == torch.float32:
        return 0  # they are expanded
    else:
        kept = [name for name in checkpoint.quantised if weights.keeps_quantised(name)]
    return sum(math.prod(checkpoint.shapes[name]) * weights.dtype.itemsize - checkpoint.sizes[name] for name in kept)


def _opened(
    source: ModelSource, device: torch.device | str, block_types: Set[int]
) -> tuple[ModelSpec, Checkpoint, list[Param], tuple[str, ...]]:
    path = source.language
    if path.is_file():
        family, spec, keys = gguf_model(path)
        assert family.gguf_weights is not None
        return spec, GGUFTensors(keys.file, block_types), family.gguf_weights(spec, keys), family.gguf_surplus(spec)
    if not path.is_dir():
        read_model_config(source)  # raises: the path does not exist
    family, spec = hf_model(source)
    files = open_folder(path)
    params = family.folder_weights(spec, files.shapes)
    checkpoint: Checkpoint = files
    names = _names(params)
    if quantised := quant_config_of(source.config, str(path)):
        wanted = {name for name in files.shapes if family.known(name) in names}
        checkpoint = QuantisedCheckpoint(files, quantised, wanted, device=device, where=str(path))
    elif is_mxfp4(source.config):
        checkpoint = Mxfp4Checkpoint(files, str(path))
    else:
        check_plain(files, names, str(path))
    if family.spellings:
        checkpoint = RenamedCheckpoint(checkpoint, family.known)
    return spec, checkpoint, params, family.folder_ignore(spec)


def _random(
    source: ModelSource, device: torch.device | str, dtype: torch.dtype
) -> tuple[ModelSpec, Checkpoint, list[Param], tuple[str, ...]]:
    path = source.language
    if path.is_file():
        raise ModelError(f"{path}: random weights (--load-format dummy) need a folder with a config.json")
    family, spec = hf_model(source)
    params, norm = family.folder_weights(spec), 0.0 if spec.norm_offset else 1.0
    config, blocks = quant_config_of(source.config, str(path)), is_mxfp4(source.config)
    weights = RandomWeights(params, norm=norm, device=device, dtype=dtype, config=config, blocks=blocks)
    return spec, weights, params, ()


def _names(params: list[Param]) -> set[str]:
    return {piece.name for param in params for piece in param.pieces}


def check_room(needed: int, device: torch.device | str, ranks: int = 1) -> None:
    """ModelError when a rank's weights of `needed` bytes do not fit into free memory.

    `ranks` share the memory of a CPU, where the kernel would kill the process instead of refusing memory. On CUDA the
    free memory of `device` counts.
    """
    device = torch.device(device)
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        needed, free = needed * ranks, free_memory()
    if needed > free:
        raise ModelError(
            f"no memory for the model: its weights take {format_bytes(needed)}, and {format_bytes(free)} is free; "
            "free memory, or choose a smaller --data-type or model"
        )
