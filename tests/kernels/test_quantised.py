"""Quantised weights: their definition, their loss, and every backend's product against the definition."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from lightllm_mp.kernels import reference
from lightllm_mp.kernels.quantised import GroupedWeight, ScaledWeight, stacked
from lightllm_mp.kernels.reference.quantised import expanded, quantise
from lightllm_mp.kernels.select import op_table

CUDA = torch.cuda.is_available()
triton = pytest.importorskip("triton", reason="triton is not installed")

from lightllm_mp.kernels.triton import launch, overlay  # noqa: E402
from lightllm_mp.kernels.triton.linear import few_rows, quantised, tuned_linear  # noqa: E402
from lightllm_mp.kernels.triton.linear.linear import prepare_linear  # noqa: E402
from lightllm_mp.kernels.triton.linear.tuned_linear import LinearBlocks  # noqa: E402

DEVICE = "cuda" if CUDA else "cpu"
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if CUDA else [])]
"""The interpreter multiplies bfloat16 wrongly."""


@triton.jit
def _count(out, n):
    for _ in range(n):
        triton.language.atomic_add(out, 1)


if not CUDA:
    try:
        _count[(1,)](torch.zeros(1, dtype=torch.int32), 3)
    except triton.runtime.errors.InterpreterError as error:
        pytest.skip(f"this triton cannot interpret a loop with this numpy: {error}", allow_module_level=True)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def grouped(n: int, k: int, group: int, *, shuffled: bool = False, seed: int = 0) -> GroupedWeight:
    random = torch.Generator().manual_seed(seed)
    groups = k // group
    group_of = torch.arange(k, dtype=torch.int32) // group
    if shuffled:
        group_of = group_of[torch.randperm(k, generator=random)]
    return GroupedWeight(
        torch.randint(0, 16, (n, k), generator=random, dtype=torch.uint8),
        (torch.rand((n, groups), generator=random) * 0.02 + 0.001).half(),
        torch.randint(0, 16, (n, groups), generator=random, dtype=torch.uint8),
        group_of,
    )


def scaled(n: int, k: int, kind) -> ScaledWeight:
    return quantise(torch.randn(n, k, generator=torch.Generator().manual_seed(n)) * k**-0.5, kind)


def in_groups(n: int, k: int, group: int, kind: str) -> ScaledWeight:
    whole = scaled(n, k, kind)
    return ScaledWeight(whole.values, whole.scales * (torch.rand(n, -(-k // group)) + 0.5), group)


def on_device(weight):
    if isinstance(weight, GroupedWeight):
        return weight.to(DEVICE)
    return ScaledWeight(weight.values.to(DEVICE), weight.scales.to(DEVICE), weight.group)


def close(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert got.shape == expected.shape
    assert torch.isfinite(got).all()
    assert ((got.double().cpu() - expected.double()).norm() / expected.double().norm()).item() < tolerance


@pytest.mark.parametrize(("kind", "loss"), [("int8", 0.013), ("fp8", 0.035)])
def test_quantising_loses_little(kind, loss):
    weight = torch.randn(40, 1024) * torch.logspace(-3, 2, 40)[:, None]
    weight[7] = 0.0
    weight[9, 3] = 60.0 * weight[9].abs().max()
    got = quantise(weight.bfloat16(), kind)
    assert got.values.dtype == (torch.int8 if kind == "int8" else torch.float8_e4m3fn)
    error = (expanded(got, torch.float32) - weight.bfloat16().float()).norm(dim=1)
    usual = torch.ones(40, dtype=torch.bool)
    usual[[7, 9]] = False
    assert (error[usual] < loss * weight[usual].norm(dim=1)).all()
    assert error[7] == 0
    step = weight.bfloat16().float().abs().amax(1) / reference.quantised.LARGEST[kind]
    if kind == "int8":
        difference = (expanded(got, torch.float32) - weight.bfloat16().float()).abs()
        assert (difference <= 0.5001 * step[:, None]).all()


def test_a_group_stands_for_what_it_says():
    weight = GroupedWeight(
        torch.tensor([[3, 15, 0, 8]], dtype=torch.uint8),
        torch.tensor([[0.5, 2.0]]),
        torch.tensor([[1, 9]], dtype=torch.uint8),
        torch.tensor([1, 0, 1, 0], dtype=torch.int32),
    )
    assert expanded(weight, torch.float32).tolist() == [[-12.0, 7.0, -18.0, 3.5]]


def test_cutting_and_stacking():
    weight = grouped(24, 128, 32, shuffled=True)
    whole = expanded(weight, torch.float32)
    assert torch.equal(expanded(weight.rows(5, 17), torch.float32), whole[5:17])
    assert torch.equal(expanded(weight.columns(32, 80), torch.float32), whole[:, 32:80])
    parts = stacked([weight.rows(0, 8), weight.rows(8, 24)])
    assert parts is not None
    assert torch.equal(expanded(parts, torch.float32), whole)
    assert stacked([weight, grouped(8, 128, 32)]) is None
    mirrored = weight.reordered(lambda x: x.flip(0))
    assert torch.equal(expanded(mirrored, torch.float32), whole.flip(0))


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("form", ["int8", "fp8", "int4"])
def test_processor(form, biased):
    weight = grouped(48, 128, 32, shuffled=True) if form == "int4" else scaled(48, 128, form)
    bias = torch.randn(48) if biased else None
    x = torch.randn(5, 128)
    expected = functional.linear(x, expanded(weight, torch.float32), bias)
    for ops in (reference.TABLE, op_table("cpu", torch.float32)):
        close(ops.linear(x, ops.prepare_quantised(weight, bias, torch.float32)), expected, 1e-5)


FORMS = {
    "int8": lambda: scaled(72, 256, "int8"),
    "int8 of 3 x 32": lambda: scaled(40, 96, "int8"),
    "int8 of 13 x 8": lambda: scaled(40, 104, "int8"),
    "fp8": lambda: scaled(80, 256, "fp8"),
    "fp8 by 128": lambda: in_groups(80, 320, 128, "fp8"),
    "fp8 by 48": lambda: in_groups(40, 192, 48, "fp8"),
    "fp8 by 24": lambda: in_groups(24, 96, 24, "fp8"),
    "int8 by 128": lambda: in_groups(72, 256, 128, "int8"),
    "int4": lambda: grouped(72, 256, 128),
    "int4 by 32": lambda: grouped(33, 192, 32),
    "int4 shuffled": lambda: grouped(72, 256, 64, shuffled=True),
    "int4 in one group": lambda: grouped(72, 384, 384),
    "int4 of uneven groups": lambda: grouped(24, 128, 32, shuffled=True).columns(0, 96),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 20, 300])
@pytest.mark.parametrize("form", FORMS)
def test_products(form, rows, dtype):
    """Through the op table: few rows read the packed weight, many expand it or multiply in 8 bits."""
    weight = FORMS[form]()
    n, k = weight.scales.shape[0], expanded(weight, dtype).shape[1]
    x, bias = torch.randn(rows, k).to(dtype), torch.randn(n).to(dtype)
    expected = functional.linear(x.float(), expanded(weight, torch.float32), bias.float())
    ops = overlay.TABLE
    prepared = ops.prepare_quantised(on_device(weight), bias.to(DEVICE), dtype)
    in_8_bits = CUDA and form == "fp8" and rows > 16 and dtype == torch.bfloat16
    tolerance = 0.05 if in_8_bits else TOLERANCE[dtype]
    close(ops.linear(x.to(DEVICE), prepared), expected, tolerance)
    logits = ops.linear_float(x.to(DEVICE), prepared)
    assert logits.dtype == torch.float32
    close(logits, expected, tolerance if form == "fp8" else TOLERANCE[dtype])


def test_8_bit_floats_where_they_are_not_read(monkeypatch):
    """On GPUs before compute capability 8.9: the weight is expanded."""
    monkeypatch.setattr(quantised, "converts_fp8", lambda device: False)
    for form in ("fp8", "fp8 by 128"):
        weight = FORMS[form]()
        prepared = quantised.prepare_quantised(on_device(weight), None, torch.float16)
        assert torch.equal(prepared.weight.cpu(), expanded(weight, torch.float16))
    assert quantised.prepare_quantised(on_device(FORMS["int8"]()), None, torch.float16).weight.dtype == torch.int8


BLOCKS = [
    LinearBlocks(16, 64, 1, 4, 2, False),
    LinearBlocks(32, 32, 2, 4, 3, True),
    LinearBlocks(64, 128, 3, 4, 2, False),
    LinearBlocks(128, 64, 100, 4, 2, True),
]


@pytest.mark.parametrize("dtype", [torch.float16, *DTYPES[2:]], ids=str)
@pytest.mark.parametrize("blocks", BLOCKS, ids=str)
@pytest.mark.parametrize(("rows", "n", "k"), [(1, 40, 128), (9, 40, 384), (33, 50, 128), (150, 24, 128)])
def test_shares(rows, n, k, blocks, dtype):
    """With any tiles the product is that of a plain weight, and bitwise the same in a second run."""
    x, weight, bias = torch.randn(rows, k).to(dtype), (torch.randn(n, k) * k**-0.5).to(dtype), torch.randn(n).to(dtype)
    expected = functional.linear(x.float(), weight.float(), bias.float())
    prepared = prepare_linear(weight.to(DEVICE), bias.to(DEVICE))
    assert few_rows.streams(prepared, rows, blocks)
    first = few_rows.streamed(x.to(DEVICE), prepared, dtype, blocks)
    close(first, expected, TOLERANCE[dtype])
    again = few_rows.streamed(x.to(DEVICE), prepared, torch.float32, blocks)
    close(again, expected, TOLERANCE[dtype])
    assert torch.equal(first, few_rows.streamed(x.to(DEVICE), prepared, dtype, blocks))
    assert not prepared.arrived.any()


@pytest.mark.parametrize("dtype", DTYPES[1 if CUDA else 0 :], ids=str)
@pytest.mark.parametrize("blocks", BLOCKS[:3], ids=str)
@pytest.mark.parametrize("form", ["int8", "int4", "int4 by 32", "int8 by 128"])
def test_shares_of_quantised_weights(form, blocks, dtype):
    weight = FORMS[form]()
    k = expanded(weight, dtype).shape[1]
    x = torch.randn(20, k).to(dtype)
    prepared = quantised.prepare_quantised(on_device(weight), None, dtype)
    got = few_rows.streamed(x.to(DEVICE), prepared, torch.float32, blocks)
    close(got, functional.linear(x.float(), expanded(weight, torch.float32)), TOLERANCE[dtype])


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a GPU")
@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("form", ["plain", "int8", "fp8", "int4"])
@pytest.mark.parametrize("rows", [1, 16, 64, 128, 256])
def test_large_products_in_a_graph(monkeypatch, form, rows, early):
    """Real sizes with the blocks of the server, captured once, replayed with other rows."""
    monkeypatch.setattr(launch, "EARLY_START", early)
    n, k = 6144, 4096
    if form == "plain":
        plain = (torch.randn(n, k, device="cuda") * k**-0.5).bfloat16()
        prepared, blocks = prepare_linear(plain, None), tuned_linear.BLOCKS["int8"][min(128, max(16, rows))]
    else:
        weight = on_device(grouped(n, k, 128) if form == "int4" else scaled(n, k, form))
        prepared, plain = quantised.prepare_quantised(weight, None, torch.bfloat16), expanded(weight, torch.float32)
        blocks = tuned_linear.quantised_blocks(form, k, rows)
    x = torch.randn(rows, k, device="cuda").bfloat16()
    few_rows.streamed(x, prepared, torch.bfloat16, blocks)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = few_rows.streamed(x, prepared, torch.bfloat16, blocks)
        again = few_rows.streamed(x, prepared, torch.bfloat16, blocks)
    for _ in range(5):
        x.normal_()
        graph.replay()
        close(got, (x.double() @ plain.double().t()).cpu(), 1e-2)
        assert torch.equal(got, again)
    torch.cuda.synchronize()
    assert not prepared.arrived.any()


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a GPU")
def test_products_in_8_bits():
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs compute capability 9.0")
    weight = scaled(4096, 11008, "fp8")
    x, bias = torch.randn(300, 11008).bfloat16(), torch.randn(4096).bfloat16()
    x[3] *= 1000
    x[5] = 0
    prepared = quantised.prepare_quantised(on_device(weight), bias.cuda(), torch.bfloat16)
    got = quantised.in_8_bits(x.cuda(), prepared).float().cpu()
    expected = functional.linear(x.float(), expanded(weight, torch.float32), bias.float())
    assert ((got - expected).norm(dim=1) < 0.05 * expected.norm(dim=1)).all()
