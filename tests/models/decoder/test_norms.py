"""Norms as a decoder reads them, with the fastest CPU ops and the reference, against torch's own."""

from __future__ import annotations

import msgspec
import pytest
import torch
from torch.nn import functional

from lightllm_mp.kernels import reference
from lightllm_mp.kernels.select import op_table
from lightllm_mp.models.checkpoint.assembly import ModelWeights
from lightllm_mp.models.checkpoint.weight_rules import Param, Piece
from lightllm_mp.models.decoder.norms import read_head_norms, read_norm
from lightllm_mp.models.spec import ModelSpec

HIDDEN = 48
SPEC = ModelSpec(
    family="any",
    vocab=8,
    hidden=HIDDEN,
    layers=1,
    heads=4,
    kv_heads=2,
    head_dim=16,
    intermediate=8,
    norm_eps=1e-3,
    rope=None,
    max_context=8,
    eos_ids=(),
)
TABLES = [reference.TABLE, op_table("cpu", torch.float32)]
pytestmark = pytest.mark.parametrize("ops", TABLES, ids=lambda ops: ops.name)


def weights(tensors: dict[str, torch.Tensor], ops, dtype=torch.float32) -> ModelWeights:
    found = ModelWeights(
        [Param(n, (Piece(n, tuple(t.shape)),)) for n, t in tensors.items()],
        ops,
        device="cpu",
        dtype=dtype,
    )
    for name, tensor in tensors.items():
        found.add(name, tensor)
    return found


def spec(**changes) -> ModelSpec:
    return msgspec.structs.replace(SPEC, **changes)


@pytest.mark.parametrize("biased", [False, True])
def test_layer_norm(ops, biased):
    x, weight, bias = torch.randn(5, HIDDEN) + 3, torch.randn(HIDDEN), torch.randn(HIDDEN)
    by = read_norm(weights({"norm": weight, "norm.bias": bias}, ops), "norm", spec(norm="layer", norm_bias=biased))
    expected = functional.layer_norm(x, (HIDDEN,), weight, bias if biased else None, 1e-3)
    assert torch.allclose(ops.norm(x, by), expected, atol=1e-5)


def test_rms_norm(ops):
    x, weight = torch.randn(5, HIDDEN), torch.randn(HIDDEN)
    by = read_norm(weights({"norm": weight}, ops), "norm", SPEC)
    assert torch.allclose(ops.norm(x, by), functional.rms_norm(x, (HIDDEN,), weight, 1e-3), atol=1e-5)


def test_one_plus_weight_keeps_small_weights_in_sixteen_bits(ops):
    """1 + 2 ** -8 is no bfloat16 number: rounded, the weight would have no effect."""
    x = torch.randn(5, HIDDEN).bfloat16()
    small = weights({"norm": torch.full((HIDDEN,), 2.0**-8)}, ops, torch.bfloat16)
    by = read_norm(small, "norm", spec(norm_offset=True))
    plain = functional.rms_norm(x.double(), (HIDDEN,), eps=1e-3)
    got = ops.norm(x, by)
    assert got.dtype == torch.bfloat16
    assert (got - plain * (1 + 2.0**-8)).norm() < 0.8 * (plain.bfloat16() - plain * (1 + 2.0**-8)).norm()
    assert by.weight.tolist() == [1 + 2.0**-8] * HIDDEN


def test_each_head_may_have_its_own_weights(ops):
    found = weights({"q_norm": torch.randn(64), "k_norm": torch.randn(32)}, ops)
    by = read_head_norms(found, "", spec(head_norm="layer", each_head_norm=True))
    assert by is not None
    assert (by.query.weight.shape, by.key.weight.shape) == ((4, 16), (2, 16))
    x = torch.randn(5, 4, 16)
    for head in range(4):
        expected = functional.layer_norm(x[:, head], (16,), by.query.weight[head], None, 1e-3)
        assert torch.allclose(ops.norm(x, by.query)[:, head], expected, atol=1e-5)
    assert read_head_norms(found, "", SPEC) is None
