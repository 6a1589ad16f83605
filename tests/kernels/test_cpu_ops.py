"""The C extension against the reference ops on random data, and its promise that a row is bitwise its own."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from random_batch import RandomStep

from lightllm_mp.kernels import reference
from lightllm_mp.kernels.cpu import overlay
from lightllm_mp.kernels.table import HeadLayout, LayerKV, Norm, Rotation

REFERENCE = reference.TABLE
CPU = overlay.table()
pytestmark = pytest.mark.skipif(CPU is None, reason="the C extension is not built")

DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
"""Largest difference allowed between results of size about 1: bfloat16 results are rounded once on both sides."""


@pytest.fixture(autouse=True, params=[1, 2], ids=["one thread", "two threads"])
def threads(request):
    overlay.set_threads(request.param)
    yield
    overlay.set_threads(1)


def close(got: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    scale = expected.float().abs().max().clamp(min=1.0)
    assert got.dtype == expected.dtype
    assert ((got.float() - expected.float()).abs().max() / scale).item() < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), [(96, 64), (100, 112), (33, 145), (1, 16), (576, 576)])
@pytest.mark.parametrize("biased", [False, True])
def test_linear(dtype, n, k, biased):
    weight, x = (torch.randn(n, k) * k**-0.5).to(dtype), torch.randn(41, k).to(dtype)
    bias = torch.randn(n).to(dtype) if biased else None
    packed, plain = CPU.prepare_linear(weight, bias), REFERENCE.prepare_linear(weight, bias)
    close(CPU.linear(x, packed), REFERENCE.linear(x, plain), dtype)
    close(CPU.linear_float(x, packed), REFERENCE.linear_float(x, plain), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), [(96, 64), (100, 112), (192, 576), (33, 145)])
def test_linear_rows_do_not_depend_on_each_other(dtype, n, k):
    packed = CPU.prepare_linear(torch.randn(n, k).to(dtype), None)
    x = torch.randn(512, k).to(dtype)
    whole, wide = CPU.linear(x, packed), CPU.linear_float(x, packed)
    for m in [*range(1, 36), 63, 64, 65, 127, 128, 129, 200, 256, 257, 400]:
        part = x[5 : 5 + m].contiguous()
        assert torch.equal(CPU.linear(part, packed), whole[5 : 5 + m])
        assert torch.equal(CPU.linear_float(part, packed), wide[5 : 5 + m])


@pytest.mark.parametrize("level", ["0", "1"])
def test_linear_on_lesser_processors(level):
    """The kernels for processors without AMX, or without bfloat16 at all, in a process that is told to use them."""
    code = """
import torch
from lightllm_mp.kernels.cpu import overlay
cpu = overlay.table()
for n, k in ((96, 64), (100, 112), (33, 145)):
    weight, x = (torch.randn(n, k) * k**-0.5).bfloat16(), torch.randn(70, k).bfloat16()
    packed = cpu.prepare_linear(weight, None)
    whole = cpu.linear_float(x, packed)
    assert (whole - x.float() @ weight.float().T).abs().max() < 2e-5
    for m in range(1, 40):
        assert torch.equal(cpu.linear_float(x[3:3 + m].contiguous(), packed), whole[3:3 + m])
"""
    environment = {"LIGHTLLM_MP_CPU_LEVEL": level, "PYTHONPATH": ":".join(p for p in sys.path if p)}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=environment)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [64, 112, 100, 7])
def test_norms(dtype, n):
    x, residual = torch.randn(300, n).to(dtype), torch.randn(300, n).to(dtype)
    by = Norm(torch.randn(n).to(dtype), 1e-5)
    close(CPU.norm(x, by), REFERENCE.norm(x, by), dtype)
    mine, theirs = residual.clone(), residual.clone()
    close(CPU.add_norm(x, mine, by), REFERENCE.add_norm(x, theirs, by), dtype)
    assert torch.equal(mine, theirs)
    alone = torch.cat([CPU.norm(row.unsqueeze(0).contiguous(), by) for row in x])
    assert torch.equal(alone, CPU.norm(x, by))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [64, 100])
def test_gated(dtype, n):
    gate_up = (torch.randn(300, 2 * n) * 6).to(dtype)
    gate_up[0, 0], gate_up[1, 1] = -200.0, 200.0
    close(CPU.gated(gate_up, "silu"), REFERENCE.gated(gate_up, "silu"), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("head_dim", "rotated"), [(32, 32), (64, 64), (64, 16), (24, 20)])
def test_rotary_kv_write(dtype, head_dim, rotated):
    layout = HeadLayout(heads=6, kv_heads=2, head_dim=head_dim, scale=1.0)
    step = RandomStep([(300, 350), (1, 7)], layout, dtype)
    angles = torch.outer(torch.arange(400).float(), torch.rand(rotated // 2))
    keys, values = step.keys.clone(), step.values.clone()
    rotation = Rotation(angles.cos(), angles.sin())
    got = CPU.rotary_kv_write(step.qkv.clone(), rotation, LayerKV(keys, values), step.batch, layout, None)
    close(got, REFERENCE.rotary_kv_write(step.qkv.clone(), rotation, step.kv, step.batch, layout, None), dtype)
    close(keys, step.keys, dtype)
    assert torch.equal(values, step.values)


LAYOUTS = [
    HeadLayout(heads=4, kv_heads=2, head_dim=16, scale=0.25),
    HeadLayout(heads=9, kv_heads=3, head_dim=64, scale=0.125),
    HeadLayout(heads=7, kv_heads=1, head_dim=16, scale=0.25, window=37),
    HeadLayout(heads=2, kv_heads=2, head_dim=128, scale=0.1, window=1),
    HeadLayout(heads=3, kv_heads=3, head_dim=80, scale=0.1, window=64),
    HeadLayout(heads=2, kv_heads=1, head_dim=24, scale=0.2),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_attention(dtype, layout):
    step = RandomStep([(1, 1), (130, 130), (1, 200), (70, 333), (5, 64), (3, 129)], layout, dtype)
    arguments = (step.q, step.kv, step.batch, layout)
    close(CPU.attention(*arguments), REFERENCE.attention(*arguments), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS[:5], ids=str)
def test_attention_does_not_depend_on_the_cut(dtype, layout):
    sizes = [(130, 130), (70, 333), (1, 200)]
    step = RandomStep(sizes, layout, dtype)
    whole = CPU.attention(step.q, step.kv, step.batch, layout)
    for sequence, (new, _) in enumerate(sizes):
        first = int(step.batch.seq_start[sequence])
        for chunk in (1, 7, 64):
            for start in range(0, new, chunk):
                end = min(start + chunk, new)
                q, batch = step.part(sequence, start, end)
                got = CPU.attention(q, step.kv, batch, layout)
                assert torch.equal(got, whole[first + start : first + end])
