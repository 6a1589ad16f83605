"""Routing and experts in Triton against float32 reference ops: on a GPU if there is one, else interpreted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from lightllm_mp.errors import ModelError
from lightllm_mp.kernels import reference
from lightllm_mp.kernels.quantised import BlockRows, BlockWeight, ScaledWeight
from lightllm_mp.kernels.reference.quantised import expanded
from lightllm_mp.kernels.table import ExpertBiases, Routing
from lightllm_mp.kernels.triton.moe import moe, routing, tuned_moe  # after the choice of the interpreter
from lightllm_mp.kernels.triton.moe.expert_tiles import expert_tiles
from lightllm_mp.kernels.triton.moe.tuned_moe import AloneBlocks
from tests.kernels.cpu.ggml_blocks import Kind, random_blocks
from tests.kernels.routings import NAMES, ROUTINGS
from tests.kernels.triton.triton_case import CUDA, DEVICE, DTYPES, close

REFERENCE = reference.TABLE
NEW_EMPTY = torch.Tensor.new_empty


@pytest.mark.parametrize(("experts", "how"), ROUTINGS, ids=NAMES)
@pytest.mark.parametrize("tokens", [1, 3000 if CUDA else 3])
def test_route(experts, how, tokens):
    logits = torch.randn(tokens, experts).argsort(-1) * 0.05  # no two values are nearly equal
    on_device = None if how.correction is None else how.correction.to(DEVICE)
    weights, numbers = routing.route(logits.to(DEVICE), replace(how, correction=on_device))
    expected, who = REFERENCE.route(logits, how)
    assert torch.equal(numbers.cpu(), who)
    assert numbers.dtype == torch.int32
    assert torch.allclose(weights.cpu(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_equal_weights_go_to_the_smaller_number(sigmoid):
    logits = torch.zeros(3, 16)
    logits[1, 5] = 1.0
    logits[2] = float("nan")
    _, numbers = routing.route(logits.to(DEVICE), Routing(4, True, sigmoid=sigmoid))
    assert numbers.tolist() == [[0, 1, 2, 3], [5, 0, 1, 2], [0, 1, 2, 3]]


@pytest.mark.parametrize(("tokens", "top_k", "experts"), [(1, 2, 8), (5, 3, 24), (40, 2, 4), (600, 4, 5), (130, 1, 1)])
@pytest.mark.parametrize("rows", [16, 32])
def test_tiles_hold_every_assignment_once(tokens, top_k, experts, rows):
    numbers = torch.randint(0, max(1, experts - 1), (tokens, top_k), dtype=torch.int32)  # the last one gets none
    order, tiles = expert_tiles(numbers.to(DEVICE), experts, rows)
    flat, order = numbers.flatten(), order.cpu()
    assert torch.equal(order, flat.argsort(stable=True).int())
    used = sorted((first, expert, count) for expert, first, count in tiles.tolist() if expert >= 0)
    at = 0
    for first, expert, count in used:
        assert first == at
        assert 1 <= count <= rows
        assert (flat[order[first : first + count].long()] == expert).all()
        at += count
    assert at == tokens * top_k
    assert len(used) == sum(-(-count // rows) for count in flat.bincount().tolist())


def layer(experts: int, k: int, n: int, dtype: torch.dtype, device: str = DEVICE) -> tuple[torch.Tensor, torch.Tensor]:
    """Made on the device: those of real models are too large for a CPU."""
    gate_up = torch.randn(experts, 2 * n, k, device=device, dtype=dtype).mul_(k**-0.5)
    return gate_up, torch.randn(experts, k, n, device=device, dtype=dtype).mul_(n**-0.5)


def step(tokens: int, k: int, experts: int, top_k: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    x = torch.randn(tokens, k, device=DEVICE).to(dtype)
    weights, numbers = routing.route(torch.randn(tokens, experts, device=DEVICE), Routing(top_k, True))
    return x, weights, numbers


def check(shape: tuple[int, int, int, int], tokens: int, dtype: torch.dtype, activation: str = "silu") -> None:
    experts, top_k, k, n = shape
    gate_up, down = layer(experts, k, n, dtype)
    x, weights, numbers = step(tokens, k, experts, top_k, dtype)
    got = moe.experts(x, moe.prepare_experts(gate_up, down), weights, numbers, activation)
    assert got.dtype == dtype
    wide = REFERENCE.prepare_experts(gate_up.float(), down.float())
    close(got, REFERENCE.experts(x.float(), wide, weights, numbers, activation).cpu())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(4, 2, 24, 16), (5, 3, 20, 17)], ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 3, 40])
def test_experts(dtype, shape, tokens):
    if not CUDA and tokens > 1 and (dtype == torch.bfloat16 or (dtype == torch.float16 and tokens > 3)):
        pytest.skip("the interpreter multiplies bfloat16 wrongly and is slow")
    if tokens == 0:
        x = torch.empty(0, shape[2], dtype=dtype, device=DEVICE)
        none = torch.empty(0, shape[1], device=DEVICE)
        prepared = moe.prepare_experts(*layer(shape[0], shape[2], shape[3], dtype))
        assert moe.experts(x, prepared, none, none.int(), "silu").shape == x.shape
    else:
        check(shape, tokens, dtype)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu"])
@pytest.mark.parametrize("tokens", [1, 5])
def test_activations_of_experts(activation, tokens):
    check((3, 2, 16, 8), tokens, torch.float16, activation)


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("given", [(True, True), (True, False), (False, True)], ids=str)
def test_biases(tokens, given):
    experts, k, n, dtype = 3, 20, 16, torch.float16
    gate_up, down = layer(experts, k, n, dtype)
    bias = torch.randn(experts, 2 * n, device=DEVICE).to(dtype), torch.randn(experts, k, device=DEVICE).to(dtype)
    biases = ExpertBiases(*(one if there else None for one, there in zip(bias, given, strict=True)))
    x, weights, numbers = step(tokens, k, experts, 2, dtype)
    got = moe.experts(x * 4, moe.prepare_experts(gate_up, down, biases), weights, numbers, "swiglu_oai")
    wide = REFERENCE.prepare_experts(gate_up.float(), down.float(), biases)
    close(got, REFERENCE.experts(x.float() * 4, wide, weights, numbers, "swiglu_oai").cpu())


def mxfp4(experts: int, n: int, k: int) -> tuple[BlockWeight, ...]:
    return tuple(
        BlockWeight((BlockRows(blocks.rows.to(DEVICE), blocks.type),))
        for blocks in (random_blocks(Kind.MXFP4, n, k, seed) for seed in range(experts))
    )


def plain(weights: tuple[BlockWeight, ...]) -> torch.Tensor:
    return torch.stack([expanded(weight, torch.float32) for weight in weights]).to(DEVICE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 2, 96, 64), (2, 1, 128, 160)], ids=str)
@pytest.mark.parametrize("tokens", [1, 20, 60])
def test_experts_in_mxfp4(dtype, shape, tokens):
    """The experts are not expanded; widths need not be multiples of a step. More tokens take other blocks."""
    if not CUDA and dtype == torch.bfloat16:
        pytest.skip("the interpreter multiplies bfloat16 wrongly")
    experts, top_k, k, n = shape
    gate_up, down = mxfp4(experts, 2 * n, k), mxfp4(experts, k, n)
    biases = ExpertBiases(torch.randn(experts, 2 * n, device=DEVICE).to(dtype), None)
    prepared = moe.prepare_experts(gate_up, down, biases)
    assert prepared.gate_up.codes.nbytes + prepared.gate_up.scales.nbytes <= plain(gate_up).nbytes * 4.5 / 32 * 4 / 3
    x, weights, numbers = step(tokens, k, experts, top_k, dtype)
    got = moe.experts(x, prepared, weights, numbers, "swiglu_oai")
    wide = REFERENCE.prepare_experts(plain(gate_up), plain(down), biases)
    close(got, REFERENCE.experts(x.float(), wide, weights, numbers, "swiglu_oai").cpu())


def test_mxfp4_scales_that_no_model_has():
    (weight,) = mxfp4(1, 4, 32)
    weight.parts[0].rows[1, 0] = 129
    with pytest.raises(ModelError, match=r"scale of 2\^2"):
        moe.prepare_experts((weight,), (weight,))
    weight.parts[0].rows[1, 0] = 0
    assert moe.prepare_experts((weight,), (weight,)).down.inputs == 32


def test_all_tokens_choose_the_same_experts():
    gate_up, down = layer(16, 32, 20, torch.float32)
    x = torch.randn(70, 32, device=DEVICE)
    weights = torch.rand(70, 2, device=DEVICE)
    numbers = torch.tensor([[15, 3]], dtype=torch.int32, device=DEVICE).repeat(70, 1)
    got = moe.experts(x, moe.prepare_experts(gate_up, down), weights, numbers, "silu")
    wide = REFERENCE.prepare_experts(gate_up, down)
    close(got, REFERENCE.experts(x, wide, weights, numbers, "silu").cpu())


def unwritten(x: torch.Tensor, *shape: Any, **more: Any) -> torch.Tensor:
    made = NEW_EMPTY(x, *shape, **more)
    return made.fill_(float("nan")) if made.is_floating_point() else made


@pytest.mark.parametrize(("tokens", "dtype"), [(1, torch.float16), (2, torch.float32), (40, torch.float32)], ids=str)
@pytest.mark.parametrize(("first", "end"), [(0, 2), (2, 5), (5, 6)])
def test_experts_of_other_ranks_add_nothing(tokens, dtype, first, end, monkeypatch):
    """Memory without a tile holds NaN here, and the parts of all ranks add up to the whole."""
    gate_up, down = layer(6, 24, 16, dtype)
    x, weights, numbers = step(tokens, 24, 6, 3, dtype)
    prepared = moe.prepare_experts(gate_up[first:end], down[first:end])
    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "new_empty", unwritten)
        got = moe.experts(x, prepared, weights, numbers - first, "silu")
    others = weights.masked_fill((numbers < first) | (numbers >= end), 0.0)
    wide = REFERENCE.prepare_experts(gate_up.float(), down.float())
    expected = REFERENCE.experts(x.float(), wide, others, numbers, "silu")
    assert torch.allclose(got.float(), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(("tokens", "experts"), [(5, 3), (600, 3), (40, 20)])
def test_tiles_are_for_own_experts_alone(tokens, experts):
    numbers = torch.randint(-4, experts + 4, (tokens, 3), dtype=torch.int32)
    order, tiles = (x.cpu() for x in expert_tiles(numbers.to(DEVICE), experts, 16))
    flat = numbers.flatten()
    used = [(expert, first, count) for expert, first, count in tiles.tolist() if expert >= 0]
    seen = [int(order[i]) for _, first, count in used for i in range(first, first + count)]
    assert sorted(seen) == [i for i, number in enumerate(flat.tolist()) if 0 <= number < experts]
    assert all((flat[order[first : first + count].long()] == expert).all() for expert, first, count in used)


TABLES = (tuned_moe.H100, tuned_moe.OTHERS)
BLOCKS = sorted({(n, blocks) for table in TABLES for n, lines in table.items() for _, blocks in lines})


@pytest.mark.parametrize("blocks", BLOCKS, ids=str)
def test_every_tuned_block(blocks, monkeypatch):
    """Each set of blocks computes the same, also those that the shapes of other tests do not choose."""
    size, chosen = blocks
    if not CUDA and chosen.rows > 64:
        pytest.skip("slow in the interpreter")
    monkeypatch.setattr(tuned_moe, "expert_blocks", lambda *_, **__: chosen)
    for dtype in [d for d in DTYPES if d.itemsize == size and (CUDA or d != torch.bfloat16)]:
        check((2, 2, 128, 80), 12, dtype)


MODELS = {
    "mixtral-8x7b": (8, 2, 4096, 14336),
    "qwen3-30b-a3b": (128, 8, 2048, 768),
    "deepseek-v2-lite": (64, 6, 2048, 1408),
}


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a GPU")
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("tokens", [1, 2, 16, 64, 300, 2048])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_layers_of_real_models(model, tokens, dtype):
    if dtype == torch.float32 and tokens > 64:
        pytest.skip("float32 is for small steps")
    check(MODELS[model], tokens, dtype)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a GPU")
@pytest.mark.parametrize("tokens", [1, 2, 16, 64, 300, 2048])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_layer_of_gpt_oss(tokens, dtype):
    experts, top_k, width = 8, 4, 2880

    def blocks(n: int) -> tuple[BlockWeight, ...]:
        rows = torch.randint(0, 256, (experts, n, width // 32 * 17), dtype=torch.uint8, device=DEVICE)
        rows[..., ::17] = torch.randint(112, 122, (experts, n, width // 32), dtype=torch.uint8, device=DEVICE)
        return tuple(BlockWeight((BlockRows(one, Kind.MXFP4),)) for one in rows)

    gate_up, down = blocks(2 * width), blocks(width)
    biases = ExpertBiases(*(torch.randn(experts, n, device=DEVICE).to(dtype) for n in (2 * width, width)))
    x, weights, numbers = step(tokens, width, experts, top_k, dtype)
    got = moe.experts(x, moe.prepare_experts(gate_up, down, biases), weights, numbers, "swiglu_oai")
    wide = REFERENCE.prepare_experts(plain(gate_up), plain(down), biases)
    close(got, REFERENCE.experts(x.float(), wide, weights, numbers, "swiglu_oai").cpu())


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a GPU")
@pytest.mark.parametrize("tokens", [1, 16, 2000])
def test_repeatable_and_without_waiting(tokens):
    experts, top_k, k, n = MODELS["qwen3-30b-a3b"]
    prepared = moe.prepare_experts(*layer(experts, k, n, torch.bfloat16))
    logits, x = torch.randn(tokens, experts, device=DEVICE), torch.randn(tokens, k, device=DEVICE).bfloat16()

    def run() -> torch.Tensor:
        return moe.experts(x, prepared, *routing.route(logits, Routing(top_k, True)), "silu")

    first = run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = [run() for _ in range(5)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for got in again:
        assert torch.equal(got, first)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a GPU")
@pytest.mark.parametrize("tokens", [1, 2, 16, 64])
def test_one_graph_serves_all_choices(tokens):
    """Captured once, replayed with logits that route tokens differently, also all to the same experts."""
    experts, top_k, k, n = 32, 4, 512, 256
    gate_up, down = layer(experts, k, n, torch.bfloat16)
    prepared, wide = moe.prepare_experts(gate_up, down), REFERENCE.prepare_experts(gate_up.float(), down.float())
    logits, x = torch.randn(tokens, experts, device=DEVICE), torch.randn(tokens, k, device=DEVICE).bfloat16()
    how = Routing(top_k, True)

    def run() -> torch.Tensor:
        return moe.experts(x, prepared, *routing.route(logits, how), "silu")

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()
    for seed in range(10):
        torch.manual_seed(seed)
        logits.normal_()
        if seed == 0:
            logits.copy_(torch.arange(experts, device=DEVICE).expand(tokens, experts))
        x.normal_()
        result.fill_(float("nan"))
        graph.replay()
        close(result, REFERENCE.experts(x.float(), wide, *REFERENCE.route(logits, how), "silu").cpu())


def scaled(weight: torch.Tensor, group: int, kind: torch.dtype = torch.float8_e4m3fn) -> ScaledWeight:
    """8-bit values of a weight [experts, n, k], with random scales."""
    experts, n, k = weight.shape
    scales = torch.rand(experts, n, -(-k // group) if group else 1, device=weight.device) * 1e-2 + 1e-3
    whole = scales.repeat_interleave(group or k, 2)[:, :, :k]
    return ScaledWeight((weight.float() / whole).clamp(-120, 120).to(kind), scales, group)


FLOAT8, INT8 = torch.float8_e4m3fn, torch.int8


@pytest.mark.parametrize(
    ("group", "kind", "tokens", "dtype"),
    [
        (128, FLOAT8, 1, torch.float16),
        (48, INT8, 1, torch.float16),
        (128, FLOAT8, 3, torch.float32),
        (0, INT8, 3, torch.float32),
        *([(128, FLOAT8, 300, torch.bfloat16), (24, FLOAT8, 40, torch.bfloat16)] if CUDA else []),
    ],
)
def test_scaled_experts(group, kind, tokens, dtype):
    """Groups of 48 inputs are cut into those of 16; weights with groups of 24 are expanded."""
    experts, top_k, k, n = (60, 4, 304, 80) if CUDA else (3, 2, 144, 20)
    gate_up, down = (scaled(weight, group, kind) for weight in layer(experts, k, n, torch.float32))
    x, weights, numbers = step(tokens, k, experts, top_k, dtype)
    prepared = moe.prepare_experts(gate_up, down)
    assert (prepared.gate_up.values.dtype == kind) == (group != 24)
    got = moe.experts(x, prepared, weights, numbers, "silu")
    wide = REFERENCE.prepare_experts(expanded(gate_up, torch.float32), expanded(down, torch.float32))
    close(got, REFERENCE.experts(x.float(), wide, weights, numbers, "silu").cpu())


PACKED_BLOCKS = [(1, AloneBlocks(16, 128, 1)), (3, AloneBlocks(64, 4096, 4))]
if CUDA:
    PACKED_BLOCKS += [(2, AloneBlocks(1, 256, 1)), (1, AloneBlocks(4, 2048, 8)), (4, AloneBlocks(8, 1024, 2))]


@pytest.mark.parametrize(("tokens", "blocks"), PACKED_BLOCKS, ids=str)
def test_mxfp4_token_by_token(tokens: int, blocks: AloneBlocks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small and large activations alike; widths that are no multiple of a step; one expert is of another rank."""
    for name in ("PACKED_ALONE_GATE_UP", "PACKED_ALONE_DOWN"):
        monkeypatch.setattr(tuned_moe, name, blocks)
    monkeypatch.setattr(tuned_moe, "PACKED_ALONE_TOKENS", tokens)
    experts, top_k, k, n, dtype = 3, 2, 160, 64, torch.bfloat16 if CUDA else torch.float16
    gate_up, down = mxfp4(experts, 2 * n, k), mxfp4(experts, k, n)
    biases = ExpertBiases(*(torch.randn(experts, size, device=DEVICE).to(dtype) for size in (2 * n, k)))
    prepared = moe.prepare_experts(gate_up, down, biases)
    x, weights, numbers = step(tokens, k, experts, top_k, dtype)
    x *= torch.logspace(-3, 0.5, tokens, device=DEVICE)[:, None].to(dtype)
    numbers[0, 1] = experts
    wide = REFERENCE.prepare_experts(plain(gate_up), plain(down), biases)
    got = moe.experts(x, prepared, weights, numbers, "swiglu_oai")
    close(got, REFERENCE.experts(x.float(), wide, weights, numbers, "swiglu_oai").cpu())
