"""Products of quantised weights on a CPU, at every level of instructions of this processor."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightllm_mp.kernels import reference
from lightllm_mp.kernels.cpu import overlay, runtime
from lightllm_mp.kernels.quantised import BlockWeight, GroupedWeight, ScaledWeight
from lightllm_mp.kernels.reference.quantised import expanded, quantise
from lightllm_mp.kernels.table import ExpertBiases, Routing
from tests.kernels.cpu.ggml_blocks import SCALES_AT, Kind, random_blocks, values

CPU = overlay.table()
pytestmark = pytest.mark.skipif(CPU is None, reason="the C extension is not built")
KINDS = list(SCALES_AT)


@pytest.fixture(autouse=True, params=runtime.levels() if CPU else [])
def level(request):
    best = runtime.level()
    runtime.use_level(request.param)
    overlay.set_threads(2)
    yield request.param
    runtime.use_level(best)
    overlay.set_threads(1)


def prepare(weight, bias=None):
    return CPU.prepare_quantised(weight, bias, torch.bfloat16)


def check_product(x: Tensor, prepared, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Exact except for the rounding of float32 sums."""
    got = CPU.linear_float(x, prepared)
    expected = x.double() @ weight.double().T
    expected = expected if bias is None else expected + bias.double()
    assert (got - expected).abs().max() < 1e-5 * expected.abs().max()
    return got


def activations(m: int, k: int) -> Tensor:
    """float32 numbers that 16 bits hold exactly: integers times a power of two, the largest in every 32."""
    generator = torch.Generator().manual_seed(m)
    whole = torch.randint(-32767, 32768, (m, k), generator=generator)
    whole[:, ::32] = torch.where(whole[:, ::32] < 0, -32767, 32767)
    return whole * 2.0 ** torch.randint(-16, 0, (m, 1), generator=generator)


def test_rounding_of_activations():
    weight = random_blocks(Kind.Q8_0, 64, 1024)
    for kind in (torch.bfloat16, torch.float32):
        x = torch.randn(20, 1024).to(kind) * torch.logspace(-6, 6, 20)[:, None].to(kind)
        expected = x.double() @ values(weight).double().T
        error = (CPU.linear_float(x, prepare(BlockWeight((weight,)))) - expected).norm(dim=1) / expected.norm(dim=1)
        assert error.max() < 5e-5


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_ggml_type(kind):
    blocks = random_blocks(kind, 53, 512)
    weight, bias, x = values(blocks), torch.randn(53), activations(9, 512)
    prepared = prepare(BlockWeight((blocks,)), bias)
    assert kind.value in CPU.block_types
    assert sum(part.nbytes for part in prepared.packed) < 1.06 * blocks.rows.nbytes * 64 / 53
    assert torch.equal(CPU.embedding(torch.arange(53), prepare(BlockWeight((blocks,)))), weight.bfloat16())
    got = check_product(x, prepared, weight, bias)
    assert torch.equal(CPU.linear(x, prepared), got)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_activations_in_bfloat16(kind):
    blocks, x = random_blocks(kind, 53, 768), torch.randn(40, 768).bfloat16()
    expected = x.double() @ values(blocks).double().T
    got = CPU.linear_float(x, prepare(BlockWeight((blocks,))))
    assert ((got - expected).norm(dim=1) / expected.norm(dim=1)).max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_rows_do_not_depend_on_each_other(kind, dtype):
    prepared, x = prepare(BlockWeight((random_blocks(kind, 40, 768),))), activations(300, 768).to(dtype)
    whole = CPU.linear_float(x, prepared)
    for m in (*range(1, 18), 63, 127, 128, 129, 257):
        assert torch.equal(CPU.linear_float(x[7 : 7 + m], prepared), whole[7 : 7 + m])
    overlay.set_threads(1)
    assert torch.equal(CPU.linear_float(x, prepared), whole)


def test_a_weight_of_several_types():
    parts = tuple(random_blocks(kind, n, 256) for kind, n in ((Kind.Q4_K, 40), (Kind.Q6_K, 7), (Kind.Q8_0, 100)))
    weight, bias = torch.cat([values(part) for part in parts]), torch.randn(147)
    prepared = prepare(BlockWeight(parts), bias)
    check_product(activations(33, 256), prepared, weight, bias)
    lines = torch.tensor([0, 39, 40, 46, 47, 146, 146, 3])
    assert torch.equal(CPU.embedding(lines, prepared), weight[lines].bfloat16())


@pytest.mark.parametrize("k", [64, 100, 33, 1000])
def test_a_scale_per_output(k):
    weight = quantise(torch.randn(50, k), "int8")
    prepared = prepare(weight, torch.ones(50))
    assert isinstance(prepared, overlay.QuantisedLinear)
    check_product(activations(11, k), prepared, expanded(weight, torch.float32), torch.ones(50))
    x = torch.randn(20, k).bfloat16()
    expected = x.double() @ expanded(weight, torch.float32).double().T + 1
    assert (CPU.linear_float(x, prepared) - expected).norm() < 5e-5 * expected.norm()


def in_groups(n: int, k: int, group: int, dtype: torch.dtype) -> ScaledWeight:
    """Random values of all magnitudes, also subnormal ones; each group of inputs has its own scale."""
    made = torch.Generator().manual_seed(n + k)
    scales = torch.rand((n, -(-k // group) if group else 1), generator=made) * 0.1
    if dtype == torch.int8:
        return ScaledWeight(torch.randint(-127, 128, (n, k), generator=made, dtype=torch.int8), scales, group)
    codes = torch.randint(0, 127, (n, k), generator=made) + 128 * torch.randint(0, 2, (n, k), generator=made)
    return ScaledWeight(codes.to(torch.uint8).view(dtype), scales, group)


@pytest.mark.parametrize("group", [32, 128])
def test_int8_in_groups(group):
    weight = in_groups(50, 300, group, torch.int8)
    prepared = prepare(weight, torch.ones(50))
    assert isinstance(prepared, overlay.QuantisedLinear)
    check_product(activations(11, 300), prepared, expanded(weight, torch.float32), torch.ones(50))


@pytest.mark.parametrize(("n", "k", "group"), [(50, 256, 128), (33, 300, 128), (70, 200, 0), (40, 96, 16), (5, 33, 4)])
def test_float8(n, k, group, level):
    """As products of the expanded weight: exactly in float32, and in bfloat16 as a bfloat16 product."""
    weight, bias = in_groups(n, k, group, torch.float8_e4m3fn), torch.randn(n)
    prepared = prepare(weight, bias)
    assert isinstance(prepared, overlay.QuantisedLinear)
    if group == 128:
        assert prepared.packed[0].nbytes < 1.2 * -(-n // 32) * 32 * k
    x = torch.randn(300, k)
    check_product(x, prepared, expanded(weight, torch.float32), bias)
    rounds = level in ("avx512bf16", "amx")
    check_product(x.bfloat16(), prepared, expanded(weight, torch.bfloat16 if rounds else torch.float32), bias)
    whole = CPU.linear_float(x.bfloat16(), prepared)
    for m in (1, 2, 3, 4, 5, 7, 8, 17, 127, 129):
        assert torch.equal(CPU.linear_float(x[9 : 9 + m].bfloat16(), prepared), whole[9 : 9 + m])
    assert torch.equal(CPU.linear(x.bfloat16(), prepared), whole.bfloat16())


def test_float8_experts():
    experts, n, k = 5, 72, 160
    gate_up, down = (
        in_groups(experts * rows, inputs, 64, torch.float8_e4m3fn) for rows, inputs in ((2 * n, k), (k, n))
    )
    weights = [
        ScaledWeight(
            w.values.view(experts, -1, w.values.shape[1]), w.scales.view(experts, -1, w.scales.shape[1]), w.group
        )
        for w in (gate_up, down)
    ]
    prepared = CPU.prepare_experts(*weights)
    assert prepared.gate_up.parts == prepared.down.parts == 1
    plain = CPU.prepare_experts(*(expanded(weight, torch.bfloat16) for weight in weights))
    x = torch.randn(20, k).bfloat16()
    chosen = CPU.route(torch.randn(20, experts), Routing(2, True))
    got, expected = (CPU.experts(x, form, *chosen, "silu").float() for form in (prepared, plain))
    assert (got - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("in_order", [True, False], ids=["in order", "shuffled"])
def test_groups_of_four_bits(group, in_order):
    n, k = 50, 256
    group_of = torch.arange(k, dtype=torch.int32) // group
    if not in_order:
        group_of = group_of[torch.randperm(k)]
    codes, zeros = (torch.randint(0, 16, (n, size), dtype=torch.uint8) for size in (k, k // group))
    weight = GroupedWeight(codes, torch.rand(n, k // group) * 0.1, zeros, group_of)
    prepared = prepare(weight)
    assert isinstance(prepared, overlay.QuantisedLinear)
    assert (prepared.order is None) == in_order
    x = torch.empty(11, k)
    x[:, torch.arange(k) if in_order else prepared.order] = activations(11, k)
    check_product(x, prepared, expanded(weight, torch.float32))


def test_what_has_no_packed_form_is_expanded():
    generator = torch.Generator().manual_seed(3)
    uneven = torch.randint(0, 4, (64,), generator=generator).int()
    codes, zeros = torch.randint(0, 16, (20, 64), dtype=torch.uint8), torch.zeros(20, 4, dtype=torch.uint8)
    large, nan = (in_groups(20, 64, 0, torch.float8_e4m3fn) for _ in range(2))
    large.scales[3] = 128.0
    nan.values[3, 5] = torch.nan
    for weight in (
        GroupedWeight(codes, torch.rand(20, 4), zeros, uneven),
        in_groups(20, 64, 16, torch.int8),
        in_groups(20, 64, 6, torch.float8_e4m3fn),
        large,
        nan,
    ):
        prepared = prepare(weight)
        assert isinstance(prepared, overlay.PackedLinear)
        x = torch.randn(3, 64).bfloat16()
        expected = x.float() @ expanded(weight, torch.bfloat16).float().T
        assert torch.allclose(CPU.linear_float(x, prepared), expected, rtol=1e-3, atol=1e-3, equal_nan=True)


def test_float32_models_get_exact_products():
    blocks = random_blocks(Kind.Q4_1, 40, 64)
    prepared = CPU.prepare_quantised(BlockWeight((blocks,)), None, torch.float32)
    x = torch.randn(5, 64)
    assert torch.allclose(CPU.linear(x, prepared), x @ values(blocks).T, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_none_stays_in_its_row(bad, dtype):
    prepared, x = prepare(BlockWeight((random_blocks(Kind.Q4_0, 40, 64),))), activations(6, 64).to(dtype)
    clean = CPU.linear_float(x, prepared)
    x[2, 40] = bad
    got = CPU.linear_float(x, prepared)
    assert not got[2].isfinite().any()
    assert torch.equal(got[[0, 1, 3, 4, 5]], clean[[0, 1, 3, 4, 5]])


def test_zeros_give_the_bias():
    prepared = prepare(BlockWeight((random_blocks(Kind.Q4_1, 40, 64),)), torch.arange(40.0))
    assert torch.equal(CPU.linear_float(torch.zeros(3, 64).bfloat16(), prepared), torch.arange(40.0).expand(3, 40))


@pytest.mark.parametrize(
    "kinds", [(Kind.Q4_K, Kind.Q4_K, Kind.Q6_K), (Kind.Q4_0, Kind.Q8_0, Kind.Q5_1), (Kind.MXFP4,) * 3], ids=str
)
def test_experts_in_blocks(kinds):
    """As experts of the expanded weights in float32; bitwise the same for a token alone and among others."""
    experts, n, k = 6, 256, 512
    gate, up, down = (
        [random_blocks(kind, *shape, seed=10 * expert) for expert in range(experts)]
        for kind, shape in zip(kinds, ((n, k), (n, k), (k, n)), strict=True)
    )
    gate_up = tuple(BlockWeight(pair) for pair in zip(gate, up, strict=True))
    biases = ExpertBiases(torch.randn(experts, 2 * n), torch.randn(experts, k).bfloat16())
    prepared = CPU.prepare_experts(gate_up, tuple(BlockWeight((one,)) for one in down), biases)
    wide = reference.TABLE.prepare_experts(
        torch.stack([torch.cat([values(a), values(b)]) for a, b in zip(gate, up, strict=True)]),
        torch.stack([values(one) for one in down]),
        biases,
    )
    x = torch.randn(40, k)
    weights, numbers = CPU.route(torch.randn(40, experts), Routing(2, True))
    whole = CPU.experts(x, prepared, weights, numbers, "silu")
    expected = reference.TABLE.experts(x, wide, weights, numbers, "silu")
    assert (whole - expected).norm() < 1e-3 * expected.norm()
    for m in (1, 3, 20):
        part = slice(5, 5 + m)
        got = CPU.experts(x[part], prepared, weights[part].clone(), numbers[part].clone(), "silu")
        assert torch.equal(got, whole[part])
