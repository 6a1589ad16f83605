"""Routing and experts, with the reference and the fastest CPU ops, against a loop over single tokens."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from lightllm_mp.kernels import reference
from lightllm_mp.kernels.select import op_table
from lightllm_mp.kernels.table import OpTable, Routing

DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
EXPERTS, HIDDEN, WIDTH = 6, 40, 24
LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0, 1.5, 1.75], [0.0, 3.0, 3.5, 1.0, 2.0, -2.0]])


@pytest.fixture(params=["reference", "fastest"])
def choose(request):
    return (lambda dtype: reference.TABLE) if request.param == "reference" else lambda dtype: op_table("cpu", dtype)


def test_the_likeliest_come_first():
    weights, numbers = reference.TABLE.route(LOGITS, Routing(top_k=2, renormalise=False))
    assert numbers.tolist() == [[0, 5], [2, 1]]
    assert numbers.dtype == torch.int32
    assert torch.allclose(weights, LOGITS.softmax(-1).gather(1, numbers.long()))


def test_renormalised_weights_sum_to_the_scale():
    weights, _ = reference.TABLE.route(LOGITS, Routing(top_k=3, renormalise=True, scale=2.5))
    assert torch.allclose(weights.sum(-1), torch.tensor(2.5))


def test_scale_without_renormalising():
    plain, _ = reference.TABLE.route(LOGITS, Routing(top_k=3, renormalise=False))
    scaled, _ = reference.TABLE.route(LOGITS, Routing(top_k=3, renormalise=False, scale=16.0))
    assert torch.allclose(scaled, 16.0 * plain)


def test_groups_are_chosen_by_their_best_expert():
    """Groups are (0, 1), (2, 3), (4, 5)."""
    _, numbers = reference.TABLE.route(LOGITS, Routing(top_k=2, renormalise=False, groups=3, top_groups=1))
    assert numbers.tolist() == [[0, 1], [2, 3]]
    _, numbers = reference.TABLE.route(LOGITS, Routing(top_k=3, renormalise=False, groups=3, top_groups=2))
    assert numbers.tolist() == [[0, 5, 4], [2, 1, 3]]


def test_a_correction_chooses_and_does_not_weigh():
    """The first row's sigmoids plus the bias: 0.88, 0.73, 0.5, 0.27, 0.82, 2.85."""
    correction = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 2.0])
    how = Routing(top_k=2, renormalise=True, scale=2.5, sigmoid=True, correction=correction)
    weights, numbers = reference.TABLE.route(LOGITS, how)
    assert numbers.tolist() == [[5, 0], [5, 2]]
    chosen = LOGITS.sigmoid().gather(1, numbers.long())
    assert torch.allclose(weights, 2.5 * chosen / chosen.sum(-1, keepdim=True))


def test_groups_are_chosen_by_their_two_best_experts():
    """Groups are (0, 1, 2), (3, 4, 5): the first has the best expert, the second the best pair."""
    logits = torch.tensor([[4.0, -3.0, -4.0, 1.0, 1.1, -3.0]])
    _, numbers = reference.TABLE.route(logits, Routing(2, True, groups=2, top_groups=1, sigmoid=True))
    assert numbers.tolist() == [[0, 1]]
    _, numbers = reference.TABLE.route(logits, Routing(2, True, groups=2, top_groups=1, group_best=2, sigmoid=True))
    assert numbers.tolist() == [[4, 3]]


def test_weights_of_zero_are_not_divided():
    weights, _ = reference.TABLE.route(torch.full((1, 4), -200.0), Routing(2, True, sigmoid=True))
    assert weights.tolist() == [[0.0, 0.0]]


def layer(tokens: int, dtype: torch.dtype, top_k: int = 2):
    g = torch.Generator().manual_seed(7)
    x = torch.randn(tokens, HIDDEN, generator=g).to(dtype)
    gate_up = (torch.randn(EXPERTS, 2 * WIDTH, HIDDEN, generator=g) * 0.2).to(dtype)
    down = (torch.randn(EXPERTS, HIDDEN, WIDTH, generator=g) * 0.2).to(dtype)
    logits = torch.randn(tokens, EXPERTS, generator=g)
    logits[:, 3] = -9.0  # an expert that no token takes
    weights, numbers = reference.TABLE.route(logits, Routing(top_k, renormalise=True))
    return x, gate_up, down, weights, numbers


def one_by_one(x, gate_up, down, weights, numbers, activation) -> torch.Tensor:
    out = torch.zeros(x.shape, dtype=torch.float64)
    for i, token in enumerate(x.double()):
        for weight, number in zip(weights[i], numbers[i].tolist(), strict=True):
            gate, up = (gate_up[number].double() @ token).chunk(2)
            out[i] += weight.double() * (down[number].double() @ (activation(gate) * up))
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 5, 70])
@pytest.mark.parametrize("name", ["silu", "gelu_tanh"])
def test_experts(choose, dtype, tokens, name):
    ops: OpTable = choose(dtype)
    activation = functional.silu if name == "silu" else lambda g: functional.gelu(g, approximate="tanh")
    x, gate_up, down, weights, numbers = layer(tokens, dtype)
    got = ops.experts(x, ops.prepare_experts(gate_up, down), weights, numbers, name)
    assert got.dtype == dtype
    expected = one_by_one(x, gate_up, down, weights, numbers, activation)
    assert (got.double() - expected).norm() / expected.norm() < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 5, 70])
def test_experts_of_other_ranks_add_nothing(choose, dtype, tokens):
    ops: OpTable = choose(dtype)
    x, gate_up, down, weights, numbers = layer(tokens, dtype, top_k=3)
    expected, parts = one_by_one(x, gate_up, down, weights, numbers, functional.silu), []
    for first, end in ((0, 2), (2, 3), (3, 4), (4, 6)):  # no token takes number 3
        prepared = ops.prepare_experts(gate_up[first:end], down[first:end])
        parts.append(ops.experts(x, prepared, weights, numbers - first, "silu").double())
        if end - first == 1:
            mine = (weights * (numbers == first)).double()
            alone = one_by_one(x, gate_up, down, mine, numbers, functional.silu)
            assert (parts[-1] - alone).norm() <= TOLERANCE[dtype] * alone.norm()
    assert (sum(parts) - expected).norm() / expected.norm() < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_token_does_not_depend_on_the_others(dtype):
    ops = op_table("cpu", dtype)
    if not ops.exact_rows:
        pytest.skip("promised by the C extension only")
    x, gate_up, down, weights, numbers = layer(40, dtype, top_k=3)
    prepared = ops.prepare_experts(gate_up, down)
    together = ops.experts(x, prepared, weights, numbers, "silu")
    for i in range(len(x)):
        alone = ops.experts(x[i : i + 1], prepared, weights[i : i + 1], numbers[i : i + 1], "silu")
        assert torch.equal(alone[0], together[i])
