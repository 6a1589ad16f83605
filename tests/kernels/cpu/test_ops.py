"""The C extension against the reference ops on random data; a row's bits do not depend on the other rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lightllm_mp.kernels import reference
from lightllm_mp.kernels.cpu import overlay, runtime
from lightllm_mp.kernels.cpu.attention import MAX_HEAD_DIM
from lightllm_mp.kernels.table import ExpertBiases, HeadLayout, HeadNorms, LayerKV, Norm, Rotation, Routing
from tests.kernels.random_batch import RandomStep, image
from tests.kernels.routings import NAMES, ROUTINGS

REFERENCE = reference.TABLE
CPU = overlay.table()
pytestmark = pytest.mark.skipif(CPU is None, reason="the C extension is not built")

DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
"""Largest allowed difference between results of size about 1: bfloat16 results are rounded once on both sides."""


@pytest.fixture(autouse=True, params=[("", 1), *((name, 2) for name in (runtime.levels() if CPU else []))], ids=str)
def level_and_threads(request):
    """The processor's best instructions on one thread, and every level that it has on two."""
    level, threads = request.param
    best = runtime.level()
    runtime.use_level(level or best)
    overlay.set_threads(threads)
    yield
    runtime.use_level(best)
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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [64, 112, 100, 7])
@pytest.mark.parametrize(("kind", "biased"), [("rms", False), ("rms", True), ("layer", False), ("layer", True)])
@pytest.mark.parametrize("wide", [False, True], ids=["own weights", "float32 weights"])
def test_norms(dtype, n, kind, biased, wide):
    x, residual = torch.randn(300, n).to(dtype), torch.randn(300, n).to(dtype) + 1
    weights = torch.float32 if wide else dtype
    by = Norm(torch.randn(n).to(weights), 1e-5, torch.randn(n).to(weights) if biased else None, kind)
    close(CPU.norm(x, by), REFERENCE.norm(x, by), dtype)
    mine, theirs = residual.clone(), residual.clone()
    close(CPU.add_norm(x, mine, by), REFERENCE.add_norm(x, theirs, by), dtype)
    assert torch.equal(mine, theirs)
    alone = torch.cat([CPU.norm(row.unsqueeze(0).contiguous(), by) for row in x])
    assert torch.equal(alone, CPU.norm(x, by))


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_with_a_weight_for_each_head(dtype):
    x = torch.randn(70, 3, 24).to(dtype)
    by = Norm(torch.randn(3, 24).to(dtype), 1e-5, torch.randn(3, 24).to(dtype), "layer")
    close(CPU.norm(x, by), REFERENCE.norm(x, by), dtype)


def large_and_small(n: int) -> torch.Tensor:
    x = torch.randn(300, 2 * n) * 6
    x[0, 0], x[1, 1], x[2, 2] = -200.0, 200.0, 0.0
    return x


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_over_all_heads(dtype):
    """A token's result does not depend on the others, and the sums may cover more heads than these."""
    layout = HeadLayout(heads=6, kv_heads=2, head_dim=32, scale=1.0)
    step = RandomStep([(3, 3), (70, 90)], layout, dtype)
    sums = CPU.head_squares(step.qkv, layout)
    close(sums, REFERENCE.head_squares(step.qkv, layout), torch.float32)
    alone = [CPU.head_squares(row.unsqueeze(0).contiguous(), layout) for row in step.qkv]
    assert torch.equal(torch.cat(alone, 1), sums)
    squares = sums / torch.tensor([[400.0], [64.0]])
    norms = HeadNorms(
        *(Norm(torch.rand(n, 32) + 0.5, 1e-5, None, "rms", s) for n, s in zip((6, 2), squares, strict=True))
    )
    rotation = Rotation(torch.rand(100, 8), torch.rand(100, 8))
    mine = LayerKV(step.keys.clone(), step.values.clone())
    got = CPU.rotary_kv_write(step.qkv.clone(), rotation, mine, step.batch, layout, norms)
    close(got, REFERENCE.rotary_kv_write(step.qkv.clone(), rotation, step.kv, step.batch, layout, norms), dtype)
    close(mine.keys, step.keys, dtype)
    close(mine.values, step.values, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [64, 100])
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "quick_gelu", "relu"])
def test_activations(dtype, n, activation):
    x = large_and_small(n).to(dtype)
    close(CPU.gated(x, activation), REFERENCE.gated(x, activation), dtype)
    whole = CPU.activate(x, activation)
    close(whole, REFERENCE.activate(x, activation), dtype)
    assert torch.equal(torch.cat([CPU.activate(row.unsqueeze(0).contiguous(), activation) for row in x]), whole)


@pytest.mark.parametrize("dtype", DTYPES)
def test_clamped_swiglu(dtype):
    """Both halves are limited; NaN stays NaN."""
    x = large_and_small(100).to(dtype)
    x[0, 150], x[0, 151] = 200.0, -200.0
    close(CPU.gated(x, "swiglu_oai"), REFERENCE.gated(x, "swiglu_oai"), dtype)
    x[0, 3] = x[1, 104] = float("nan")
    got = CPU.gated(x, "swiglu_oai").isnan()
    assert got[0, 3]
    assert got[1, 4]
    assert got.sum() == 2


@pytest.mark.parametrize(("experts", "how"), ROUTINGS, ids=NAMES)
def test_route(experts, how):
    logits = torch.randn(700, experts).argsort(-1) * 0.05  # no two values are nearly equal
    weights, numbers = CPU.route(logits, how)
    expected, who = REFERENCE.route(logits, how)
    assert torch.equal(numbers, who)
    assert numbers.dtype == torch.int32
    assert torch.allclose(weights, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_equal_weights_go_to_the_smaller_number(sigmoid):
    logits = torch.zeros(3, 16)
    logits[1, 5] = 1.0
    logits[2] = float("nan")
    _, numbers = CPU.route(logits, Routing(4, True, sigmoid=sigmoid))
    assert numbers.tolist() == [[0, 1, 2, 3], [5, 0, 1, 2], [0, 1, 2, 3]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("experts", "top_k", "k", "n"), [(4, 2, 48, 80), (9, 3, 40, 33), (32, 4, 64, 96), (1, 1, 7, 5)]
)
@pytest.mark.parametrize("activation", ["silu", "swiglu_oai"])
def test_experts(dtype, experts, top_k, k, n, activation):
    """Near the float32 reference; bitwise the same for a token alone and among others."""
    gate_up = (torch.randn(experts, 2 * n, k) * k**-0.5).to(dtype)
    down = (torch.randn(experts, k, n) * n**-0.5).to(dtype)
    biases = ExpertBiases()
    if activation == "swiglu_oai":
        biases = ExpertBiases(torch.randn(experts, 2 * n).to(dtype), torch.randn(experts, k).to(dtype))
    prepared, x = CPU.prepare_experts(gate_up, down, biases), torch.randn(150, k).to(dtype)
    weights, numbers = CPU.route(torch.randn(150, experts), Routing(top_k, True))
    whole = CPU.experts(x, prepared, weights, numbers, activation)
    wide = REFERENCE.prepare_experts(gate_up.float(), down.float(), biases)
    close(whole, REFERENCE.experts(x.float(), wide, weights, numbers, activation).to(dtype), dtype)
    for m in (1, 2, 7, 33, 100):
        part = slice(5, 5 + m)
        got = CPU.experts(x[part].contiguous(), prepared, weights[part].clone(), numbers[part].clone(), activation)
        assert torch.equal(got, whole[part])
    assert CPU.experts(x[:0], prepared, weights[:0], numbers[:0], activation).shape == (0, k)


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
    HeadLayout(heads=4, kv_heads=2, head_dim=64, scale=0.3, softcap=5.0),
    HeadLayout(heads=4, kv_heads=2, head_dim=32, scale=0.2, alibi=(0.5, 0.25, 0.0625, 0.004)),
    HeadLayout(heads=3, kv_heads=3, head_dim=80, scale=0.2, alibi=(0.7, 0.1, 0.01), softcap=3.0, window=50),
    HeadLayout(heads=8, kv_heads=2, head_dim=512, scale=0.04),
    HeadLayout(heads=2, kv_heads=1, head_dim=24, scale=0.2),
]


SPANS = [
    HeadLayout(heads=4, kv_heads=2, head_dim=32, scale=0.2, image_spans=True),
    HeadLayout(heads=4, kv_heads=1, head_dim=64, scale=0.2, image_spans=True, window=40, softcap=3.0),
    HeadLayout(heads=2, kv_heads=1, head_dim=24, scale=0.2, image_spans=True, window=40),
]


LATENTS = [
    HeadLayout(heads=40, kv_heads=1, head_dim=576, scale=0.07, value_dim=512),
    HeadLayout(heads=34, kv_heads=1, head_dim=48, scale=0.2, value_dim=32),
]
"""Values are the first components of the keys."""


ENCODERS = [
    HeadLayout(heads=4, kv_heads=4, head_dim=32, scale=0.2, causal=False),
    HeadLayout(heads=6, kv_heads=2, head_dim=64, scale=0.125, causal=False),
    HeadLayout(heads=2, kv_heads=1, head_dim=24, scale=0.2, causal=False),
]


def with_sinks(layout: HeadLayout) -> HeadLayout:
    return replace(layout, sinks=torch.linspace(-3.0, 4.0, layout.heads))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [*LAYOUTS, *ENCODERS, *SPANS, *LATENTS, *map(with_sinks, LAYOUTS[:4])], ids=str)
def test_attention(dtype, layout):
    step = RandomStep([(1, 1), (130, 130), (1, 200), (70, 333), (5, 64), (3, 129)], layout, dtype)
    arguments = (step.q, step.kv, step.batch, layout)
    close(CPU.attention(*arguments), REFERENCE.attention(*arguments), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout.window], ids=str)
def test_what_lies_behind_windows_is_not_read(dtype, layout):
    step = RandomStep([(1, 1), (130, 130), (1, 200), (70, 333), (3, 129)], layout, dtype)
    expected = [ops.attention(step.q, step.kv, step.batch, layout) for ops in (CPU, REFERENCE)]
    step.spoil_behind_windows()
    assert torch.isnan(step.keys).any()
    assert torch.equal(CPU.attention(step.q, step.kv, step.batch, layout), expected[0])
    assert torch.equal(REFERENCE.attention(step.q, step.kv, step.batch, layout), expected[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [*LAYOUTS[:-1], *LATENTS[1:], with_sinks(LAYOUTS[1])], ids=str)
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


@pytest.mark.parametrize(
    "layout",
    [LAYOUTS[1], replace(LAYOUTS[2], window=2100), LATENTS[1], with_sinks(replace(LAYOUTS[0], kv_heads=1))],
    ids=str,
)
def test_long_contexts_are_divided_among_threads(layout):
    """A token's keys are taken in segments of 2,048 by several threads. The bits are those of one thread, and of the
    token in a longer chunk, which is not divided."""
    step = RandomStep([(7, 4101)], layout, torch.bfloat16)
    whole = CPU.attention(step.q, step.kv, step.batch, layout)
    close(whole, REFERENCE.attention(step.q, step.kv, step.batch, layout), torch.bfloat16)
    for threads in (1, 2, 5):
        overlay.set_threads(threads)
        for token in (0, 3, 6):  # the last keys are the first of a segment, and more
            q, batch = step.part(0, token, token + 1)
            assert torch.equal(CPU.attention(q, step.kv, batch, layout), whole[token : token + 1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", SPANS[:-1], ids=str)
def test_attention_of_whole_images_does_not_depend_on_the_cut(dtype, layout):
    sizes = [(130, 130), (70, 333), (1, 200)]
    step = RandomStep(sizes, layout, dtype)
    whole = CPU.attention(step.q, step.kv, step.batch, layout)
    causal = CPU.attention(step.q, step.kv, step.batch, replace(layout, image_spans=False))
    for sequence, (new, _) in enumerate(sizes):
        first, (begin, after) = int(step.batch.seq_start[sequence]), image(new)
        for start, end in ((0, begin), (begin, after), (after, new)):
            if start < end:
                q, batch = step.part(sequence, start, end)
                assert torch.equal(CPU.attention(q, step.kv, batch, layout), whole[first + start : first + end])
        assert torch.equal(whole[first : first + begin], causal[first : first + begin])
        assert new == 1 or not torch.equal(whole[first + begin], causal[first + begin])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ENCODERS[:-1], ids=str)
def test_attention_in_both_directions_does_not_depend_on_companions(dtype, layout):
    sizes = [(130, 130), (1, 1), (70, 70), (64, 64)]
    step = RandomStep(sizes, layout, dtype)
    whole = CPU.attention(step.q, step.kv, step.batch, layout)
    for sequence, (new, _) in enumerate(sizes):
        first = int(step.batch.seq_start[sequence])
        q, batch = step.part(sequence, 0, new)
        assert torch.equal(CPU.attention(q, step.kv, batch, layout), whole[first : first + new])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_product_for_each_head(dtype):
    """Near the reference, also for views; bitwise the same for a token alone and among others."""
    weight, x = torch.randn(6, 40, 24).to(dtype), torch.randn(70, 6, 36).to(dtype)[..., 8:32]
    packed = CPU.prepare_heads(weight)
    whole = CPU.linear_heads(x, packed)
    expected = REFERENCE.linear_heads(x.float(), REFERENCE.prepare_heads(weight.float()))
    close(whole.contiguous(), expected.to(dtype), dtype)
    assert torch.equal(torch.cat([CPU.linear_heads(row.unsqueeze(0), packed) for row in x]), whole)


def of_one_projection(pictures: int, length: int, heads: int, dim: int, dtype: torch.dtype) -> list[torch.Tensor]:
    return list(torch.randn(pictures, length, 3, heads, dim).to(dtype).unbind(2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("pictures", "length", "heads", "dim"),
    [(2, 145, 4, 64), (3, 33, 2, 16), (1, 200, 3, 80), (2, 70, 2, 104), (1, 64, 1, 256), (5, 1, 2, 8), (1, 9, 1, 520)],
)
def test_full_attention(dtype, pictures, length, heads, dim):
    """Near the float32 reference; bitwise the same for an image alone and among others."""
    q, k, v = of_one_projection(pictures, length, heads, dim, dtype)
    whole = CPU.full_attention(q, k, v)
    close(whole, REFERENCE.full_attention(q.float(), k.float(), v.float()).to(dtype), dtype)
    if dim <= MAX_HEAD_DIM:
        alone = [CPU.full_attention(q[i : i + 1], k[i : i + 1], v[i : i + 1]) for i in range(pictures)]
        assert torch.equal(torch.cat(alone), whole)


@pytest.mark.parametrize("dtype", DTYPES)
def test_full_attention_of_shared_queries(dtype):
    """As a resampler's: fewer queries than keys, one set for all images, keys and values from two projections."""
    q = torch.randn(1, 37, 2, 128).to(dtype).expand(3, -1, -1, -1)
    k, v = torch.randn(3, 100, 2, 128).to(dtype), torch.randn(3, 100, 4, 128).to(dtype)[:, :, 1:3]
    got = CPU.full_attention(q, k, v)
    assert got.shape == (3, 37, 256)
    close(got, REFERENCE.full_attention(q.float(), k.float(), v.float()).to(dtype), dtype)


EIGHT_BITS = [torch.int8, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stored", EIGHT_BITS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS[1:8:3], ids=str)
def test_attention_over_eight_bits(dtype, stored, layout):
    step = RandomStep([(1, 1), (70, 130), (1, 200), (5, 64)], layout, dtype)
    arguments = (step.q, step.stored_as(stored), step.batch, layout)
    whole = CPU.attention(*arguments)
    close(whole, REFERENCE.attention(*arguments), dtype)
    q, batch = step.part(1, 33, 40)
    assert torch.equal(CPU.attention(q, arguments[1], batch, layout), whole[34:41])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stored", EIGHT_BITS, ids=str)
@pytest.mark.parametrize("head_dim", [64, 24])
def test_keys_and_values_are_rounded_to_eight_bits(dtype, stored, head_dim):
    """Rounded bit for bit as in the reference, unless a rotated key itself differs in its last bit."""
    layout = HeadLayout(heads=4, kv_heads=2, head_dim=head_dim, scale=1.0)
    step = RandomStep([(300, 350), (1, 7)], layout, dtype)
    step.qkv[5] *= 1e-6
    step.qkv[6] = 0
    angles = torch.zeros(400, head_dim // 2)
    rotation = Rotation(angles.cos(), angles.sin())
    mine, theirs = step.stored_as(stored), step.stored_as(stored)
    CPU.rotary_kv_write(step.qkv.clone(), rotation, mine, step.batch, layout, None)
    REFERENCE.rotary_kv_write(step.qkv.clone(), rotation, theirs, step.batch, layout, None)
    for got, expected in zip(mine, theirs, strict=True):
        assert torch.equal(got.view(torch.uint8), expected.view(torch.uint8))
