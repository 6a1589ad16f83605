"""The gated delta rule in Triton, token by token and in chunks, against the reference."""

from __future__ import annotations

import pytest
import torch

from lightllm_mp.kernels import reference
from lightllm_mp.kernels.table import DeltaLayout
from lightllm_mp.kernels.triton.delta.chunks import CHUNK, chunks_of
from lightllm_mp.kernels.triton.delta.gated_delta import gated_delta
from lightllm_mp.kernels.triton.norm_activation import sigmoid_gated
from tests.kernels.delta_step import DeltaStep
from tests.kernels.triton.triton_case import CUDA, DEVICE, DTYPES, close, random

REFERENCE = reference.TABLE
LAYOUTS = [DeltaLayout(1, 2, 24, 40, 1e-6), DeltaLayout(2, 2, 16, 16, 1e-6)]
LARGE = [DeltaLayout(4, 8, 128, 128, 1e-6)]
STATES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
STEPS = {
    "decode": ([1, 1, 1], ()),
    "decode with a save": ([1, 1], ((1, 1),)),
    "mixed": ([1, 66, 1, 3], ()),
    "saves": ([70, 1, 7], ((0, 1), (0, 3), (0, 68), (2, 7))),
}
SLOW = [(LAYOUTS[1], dtype, kind) for dtype in DTYPES for kind in STEPS if (dtype, kind) != (torch.float32, "mixed")]
SLOW += [(LAYOUTS[0], torch.float16, "saves"), (LAYOUTS[0], torch.float16, "decode with a save")]


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS + LARGE if CUDA else LAYOUTS, ids=str)
def test_against_the_reference(layout, dtype, kind):
    if layout in LARGE and dtype == torch.float32:
        pytest.skip("exact products of large heads take a minute to compile")
    if not CUDA and kind != "decode" and (dtype == torch.bfloat16 or (layout, dtype, kind) in SLOW):
        pytest.skip("the interpreter multiplies bfloat16 wrongly and is slow")
    queries, saves = STEPS[kind]
    step = DeltaStep(queries, layout, dtype, saves=saves, device=DEVICE)
    mine, theirs = step.state(), step.state()
    got = step.run(gated_delta, mine)
    wide = DeltaStep(queries, layout, dtype, saves=saves)
    wide.projected = wide.projected.float()
    expected = wide.state()
    close(got, wide.run(REFERENCE.gated_delta, expected))
    error = (mine.recurrent.cpu() - expected.recurrent).norm() / expected.recurrent.norm()
    assert error < STATES[dtype]
    assert torch.equal(mine.conv.cpu(), expected.conv)
    others = [i for i in range(8) if i not in step.rows]
    assert torch.equal(mine.recurrent[others], theirs.recurrent[others])


def test_chunks():
    step = DeltaStep([1, 130, 3], LAYOUTS[0], torch.float32, saves=((1, 64), (1, 100), (2, 3)), device=DEVICE)
    made = chunks_of(step.batch(step.queries))
    first, count, kept = made.tiles.T.tolist()
    whole = [entry for entry in zip(first, count, kept, strict=True) if entry[1]]
    assert whole == [(0, 1, -1), (1, 64, 8), (65, 36, 9), (101, 30, -1), (131, 3, 10)]
    assert made.first.tolist() == [0, 1, 4, 5]
    assert made.token_rows[:, 1].tolist() == [0, *range(130), 0, 1, 2]
    assert not made.apart


def test_single_tokens_have_no_chunks():
    step = DeltaStep([1, CHUNK + 1, 1], LAYOUTS[0], torch.float32, device=DEVICE)
    made = chunks_of(step.batch(step.queries))
    assert made.tiles[made.tiles[:, 1] > 0].tolist() == [[1, CHUNK, -1], [1 + CHUNK, 1, -1]]
    assert made.first.tolist() == [0, 0, 2, 2]
    assert made.apart


def test_the_same_key_again_and_again():
    """Powers of a chunk's matrix would grow without bound; its inverse does not."""
    step = DeltaStep([CHUNK], LAYOUTS[0], torch.float32, device=DEVICE)
    step.projected[:] = step.projected[0]
    step.ba[:] = step.ba.new_tensor([6.0] * 2 + [-9.0] * 2)
    wide = DeltaStep([CHUNK], LAYOUTS[0], torch.float32)
    wide.projected, wide.ba = step.projected.cpu(), step.ba.cpu()
    close(step.run(gated_delta, step.state()), wide.run(REFERENCE.gated_delta, wide.state()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 130])
def test_sigmoid_gate(dtype, width):
    x, gate = random(3, 130, dtype=dtype), random(3, width, dtype=dtype, scale=4.0)
    for by in (gate, gate.float()):
        close(sigmoid_gated(x.to(DEVICE), by.to(DEVICE)), REFERENCE.sigmoid_gated(x.float(), gate))
    assert sigmoid_gated(torch.empty(0, 8, device=DEVICE), torch.empty(0, 8, device=DEVICE)).shape == (0, 8)
