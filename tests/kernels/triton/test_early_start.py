"""Kernels that start before the previous one has ended read nothing too early."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lightllm_mp.kernels.batch import AttentionSchedule
from lightllm_mp.kernels.table import HeadLayout, Norm, Rotation
from lightllm_mp.kernels.triton import launch
from lightllm_mp.kernels.triton.overlay import TABLE
from tests.kernels.random_batch import RandomStep
from tests.kernels.triton.triton_case import CUDA, DEVICE, kv_on_device, on_device

WIDTH, INNER, LAYERS = 1024, 2816, 12
LAYOUT = HeadLayout(heads=16, kv_heads=4, head_dim=64, scale=0.125)


class Chain:
    """The ops of a decoder's layers in a row, over random weights."""

    def __init__(self, sequences: int) -> None:
        step = RandomStep([(1, 40 + 3 * i) for i in range(sequences)], LAYOUT, torch.bfloat16)
        self.batch = on_device(step.batch)
        self.kv = kv_on_device(step.kv)
        self.keys = self.kv.keys.clone(), self.kv.values.clone()
        self.by = Norm(torch.rand(WIDTH, device=DEVICE).bfloat16() + 0.5, 1e-6)
        angles = torch.outer(torch.arange(512.0), 0.9 ** torch.arange(32.0)).to(DEVICE)
        self.rotation = Rotation(angles.cos(), angles.sin())
        self.layers = [[self._weight(*size) for size in self._sizes()] for _ in range(LAYERS)]

    @staticmethod
    def _sizes() -> tuple[tuple[int, int], ...]:
        heads = (LAYOUT.heads + 2 * LAYOUT.kv_heads) * LAYOUT.head_dim
        return (heads, WIDTH), (WIDTH, LAYOUT.heads * LAYOUT.head_dim), (2 * INNER, WIDTH), (WIDTH, INNER)

    @staticmethod
    def _weight(outputs: int, inputs: int):
        weight = torch.randn(outputs, inputs, device=DEVICE) * inputs**-0.5
        return TABLE.prepare_linear(weight.bfloat16(), None)

    def run(self, x: torch.Tensor) -> torch.Tensor:
        self.kv.keys.copy_(self.keys[0])
        self.kv.values.copy_(self.keys[1])
        batch = replace(self.batch, schedule=AttentionSchedule())
        residual, branch = x.clone(), torch.zeros_like(x)
        for qkv, out, gate_up, down in self.layers:
            line = TABLE.linear(TABLE.add_norm(branch, residual, self.by), qkv)
            q = TABLE.rotary_kv_write(line, self.rotation, self.kv, batch, LAYOUT, None)
            branch = TABLE.linear(TABLE.attention(q, self.kv, batch, LAYOUT), out)
            inner = TABLE.linear(TABLE.add_norm(branch, residual, self.by), gate_up)
            branch = TABLE.linear(TABLE.gated(inner, "silu"), down)
        return TABLE.add_norm(branch, residual, self.by)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a GPU")
@pytest.mark.parametrize("sequences", [1, 5, 20])
def test_a_graph_of_early_kernels_computes_the_same(monkeypatch: pytest.MonkeyPatch, sequences: int) -> None:
    monkeypatch.setattr(launch, "EARLY_START", True)
    chain = Chain(sequences)
    x = torch.randn(sequences, WIDTH, device="cuda").bfloat16()
    chain.run(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = chain.run(x)
    monkeypatch.setattr(launch, "EARLY_START", False)
    for _ in range(50):
        x.normal_()
        graph.replay()
        assert torch.equal(got, chain.run(x))
