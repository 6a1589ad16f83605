"""Loads a checkpoint into a `Decoder`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from lightllm_mp.kernels.select import op_table
from lightllm_mp.kernels.table import OpTable
from lightllm_mp.models.assembly import Weights
from lightllm_mp.models.checkpoint import Checkpoint, GGUFTensors, open_folder
from lightllm_mp.models.config import gguf_model, hf_model, read_model_config
from lightllm_mp.models.decoder import Decoder
from lightllm_mp.models.spec import ModelSpec
from lightllm_mp.models.weights import Param, check_names

Progress = Callable[[int, int], None]
"""Called with (bytes read, bytes in all) after each tensor."""


def load_model(
    path: Path | str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype,
    progress: Progress | None = None,
    ops: OpTable | None = None,
) -> Decoder:
    """Reads a Hugging Face folder or a `.gguf` file into a decoder with weights of `dtype` on `device`.

    `ops` replaces the op table that `kernels.select` would choose. Raises ModelError, naming the tensor or file, for
    anything that is missing, surplus, mis-shaped or corrupt.
    """
    spec, checkpoint, params, ignore = _opened(Path(path))
    check_names(params, checkpoint.shapes, ignore, str(path))
    ops = ops or op_table(device, dtype)
    weights = Weights(params, ops, device=device, dtype=dtype)
    wanted = {piece.name for param in params for piece in param.pieces}
    total, done = sum(checkpoint.sizes[name] for name in wanted), 0
    for name, tensor in checkpoint.stream(wanted):
        weights.add(name, tensor)
        done += checkpoint.sizes[name]
        if progress is not None:
            progress(done, total)
    return Decoder(spec, ops, weights, device=device)


def _opened(path: Path) -> tuple[ModelSpec, Checkpoint, list[Param], tuple[str, ...]]:
    if path.is_file():
        family, spec, file = gguf_model(path)
        assert family.gguf_weights is not None
        return spec, GGUFTensors(file), family.gguf_weights(spec), family.ignore
    if not path.is_dir():
        read_model_config(path)  # says what is wrong with the path
    family, spec = hf_model(path)
    checkpoint = open_folder(path)
    return spec, checkpoint, family.hf_weights(spec), family.ignore
