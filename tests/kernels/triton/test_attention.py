"""Attention in Triton against the float32 reference on random data: on a GPU if there is one, else interpreted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lightllm_mp.kernels import reference
from lightllm_mp.kernels.batch import AttentionSchedule, Batch
from lightllm_mp.kernels.table import HeadLayout, LayerKV
from lightllm_mp.kernels.triton import overlay  # after the choice of the interpreter
from lightllm_mp.kernels.triton.attention import schedule, tuned_attention
from tests.kernels.random_batch import RandomStep
from tests.kernels.triton.triton_case import CUDA, DEVICE, DTYPES, STEPS, close, kv_on_device, on_device

TRITON, REFERENCE = overlay.TABLE, reference.TABLE

LAYOUTS = [
    HeadLayout(heads=4, kv_heads=2, head_dim=16, scale=0.25),
    HeadLayout(heads=4, kv_heads=2, head_dim=16, scale=0.5, alibi=(0.5, 0.25, 0.125, 0.0625)),
    HeadLayout(heads=4, kv_heads=2, head_dim=16, scale=0.5, softcap=3.0, window=70),
    HeadLayout(heads=3, kv_heads=3, head_dim=12, scale=0.5, softcap=2.0, alibi=(0.5, 0.01, 0.0)),
    HeadLayout(heads=9, kv_heads=3, head_dim=64, scale=0.125),
    HeadLayout(heads=20, kv_heads=1, head_dim=64, scale=0.125, window=37),
    HeadLayout(heads=2, kv_heads=2, head_dim=128, scale=0.1, window=1),
    HeadLayout(heads=3, kv_heads=3, head_dim=80, scale=0.1, window=64),
    HeadLayout(heads=4, kv_heads=1, head_dim=96, scale=0.1),
    HeadLayout(heads=8, kv_heads=2, head_dim=128, scale=0.1),
    HeadLayout(heads=5, kv_heads=5, head_dim=128, scale=0.1, alibi=(1.0, 0.5, 0.25, 0.125, 0.06)),
    HeadLayout(heads=2, kv_heads=1, head_dim=256, scale=0.06, window=100, softcap=5.0),
    HeadLayout(heads=4, kv_heads=2, head_dim=16, scale=0.25, causal=False),
    HeadLayout(heads=3, kv_heads=3, head_dim=64, scale=0.125, causal=False),
    HeadLayout(heads=4, kv_heads=2, head_dim=16, scale=0.25, image_spans=True),
    HeadLayout(heads=4, kv_heads=2, head_dim=16, scale=0.25, image_spans=True, window=23),
    HeadLayout(heads=2, kv_heads=1, head_dim=256, scale=0.06, image_spans=True, window=100),
    HeadLayout(heads=8, kv_heads=1, head_dim=512, scale=0.04),
]
FEW_LAYOUTS = [LAYOUTS[0], LAYOUTS[2], LAYOUTS[3], LAYOUTS[4], LAYOUTS[9], LAYOUTS[11]]
"""For all other kinds of tensors: compiling takes longer than running."""
SMALL = 16
"""Head dimension up to which the interpreter is fast enough for all kinds of steps."""
EIGHT_BITS = [torch.int8, torch.float8_e4m3fn]


def skip_slow(layout: HeadLayout, dtype: torch.dtype, kind: str) -> None:
    slow = layout.head_dim > SMALL or dtype != torch.float32
    if not CUDA and (dtype == torch.bfloat16 or (slow and kind != "mixed") or layout.head_dim > 64):
        pytest.skip("the interpreter multiplies bfloat16 wrongly and is slow")


def without_the_unused(step: RandomStep, kv: LayerKV) -> LayerKV:
    """A copy in which slots of no sequence hold NaN (for integers their scales do), which must not be read."""
    used = torch.zeros(len(kv.keys), dtype=torch.bool)
    for row, context in zip(step.batch.rows.tolist(), step.batch.context.tolist(), strict=True):
        used[step.table[row, :context].long()] = True
    copy = kv_on_device(kv)
    for x in copy:
        if x is not None and x.dtype.is_floating_point and x.dtype.itemsize > 1:
            x[~used.to(DEVICE)] = float("nan")
    return copy


def no_fallback(*_: object) -> torch.Tensor:
    raise AssertionError("the reference op waits for the device")


@pytest.fixture(autouse=True)
def only_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """No call falls back to the reference: the kernels take all that a family uses."""
    from lightllm_mp.kernels.triton.attention import attention

    class Table:
        attention = staticmethod(no_fallback)

    class Fake:
        TABLE = Table

    monkeypatch.setattr(attention, "reference", Fake)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("kind", STEPS)
def test_attention(dtype, layout, kind):
    skip_slow(layout, dtype, kind)
    step = RandomStep(STEPS[kind], layout, dtype, seed=len(kind))
    got = TRITON.attention(step.q.to(DEVICE), without_the_unused(step, step.kv), on_device(step.batch), layout)
    close(got, REFERENCE.attention(step.q.float(), step.kv, step.batch, layout))


@pytest.mark.parametrize("sizes", [[(1, 200)], [(40, 333), (1, 129)]], ids=str)
def test_what_lies_behind_windows_is_not_read(sizes):
    layout = HeadLayout(heads=4, kv_heads=2, head_dim=16, scale=0.5, window=70)
    step = RandomStep(sizes, layout, torch.float32)
    expected = REFERENCE.attention(step.q, step.kv, step.batch, layout)
    step.spoil_behind_windows()
    got = TRITON.attention(step.q.to(DEVICE), kv_on_device(step.kv), on_device(step.batch), layout)
    close(got, expected)


@pytest.mark.parametrize("stored", EIGHT_BITS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", FEW_LAYOUTS, ids=str)
@pytest.mark.parametrize("kind", STEPS)
def test_attention_over_8_bits(stored, dtype, layout, kind):
    """Against the reference over the same 8 bits: only the rounding of float32 sums differs."""
    skip_slow(layout, dtype, kind)
    if not CUDA and kind != "mixed":
        pytest.skip("the interpreter is slow")
    if CUDA and dtype != torch.bfloat16 and layout.head_dim > SMALL:
        pytest.skip("it takes long to compile, and only the type of the products differs")
    step = RandomStep(STEPS[kind], layout, dtype, seed=len(kind))
    kv = step.stored_as(stored)
    got = TRITON.attention(step.q.to(DEVICE), without_the_unused(step, kv), on_device(step.batch), layout)
    close(got, REFERENCE.attention(step.q.float(), kv, step.batch, layout))


@pytest.mark.parametrize("stored", [None, *EIGHT_BITS], ids=str)
@pytest.mark.parametrize("layout", [LAYOUTS[0], LAYOUTS[2], LAYOUTS[3]], ids=str)
def test_sinks(layout, stored):
    """Contexts shared by several programs count a sink once; sinks far above and below all scores are exact too."""
    layout = replace(layout, sinks=torch.tensor([-200.0, 0.5, 3.0, 200.0])[: layout.heads])
    step = RandomStep(STEPS["mixed"], layout, torch.float32)
    kv = step.kv if stored is None else step.stored_as(stored)
    expected = REFERENCE.attention(step.q, kv, step.batch, layout)
    there = replace(layout, sinks=layout.sinks.to(DEVICE))
    close(TRITON.attention(step.q.to(DEVICE), without_the_unused(step, kv), on_device(step.batch), there), expected)


def test_scales_in_planes():
    step = RandomStep(STEPS["mixed"], LAYOUTS[3], torch.float32)
    kv = step.stored_as(torch.int8)
    got = TRITON.attention(step.q.to(DEVICE), kv_on_device(kv, together=False), on_device(step.batch), LAYOUTS[3])
    close(got, REFERENCE.attention(step.q, kv, step.batch, LAYOUTS[3]))


def test_scales_that_are_neither_together_nor_in_planes():
    step = RandomStep(STEPS["one"], LAYOUTS[0], torch.float32)
    kv = kv_on_device(step.stored_as(torch.int8))
    with pytest.raises(ValueError, match="next to one another"):
        TRITON.attention(step.q.to(DEVICE), kv._replace(value_scales=kv.key_scales), on_device(step.batch), LAYOUTS[0])


@pytest.mark.parametrize("stored", EIGHT_BITS, ids=str)
@pytest.mark.parametrize("magnitude", [2.0**-30, 2.0**30])
def test_queries_beyond_float16(stored, magnitude):
    """Decode's products over 8 bits use float16; a power of two brings queries into its range."""
    layout = HeadLayout(heads=4, kv_heads=2, head_dim=16, scale=0.25)
    step = RandomStep([(1, 100)], layout, torch.bfloat16)
    kv = kv_on_device(step.stored_as(stored))
    got = TRITON.attention(step.q.to(DEVICE), kv, on_device(step.batch), layout)
    moved = replace(layout, scale=layout.scale / magnitude)
    assert torch.equal(TRITON.attention((step.q * magnitude).to(DEVICE), kv, on_device(step.batch), moved), got)


@pytest.mark.parametrize("stored", EIGHT_BITS, ids=str)
@pytest.mark.parametrize(("magnitude", "sink"), [(0.01, 1.0), (1e4, 1.0), (1.0, 1e-7), (1e4, 0.0), (1.0, 1e6)])
def test_values_beyond_float16(stored, magnitude, sink):
    """Decode rounds weights to float16 with their values' scales, which have any magnitude: those of all tokens, and of
    one token that gets most attention."""
    layout = HeadLayout(heads=4, kv_heads=2, head_dim=16, scale=0.25)
    step = RandomStep([(1, 100)], layout, torch.bfloat16)
    first = step.table[1, 0]
    step.values *= magnitude
    step.values[first] *= sink
    step.keys[first] = step.q.view(2, 2, 16)[:, 0] * 10
    kv = step.stored_as(stored)
    got = TRITON.attention(step.q.to(DEVICE), kv_on_device(kv), on_device(step.batch), layout)
    close(got, REFERENCE.attention(step.q.float(), kv, step.batch, layout))


@pytest.mark.parametrize("new", [1, 8])
@pytest.mark.parametrize("first", ["single", "chunk"])
def test_order_of_sequences_does_not_matter(new, first):
    """Chunks may stand before, between and after sequences with one new token."""
    layout = HeadLayout(heads=2, kv_heads=1, head_dim=16, scale=0.25)
    sizes = [(1, 150), (30, 90), (1, 3), (new, 40), (1, 300)]
    step = RandomStep(sizes if first == "single" else sizes[::-1], layout, torch.float32)
    got = TRITON.attention(step.q.to(DEVICE), kv_on_device(step.kv), on_device(step.batch), layout)
    close(got, REFERENCE.attention(step.q, step.kv, step.batch, layout))


@pytest.mark.parametrize("start", [0, 1, 3])
@pytest.mark.parametrize("sequences", [1, 3, 300 if CUDA else 20])
def test_shares_cover_every_block_once(sequences, start):
    """Every unit of the joined contexts belongs to one program, which starts at the sequence of its first unit."""
    layout = HeadLayout(heads=2, kv_heads=2, head_dim=64, scale=1.0)
    table = torch.zeros((sequences, 400), dtype=torch.int32, device=DEVICE)
    contexts = torch.randint(1, 400, (sequences,)).tolist()
    contexts[-1] = 200
    new = [1] * (sequences - 1) + [1 if sequences == 1 else 100]
    batch = Batch.of(new, contexts, list(range(sequences)), table)
    blocks = tuned_attention.DecodeBlocks(32, 4, 2, 4, start)
    shares = schedule.decode_shares(batch, layout, blocks, 2)
    owner = [i for i, c in enumerate(contexts) if new[i] == 1 for _ in range(start - (-c // 32))]
    total, *plan = shares.plan.tolist()
    assert total == len(owner)
    active = min(shares.programs, total)
    for p in range(active):
        at, end = p * total // active, (p + 1) * total // active
        assert at < end <= at + -(-total // active)
        assert plan[p] == owner[at]
    begins = plan[shares.programs :]
    assert begins == [sum(o < i for o in owner) for i in range(sequences + 1)]


def test_lengths_may_change_in_place():
    """A step's tensors may get new numbers: a new batch of them uses these, in all its layers."""
    layout = HeadLayout(heads=4, kv_heads=2, head_dim=64, scale=0.125)
    step = RandomStep([(1, 350), (1, 20)], layout, torch.float32)
    batch, first, second = on_device(step.batch), step.keys.to(DEVICE), step.keys.to(DEVICE) + 1
    q, values = step.q.to(DEVICE), step.values.to(DEVICE)
    for contexts in ([350, 20], [3, 20], [200, 1]):
        batch.context.copy_(torch.tensor(contexts))
        step.batch.context.copy_(torch.tensor(contexts))
        batch = replace(batch, schedule=AttentionSchedule())
        for keys in (first, second):
            got = TRITON.attention(q, LayerKV(keys, values), batch, layout)
            close(got, REFERENCE.attention(step.q, LayerKV(keys.cpu(), step.values), step.batch, layout))


def test_a_step_is_scheduled_once_for_layers_of_a_kind():
    """Windows and heads make kinds of layers; the schedule belongs to the batch, and two batches share nothing."""
    wide, narrow = LAYOUTS[0], replace(LAYOUTS[0], window=20)
    step = RandomStep([(1, 90), (20, 30), (1, 5)], wide, torch.float32)
    kv, batch = kv_on_device(step.kv), on_device(step.batch)
    for layout in (wide, narrow, wide):
        TRITON.attention(step.q.to(DEVICE), kv, batch, layout)
    shares = list(batch.schedule.decode.values())
    assert (len(shares), len(batch.schedule.prefill)) == (2, 1)
    assert all(not share.arrived.any() for share in shares)
    TRITON.attention(step.q.to(DEVICE), kv, batch, wide)
    assert list(batch.schedule.decode.values()) == shares
    assert not on_device(batch).schedule.decode


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a GPU")
@pytest.mark.parametrize("stored", [torch.bfloat16, *EIGHT_BITS], ids=str)
@pytest.mark.parametrize("layout", [LAYOUTS[1], LAYOUTS[2], LAYOUTS[9], LAYOUTS[10]], ids=str)
def test_nothing_waits_for_the_device(layout, stored):
    step = RandomStep([(1, 350), (1, 20), (30, 50)], layout, torch.bfloat16)
    kv = kv_on_device(step.kv if stored == torch.bfloat16 else step.stored_as(stored))
    arguments = (step.q.cuda(), kv, on_device(step.batch), layout)
    TRITON.attention(*arguments)
    arguments[2].schedule = AttentionSchedule()
    torch.cuda.set_sync_debug_mode("error")
    try:
        TRITON.attention(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a GPU")
@pytest.mark.parametrize("stored", [None, torch.int8], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [LAYOUTS[9], LAYOUTS[10], LAYOUTS[11]], ids=str)
def test_one_graph_serves_all_lengths(dtype, layout, stored):
    """A captured decode step of two layers, replayed with new lengths, gives the same bits as without a graph."""
    most = [390, 1, 100, 64]
    step = RandomStep([(1, length) for length in most], layout, dtype)
    batch, q = on_device(step.batch), step.q.cuda()
    kv = step.kv if stored is None else step.stored_as(stored)
    layers = [kv_on_device(kv), kv_on_device(kv)._replace(values=kv.values.roll(1, 0).cuda())]

    def attend() -> list[torch.Tensor]:
        new = replace(batch, schedule=AttentionSchedule())
        return [TRITON.attention(q, layer, new, layout) for layer in layers]

    attend()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = attend()
    for seed in range(20):
        contexts = torch.randint(1, 391, (4,), generator=torch.Generator().manual_seed(seed))
        contexts = torch.minimum(contexts, torch.tensor(most)).int()
        batch.context.copy_(contexts)
        step.batch.context.copy_(contexts)
        for result in results:
            result.fill_(float("nan"))
        graph.replay()
        for layer, got in zip(layers, results, strict=True):
            wide = LayerKV(*(None if x is None else x.cpu() for x in layer))
            close(got, REFERENCE.attention(step.q.float(), wide, step.batch, layout))
        for got, again in zip([result.clone() for result in results], attend(), strict=True):
            assert torch.equal(got, again)
