"""Shared by the tests of Triton ops: kernels run on a GPU if there is one, else in Triton's interpreter.

Importing this module skips the importing test module if triton is missing or cannot interpret.
"""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from lightllm_mp.kernels.batch import Batch
from lightllm_mp.kernels.table import LayerKV

CUDA = torch.cuda.is_available()
triton = pytest.importorskip("triton", reason="triton is not installed")


@triton.jit
def _count(out, n):
    for _ in range(n):
        triton.language.atomic_add(out, 1)


if not CUDA:
    try:
        _count[(1,)](torch.zeros(1, dtype=torch.int32), 3)
    except triton.runtime.errors.InterpreterError as error:
        pytest.skip(f"this triton cannot interpret a loop with this numpy: {error}", allow_module_level=True)

DEVICE = "cuda" if CUDA else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Largest allowed norm(difference) / norm(expected): it covers the rounding of results, not of inputs."""

STEPS = {
    "decode": [(1, 1), (1, 64), (1, 200), (1, 65), (1, 333)],
    "one": [(1, 300)],
    "prefill": [(130, 130), (70, 333), (5, 64), (3, 129)],
    "chunk": [(140, 390)],
    "mixed": [(1, 1), (1, 250), (130, 131), (1, 129), (2, 300)],
}
"""Kinds of steps as (new tokens, context) of each sequence."""
if not CUDA:
    STEPS = {
        "decode": [(1, 1), (1, 64), (1, 65), (1, 100)],
        "one": [(1, 90)],
        "prefill": [(34, 34), (20, 70), (3, 33)],
        "chunk": [(40, 80)],
        "mixed": [(1, 1), (1, 100), (34, 35), (1, 65), (2, 70)],
    }


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    got, dtype = got.cpu(), got.dtype
    assert got.shape == expected.shape
    assert torch.isfinite(got).all()
    error = (got.double() - expected.double()).norm() / expected.double().norm()
    assert error.item() < TOLERANCE[dtype]


def on_device(batch: Batch) -> Batch:
    moved = {f.name: getattr(batch, f.name) for f in fields(Batch) if f.name != "schedule"}
    return Batch(**{name: x.to(DEVICE, copy=True) if isinstance(x, torch.Tensor) else x for name, x in moved.items()})


def kv_on_device(kv: LayerKV, *, together: bool = True) -> LayerKV:
    """A copy with its own memory; values that are a view of the keys stay one. `together`: each key's scale is followed
    by its value's, as in a KVPool of a GPU."""
    keys, values = kv.keys.to(DEVICE, copy=True), kv.values.to(DEVICE, copy=True)
    if kv.values.data_ptr() == kv.keys.data_ptr():
        values = keys[..., : kv.values.shape[-1]]
    if kv.key_scales is None or kv.value_scales is None:
        return LayerKV(keys, values)
    scales = torch.stack((kv.key_scales, kv.value_scales), -1 if together else 0).to(DEVICE)
    return LayerKV(keys, values, *scales.unbind(-1 if together else 0))


def random(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(shape) * scale).to(dtype)
