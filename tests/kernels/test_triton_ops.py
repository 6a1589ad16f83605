"""The Triton ops against float32 reference ops on random data: on a GPU where there is one, else interpreted."""

from __future__ import annotations

import os
from dataclasses import fields

import pytest
import torch
from random_batch import RandomStep

from lightllm_mp.kernels import reference
from lightllm_mp.kernels.batch import Batch
from lightllm_mp.kernels.table import HeadLayout, LayerKV, Norm, Rotation

CUDA = torch.cuda.is_available()
if not CUDA:
    os.environ["TRITON_INTERPRET"] = "1"
triton = pytest.importorskip("triton", reason="triton is not installed")

from lightllm_mp.kernels.triton import overlay, schedule  # noqa: E402 - after the choice of the interpreter


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
TRITON, REFERENCE = overlay.TABLE, reference.TABLE
DTYPES = list(overlay.TYPES)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Largest error allowed as norm(difference) / norm(expected): rounding of inputs is not in it, of results is."""


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    got, dtype = got.cpu(), got.dtype
    assert got.shape == expected.shape
    assert torch.isfinite(got).all()
    error = (got.double() - expected.double()).norm() / expected.double().norm()
    assert error.item() < TOLERANCE[dtype]


def on_device(batch: Batch) -> Batch:
    moved = {f.name: getattr(batch, f.name) for f in fields(Batch)}
    return Batch(**{name: x.to(DEVICE, copy=True) if isinstance(x, torch.Tensor) else x for name, x in moved.items()})


def random(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(shape) * scale).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [7, 64, 100, 4096])
@pytest.mark.parametrize(("kind", "biased"), [("rms", False), ("layer", False), ("layer", True)])
def test_norms(dtype, n, kind, biased):
    x, residual, weight = random(5, n, dtype=dtype), random(5, n, dtype=dtype), random(n, dtype=dtype)
    bias = random(n, dtype=dtype) if biased else None
    by = Norm(weight.float(), 1e-5, None if bias is None else bias.float(), kind)
    on_gpu = Norm(weight.to(DEVICE), 1e-5, None if bias is None else bias.to(DEVICE), kind)
    got = TRITON.norm(x.to(DEVICE), on_gpu)
    close(got, REFERENCE.norm(x.float(), by))
    mine = residual.to(DEVICE, copy=True)
    got = TRITON.add_norm(x.to(DEVICE), mine, on_gpu)
    residual += x
    close(got, REFERENCE.norm(residual.float(), by))
    assert torch.equal(mine.cpu(), residual) or (not CUDA and dtype == torch.bfloat16)  # interpreted, it truncates
    close(mine, residual)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [64, 100, 2050])
def test_gated(dtype, n):
    gate_up = random(5, 2 * n, dtype=dtype, scale=4.0)
    gate_up[0, 0], gate_up[1, 1] = -200.0, 200.0
    close(TRITON.gated(gate_up.to(DEVICE), "silu"), REFERENCE.gated(gate_up.float(), "silu"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("tokens", "n", "k"), [(9, 40, 96), (1, 40, 96), (1, 33, 1500)])
def test_linear(dtype, biased, tokens, n, k):
    x, weight = random(tokens, k, dtype=dtype), random(n, k, dtype=dtype, scale=k**-0.5)
    bias = random(n, dtype=dtype) if biased else None
    prepared = TRITON.prepare_linear(weight.to(DEVICE), None if bias is None else bias.to(DEVICE))
    plain = REFERENCE.prepare_linear(weight.float(), None if bias is None else bias.float())
    expected = REFERENCE.linear(x.float(), plain)
    close(TRITON.linear(x.to(DEVICE), prepared), expected)
    logits = TRITON.linear_float(x.to(DEVICE), prepared)
    assert logits.dtype == torch.float32
    close(logits, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "rotated"), [(6, 2, 32, 32), (32, 8, 128, 128), (3, 1, 64, 16), (2, 2, 80, 60)]
)
def test_rotary_kv_write(dtype, heads, kv_heads, head_dim, rotated):
    layout = HeadLayout(heads=heads, kv_heads=kv_heads, head_dim=head_dim, scale=1.0)
    step = RandomStep([(1, 7), (20, 50)], layout, dtype)
    angles = torch.outer(torch.arange(400).float(), torch.rand(rotated // 2))
    cos, sin = angles.cos(), angles.sin()
    keys, values = step.keys.to(DEVICE, copy=True), step.values.to(DEVICE, copy=True)
    got = TRITON.rotary_kv_write(
        step.qkv.to(DEVICE),
        Rotation(cos.to(DEVICE), sin.to(DEVICE)),
        LayerKV(keys, values),
        on_device(step.batch),
        layout,
        None,
    )
    wide_keys = step.keys.float()
    wide = LayerKV(wide_keys, step.values)
    close(got, REFERENCE.rotary_kv_write(step.qkv.float(), Rotation(cos, sin), wide, step.batch, layout, None))
    close(keys, wide_keys)
    assert torch.equal(values.cpu(), step.values)
    untouched = torch.ones(len(keys), dtype=torch.bool)
    untouched[step.batch.slots.long()] = False
    assert torch.equal(keys.cpu()[untouched], step.keys[untouched])


LAYOUTS = [
    HeadLayout(heads=4, kv_heads=2, head_dim=16, scale=0.25),
    HeadLayout(heads=9, kv_heads=3, head_dim=64, scale=0.125),
    HeadLayout(heads=20, kv_heads=1, head_dim=64, scale=0.125, window=37),
    HeadLayout(heads=2, kv_heads=2, head_dim=128, scale=0.1, window=1),
    HeadLayout(heads=3, kv_heads=3, head_dim=80, scale=0.1, window=64),
    HeadLayout(heads=4, kv_heads=1, head_dim=96, scale=0.1),
    HeadLayout(heads=8, kv_heads=2, head_dim=128, scale=0.1),
    HeadLayout(heads=2, kv_heads=1, head_dim=256, scale=0.06, window=100),
]
STEPS = {
    "decode": [(1, 1), (1, 64), (1, 200), (1, 65), (1, 333)],
    "one": [(1, 300)],
    "prefill": [(130, 130), (70, 333), (5, 64), (3, 129)],
    "chunk": [(140, 390)],
    "mixed": [(1, 1), (1, 250), (1, 129), (130, 131), (2, 300)],
}


def attention(step: RandomStep, layout: HeadLayout) -> torch.Tensor:
    """Slots that belong to no sequence hold NaN, which must not be read."""
    used = torch.zeros(len(step.keys), dtype=torch.bool)
    for row, context in zip(step.batch.rows.tolist(), step.batch.context.tolist(), strict=True):
        used[step.table[row, :context].long()] = True
    step.keys[~used] = step.values[~used] = float("nan")
    return TRITON.attention(
        step.q.to(DEVICE), LayerKV(step.keys.to(DEVICE), step.values.to(DEVICE)), on_device(step.batch), layout
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("kind", STEPS)
def test_attention(dtype, layout, kind):
    if not CUDA and (dtype == torch.bfloat16 or (layout.head_dim > 16 and (dtype, kind) != (torch.float32, "mixed"))):
        pytest.skip("the interpreter multiplies bfloat16 wrongly and is slow")
    step = RandomStep(STEPS[kind], layout, dtype, seed=len(kind))
    got = attention(step, layout)
    close(got, REFERENCE.attention(step.q.float(), step.kv, step.batch, layout))


@pytest.mark.parametrize("sequences", [1, 3, 300])
def test_shares_cover_every_block_once(sequences):
    """Every block of the line of contexts belongs to one program, which starts at the sequence that owns it."""
    layout = HeadLayout(heads=2, kv_heads=2, head_dim=64, scale=1.0)
    table = torch.zeros((sequences, 400), dtype=torch.int32, device=DEVICE)
    contexts = torch.randint(1, 400, (sequences,)).tolist()
    contexts[-1] = 200
    new = [1] * (sequences - 1) + [1 if sequences == 1 else 100]
    batch = Batch.of(new, contexts, list(range(sequences)), table)
    shares = schedule.decode_shares(batch, layout, torch.float32)
    keys = schedule.decode_blocks(64, torch.float32).keys
    owner = [i for i, c in enumerate(contexts) if new[i] == 1 for _ in range(-(-c // keys))]
    share, *plan = shares.plan.tolist()
    assert share == max(1, -(-len(owner) // shares.programs))
    for p in range(shares.programs):
        if p * share < len(owner):
            assert plan[p] == owner[p * share]
    begins = plan[shares.programs :]
    assert begins == [sum(o < i for o in owner) for i in range(sequences + 1)]


def test_lengths_may_change_in_place():
    """A step's tensors may be filled anew: the first layer's next call sees the new numbers."""
    layout = HeadLayout(heads=4, kv_heads=2, head_dim=64, scale=0.125)
    step = RandomStep([(1, 350), (1, 20)], layout, torch.float32)
    batch, first, second = on_device(step.batch), step.keys.to(DEVICE), step.keys.to(DEVICE) + 1
    q, values = step.q.to(DEVICE), step.values.to(DEVICE)
    for contexts in ([350, 20], [3, 20], [200, 1]):
        batch.context.copy_(torch.tensor(contexts))
        step.batch.context.copy_(torch.tensor(contexts))
        for keys in (first, second):
            got = TRITON.attention(q, LayerKV(keys, values), batch, layout)
            close(got, REFERENCE.attention(step.q, LayerKV(keys.cpu(), step.values), step.batch, layout))


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a GPU")
def test_nothing_waits_for_the_device():
    layout = HeadLayout(heads=4, kv_heads=2, head_dim=64, scale=0.125)
    step = RandomStep([(1, 350), (1, 20), (30, 50)], layout, torch.bfloat16)
    arguments = (step.q.cuda(), LayerKV(step.keys.cuda(), step.values.cuda()), on_device(step.batch), layout)
    TRITON.attention(*arguments)
    torch.cuda.set_sync_debug_mode("error")
    try:
        TRITON.attention(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_graph_serves_all_lengths(dtype):
    """A captured decode step of two layers, replayed with lengths it has not seen."""
    layout = HeadLayout(heads=8, kv_heads=2, head_dim=128, scale=0.1)
    step = RandomStep([(1, 390), (1, 1), (1, 100), (1, 64)], layout, dtype)
    batch, q, values = on_device(step.batch), step.q.cuda(), step.values.cuda()
    layers = [step.keys.cuda(), step.keys.cuda() * 0.5]

    def attend() -> list[torch.Tensor]:
        return [TRITON.attention(q, LayerKV(keys, values), batch, layout) for keys in layers]

    attend()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = attend()
    for seed in range(20):
        contexts = torch.randint(1, 391, (4,), generator=torch.Generator().manual_seed(seed))
        contexts = torch.minimum(contexts, torch.tensor([390, 1, 100, 64])).int()
        batch.context.copy_(contexts)
        step.batch.context.copy_(contexts)
        for result in results:
            result.fill_(float("nan"))
        graph.replay()
        for keys, got in zip(layers, results, strict=True):
            wide = LayerKV(keys.float().cpu(), step.values.float())
            close(got, REFERENCE.attention(step.q.float(), wide, step.batch, layout))
