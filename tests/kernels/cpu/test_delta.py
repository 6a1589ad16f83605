"""The gated delta rule in C against the reference; a token's result does not depend on the split of the work."""

from __future__ import annotations

import pytest
import torch

from lightllm_mp.kernels import reference
from lightllm_mp.kernels.cpu import overlay, runtime
from lightllm_mp.kernels.table import DeltaLayout
from tests.kernels.cpu.test_ops import DTYPES, close
from tests.kernels.delta_step import DeltaStep

REFERENCE = reference.TABLE
CPU = overlay.table()
pytestmark = pytest.mark.skipif(CPU is None, reason="the C extension is not built")
LAYOUTS = [DeltaLayout(2, 4, 32, 48, 1e-6), DeltaLayout(3, 3, 16, 16, 1e-6), DeltaLayout(1, 2, 128, 128, 1e-6)]


@pytest.fixture(autouse=True, params=[("", 1), *((name, 2) for name in (runtime.levels() if CPU else []))], ids=str)
def level_and_threads(request):
    level, threads = request.param
    best = runtime.level()
    runtime.use_level(level or best)
    overlay.set_threads(threads)
    yield
    runtime.use_level(best)
    overlay.set_threads(1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_against_the_reference(dtype, layout):
    saves = ((0, 1), (0, 33), (0, 40), (2, 2))
    step = DeltaStep([40, 1, 2, 3], layout, dtype, saves=saves)
    mine, theirs = step.state(), step.state()
    close(step.run(CPU.gated_delta, mine), step.run(REFERENCE.gated_delta, theirs), dtype)
    close(mine.recurrent, theirs.recurrent, torch.float32)
    assert torch.equal(mine.conv, theirs.conv)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 2, 7, 32])
def test_chunks_change_no_bit(dtype, size):
    step = DeltaStep([70, 3, 1], LAYOUTS[0], dtype)
    whole, cut = step.state(), step.state()
    out = step.run(CPU.gated_delta, whole)
    assert torch.equal(step.run_in_chunks(CPU.gated_delta, cut, size), out)
    assert torch.equal(cut.recurrent, whole.recurrent)
    assert torch.equal(cut.conv, whole.conv)


def test_a_kept_state_is_that_of_a_shorter_step():
    step = DeltaStep([50], LAYOUTS[0], torch.float32, saves=((0, 19),))
    state, shorter = step.state(), step.state()
    step.run(CPU.gated_delta, state)
    short = DeltaStep([50], LAYOUTS[0], torch.float32)
    short.projected, short.ba, short.queries = short.projected[:19].contiguous(), short.ba[:19].contiguous(), [19]
    short.run(CPU.gated_delta, shorter)
    assert torch.equal(state.recurrent[8], shorter.recurrent[step.rows[0]])
    assert torch.equal(state.conv[8], shorter.conv[step.rows[0]])


def test_dims_that_the_kernel_does_not_take():
    step = DeltaStep([5, 1], DeltaLayout(1, 2, 8, 24, 1e-6), torch.float32)
    mine, theirs = step.state(), step.state()
    assert torch.equal(step.run(CPU.gated_delta, mine), step.run(REFERENCE.gated_delta, theirs))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 100])
def test_sigmoid_gate(dtype, width):
    x, gate = torch.randn(300, 100).to(dtype), (torch.randn(300, width) * 4).to(dtype)
    close(CPU.sigmoid_gated(x, gate), REFERENCE.sigmoid_gated(x, gate), dtype)
    close(CPU.sigmoid_gated(x, gate.float()), REFERENCE.sigmoid_gated(x, gate), dtype)
    alone = torch.cat([CPU.sigmoid_gated(x[i : i + 1], gate[i : i + 1]) for i in range(300)])
    assert torch.equal(alone, CPU.sigmoid_gated(x, gate))
