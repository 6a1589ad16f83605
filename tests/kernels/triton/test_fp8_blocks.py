"""Products of 8-bit floats with scales by blocks, against a product of the same rounded numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from lightllm_mp.kernels import reference
from lightllm_mp.kernels.quantised import ScaledWeight
from lightllm_mp.kernels.reference.quantised import expanded, quantise_activations
from lightllm_mp.kernels.table import ExpertBiases, Routing
from lightllm_mp.kernels.triton.linear import fp8, quantised, tuned_linear
from lightllm_mp.kernels.triton.linear.few_rows import streamed
from lightllm_mp.kernels.triton.linear.tuned_linear import Fp8Blocks, LinearBlocks
from lightllm_mp.kernels.triton.moe import moe, routing, tuned_moe
from lightllm_mp.kernels.triton.moe.tuned_moe import ExpertBlocks, ProductBlocks
from tests.kernels.triton.triton_case import CUDA, DEVICE, close

GROUP = 128
DTYPE = torch.bfloat16 if CUDA else torch.float16
HOPPER = CUDA and torch.cuda.get_device_capability() == (9, 0)
if CUDA and not HOPPER:
    pytest.skip("needs compute capability 9.0", allow_module_level=True)


@pytest.fixture(autouse=True)
def rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter loses a carry when it rounds to 8-bit floats."""
    if CUDA:
        return
    from triton.runtime import interpreter

    own = interpreter._convert_float

    def convert(values: np.ndarray, source: Any, target: Any, mode: Any) -> np.ndarray:
        if str(source) == "fp32" and str(target) == "fp8e4nv":
            wide = torch.from_numpy(np.ascontiguousarray(values).view(np.float32))
            return wide.to(torch.float8_e4m3fn).view(torch.uint8).numpy()
        return own(values, source, target, mode)

    monkeypatch.setattr(interpreter, "_convert_float", convert)


def block_weight(*shape: int, shared: bool = True) -> ScaledWeight:
    """fp8 [..., n, k] with a scale for every block of 128 x 128, or for each output and group."""
    *_, n, k = shape
    each = GROUP if shared else 1
    scales = torch.rand(*shape[:-2], -(-n // each), k // GROUP, device=DEVICE).add(0.2) * k**-0.5 / 40
    scales = scales.repeat_interleave(each, -2)[..., :n, :]
    values = torch.randn(shape, device=DEVICE).mul_(60).clamp_(-448, 448).to(torch.float8_e4m3fn)
    return ScaledWeight(values, scales, GROUP)


def activations(rows: int, k: int) -> torch.Tensor:
    """With rows of very different sizes, one of them zeros."""
    x = torch.randn(rows, k) * torch.logspace(-2, 1, rows)[:, None]
    x[rows // 2] = 0.0
    return x.to(DTYPE)


def product(x: torch.Tensor, weight: ScaledWeight, bias: torch.Tensor) -> torch.Tensor:
    """The reference, from rounded activations."""
    return functional.linear(rounded(x).double(), expanded(weight, torch.float32).double().cpu(), bias.double())


def rounded(x: torch.Tensor) -> torch.Tensor:
    return expanded(quantise_activations(x.float().cpu(), GROUP), torch.float32)


def test_rounding_of_activations() -> None:
    x = activations(9, 384)
    values, scales = fp8.quantised_rows(x.to(DEVICE))
    expected = quantise_activations(x.float(), GROUP)
    assert torch.allclose(scales.cpu().t(), expected.scales, rtol=1e-6)
    difference = values.cpu().float() - expected.values.float()
    assert (difference.abs() <= 32).all()  # a step of the largest numbers
    assert (difference != 0).float().mean() < 0.01  # quotients that lie between two numbers
    with_scales = expanded(expected, torch.float32)
    assert ((with_scales - x.float()).norm() / x.float().norm()) < 0.04


TILES = [Fp8Blocks(16, 128, 4, 3, 2), Fp8Blocks(32, 64, 4, 2, 8), *(blocks for _, blocks in tuned_linear.FP8)]
if not CUDA:
    TILES = TILES[:3]


@pytest.mark.parametrize("blocks", TILES, ids=str)
@pytest.mark.parametrize(("rows", "n", "shared"), [(70, 256, True), (33, 144, False)])
def test_tiles(rows: int, n: int, shared: bool, blocks: Fp8Blocks) -> None:
    x, weight, bias = activations(rows, 256), block_weight(n, 256, shared=shared), torch.randn(n).to(DTYPE)
    prepared = quantised.prepare_quantised(weight, bias.to(DEVICE), DTYPE)
    assert prepared.scale_outputs == (GROUP if shared else 1)
    values, scales = fp8.quantised_rows(x.to(DEVICE))
    got = fp8.scaled_product(values, scales, prepared, DTYPE, blocks)
    close(got, product(x, weight, bias))


SHARES = [LinearBlocks(64, 128, 2, 4, 3, True), LinearBlocks(32, 64, 3, 4, 3, False)]


@pytest.mark.parametrize("blocks", SHARES, ids=str)
@pytest.mark.parametrize("rows", [17, 140])
def test_shares(rows: int, blocks: LinearBlocks) -> None:
    """Cut along the inputs, twice the same."""
    x, weight, bias = activations(rows, 384), block_weight(128, 384), torch.randn(128).to(DTYPE)
    prepared = quantised.prepare_quantised(weight, bias.to(DEVICE), DTYPE)
    values, scales = fp8.quantised_rows(x.to(DEVICE))
    got = streamed(values, prepared, DTYPE, blocks, scales)
    close(got, product(x, weight, bias))
    assert torch.equal(got, streamed(values, prepared, DTYPE, blocks, scales))


def test_which_products_round_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than 16 rows of bfloat16 on a GPU that multiplies 8-bit floats: never in float32."""
    seen = []
    monkeypatch.setattr(quantised, "in_blocks", lambda x, weight: seen.append(x.shape[0]) or x)
    monkeypatch.setattr(quantised, "multiplies_fp8", lambda device: True)
    prepared = quantised.prepare_quantised(block_weight(128, 256), None, torch.bfloat16)
    for rows, dtype in ((17, torch.float32), (16, torch.float32), (16, DTYPE), (17, torch.bfloat16)):
        quantised.product(torch.zeros(rows, 256, dtype=dtype, device=DEVICE), prepared, dtype)
    assert seen == [17]
    odd = quantised.prepare_quantised(block_weight(24, 256, shared=False), None, torch.float32)
    assert not fp8.takes_blocks(odd)
    monkeypatch.setattr(moe, "multiplies_fp8", lambda device: True)
    experts = moe.prepare_experts(block_weight(2, 256, 128), block_weight(2, 128, 128))
    x = torch.zeros(20, 128, device=DEVICE)
    assert moe.in_8_bits(x.bfloat16(), 17, experts.gate_up, experts.down)
    assert not moe.in_8_bits(x.bfloat16(), 16, experts.gate_up, experts.down)
    assert not moe.in_8_bits(x, 17, experts.gate_up, experts.down)
    other = moe.prepare_experts(block_weight(2, 96, 128, shared=False), block_weight(2, 128, 128))
    assert not moe.in_8_bits(x.bfloat16(), 17, other.gate_up, other.down)


EXPERT_BLOCKS = [
    ExpertBlocks(16, ProductBlocks(128, 128, 4, 3), ProductBlocks(64, 128, 4, 3), 2),
    ExpertBlocks(32, ProductBlocks(128, 128, 4, 3), ProductBlocks(128, 128, 4, 3), 4),
    *([blocks for _, blocks in tuned_moe.FP8] if CUDA else []),
]


@pytest.mark.parametrize("blocks", EXPERT_BLOCKS, ids=str)
@pytest.mark.parametrize("shared", [True, False])
def test_experts(blocks: ExpertBlocks, shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against experts whose inputs and hidden activations are rounded in torch."""
    monkeypatch.setattr(tuned_moe, "fp8_blocks", lambda *_: blocks)
    experts, top_k, k, n, tokens = 3, 2, 256, 128, 21
    gate_up, down = block_weight(experts, 2 * n, k, shared=shared), block_weight(experts, k, n, shared=shared)
    x = activations(tokens, k)
    bias = torch.randn(experts, 2 * n)
    weights, numbers = routing.route(torch.randn(tokens, experts, device=DEVICE), Routing(top_k, True))
    numbers[0, 0] = experts + 2  # of another rank
    prepared = moe.prepare_experts(gate_up, down, ExpertBiases(bias.to(DEVICE), None))
    got = moe.experts_in_8_bits(
        x.to(DEVICE), prepared.gate_up, prepared.down, prepared.biases, weights, numbers, "silu"
    )
    wide_gate_up, wide_down = expanded(gate_up, torch.float32).cpu(), expanded(down, torch.float32).cpu()
    expected = torch.zeros(tokens, k)
    for token in range(tokens):
        for number, weight in zip(numbers[token].tolist(), weights[token].tolist(), strict=True):
            if number >= experts:
                continue
            both = rounded(x[token : token + 1]) @ wide_gate_up[number].t() + bias[number]
            hidden = rounded(reference.TABLE.gated(both, "silu"))
            expected[token] += weight * (hidden @ wide_down[number].t())[0]
    assert ((got.float().cpu() - expected).norm() / expected.norm()).item() < 5e-3


@pytest.mark.gpu
@pytest.mark.skipif(not HOPPER, reason="needs compute capability 9.0")
@pytest.mark.parametrize("rows", [17, 64, 200, 256, 300, 1000, 8192])
@pytest.mark.parametrize("size", [(6144, 4096), (4096, 1536)], ids=str)
def test_real_sizes(rows: int, size: tuple[int, int]) -> None:
    weight, x = block_weight(*size), activations(rows, size[1])
    prepared = quantised.prepare_quantised(weight, None, DTYPE)
    got = quantised.product(x.cuda(), prepared, DTYPE)
    wide = expanded(weight, torch.float32)
    close(got, functional.linear(rounded(x).cuda(), wide).cpu())
    exact = functional.linear(x.cuda().float(), wide)
    assert ((got.float() - exact).norm() / exact.norm()).item() < 0.05


@pytest.mark.gpu
@pytest.mark.skipif(not HOPPER, reason="needs compute capability 9.0")
@pytest.mark.parametrize("tokens", [17, 64, 300, 4096])
def test_a_layer_of_qwen3(tokens: int) -> None:
    """128 experts: 8 bits on both sides against 16-bit activations."""
    experts, top_k, k, n = 128, 8, 2048, 768
    prepared = moe.prepare_experts(block_weight(experts, 2 * n, k), block_weight(experts, k, n))
    x = torch.randn(tokens, k, device=DEVICE).to(DTYPE)
    weights, numbers = routing.route(torch.randn(tokens, experts, device=DEVICE), Routing(top_k, True))
    got = moe.experts(x, prepared, weights, numbers, "silu").float()
    fine = moe.experts(x.float(), prepared, weights, numbers, "silu")
    assert ((got - fine).norm() / fine.norm()).item() < 0.06
    assert torch.equal(got, moe.experts(x, prepared, weights, numbers, "silu").float())
