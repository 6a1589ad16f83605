"""Chooses the op table, the number of CPU threads and the dtype of a process."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Protocol

import torch

from lightllm_mp.kernels import reference
from lightllm_mp.kernels.cpu import overlay, runtime
from lightllm_mp.kernels.table import OpTable
from lightllm_mp.machine import compute_threads

DTYPES = {
    **dict.fromkeys(("float32", "fp32"), torch.float32),
    **dict.fromkeys(("bfloat16", "bf16"), torch.bfloat16),
    **dict.fromkeys(("float16", "fp16"), torch.float16),
}
"""Dtypes by the names of --data-type."""


class StoredAs(Protocol):
    """The part of a model's spec that decides its dtype."""

    @property
    def file_dtype(self) -> str: ...


def op_table(device: torch.device | str, dtype: torch.dtype) -> OpTable:
    """The fastest ops for tensors of this device and dtype.

    Raises ConfigError where the environment asks for instructions that the processor lacks.
    """
    if torch.device(device).type == "cpu" and dtype in overlay.TYPES and (table := overlay.table()):
        runtime.obey_environment()
        return table
    if torch.device(device).type == "cuda" and find_spec("triton"):
        from lightllm_mp.kernels.triton import overlay as triton_overlay  # needs a GPU machine's triton

        if dtype in triton_overlay.TYPES:
            return triton_overlay.TABLE
    return reference.TABLE


def set_threads(count: int = 0) -> int:
    """Gives CPU ops `count` threads (0: see `compute_threads`) and returns the number.

    Where the C extension does the work, torch's own pool is set to one thread: its OpenMP workers spin for
    milliseconds after each use and would take the cores from the extension's threads.
    """
    count = compute_threads(count)
    if overlay.table() is None:
        torch.set_num_threads(count)
    else:
        overlay.set_threads(count)
        torch.set_num_threads(1)
    return count


def default_dtype(spec: StoredAs, device: torch.device | str = "cpu") -> torch.dtype:
    """The dtype of `--data-type auto`: the file's own 16 or 32 bit type, bfloat16 for quantised files.

    On a CPU with the C extension 16-bit types run as bfloat16 (half the memory traffic of float32, and AMX or
    AVX512-BF16 where the processor has them; float16 has no fast path), without it as float32.
    """
    own = {"float32": torch.float32, "float16": torch.float16}.get(spec.file_dtype, torch.bfloat16)
    if torch.device(device).type != "cpu" or own == torch.float32:
        return own
    return torch.float32 if overlay.table() is None else torch.bfloat16
