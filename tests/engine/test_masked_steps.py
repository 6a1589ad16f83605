"""Only steps with constrained sequences wait for masks."""

from __future__ import annotations

import numpy as np
import pytest

from lightllm_mp.engine import executor as executor_module
from lightllm_mp.messages import Sampling
from lightllm_mp.models.parallel.group import SingleRank
from lightllm_mp.plan import PlanBuilder
from tests.engine.test_executor import GREEDY, HOT, tiny


def guided_plan(prompts: list[list[int]], guided: list[bool], sampling: Sampling = GREEDY) -> bytes:
    """Whole prompts, each in its row, all sampled."""
    builder = PlanBuilder(7)
    for row, (prompt, held) in enumerate(zip(prompts, guided, strict=True)):
        builder.setup(row, len(prompt), sampling, guided=held)
        builder.write_ids(row, 0, np.array(prompt))
        builder.write_slots(row, 0, np.arange(20 * row, 20 * row + len(prompt)))
        builder.add(row, 0, len(prompt), sample=True)
    return builder.pack()


def mask_bits(*allowed: list[int]) -> bytes:
    bits = np.zeros((len(allowed), 64), np.uint8)
    for row, ids in enumerate(allowed):
        bits[row, ids] = 1
    return np.packbits(bits, axis=1, bitorder="little").tobytes()


PROMPTS = [[5, 9], [7, 3, 4], [1, 2], [8, 8]]


@pytest.mark.parametrize("block", [1, 2, 3, 100])
@pytest.mark.parametrize("sampling", [GREEDY, HOT])
def test_a_step_waits_for_its_masks(block: int, sampling: Sampling, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step computes its logits first, and masks change only constrained sequences, in blocks of any size."""
    monkeypatch.setattr(executor_module, "logit_lines", lambda vocab, device: block)
    free, halted = tiny()[1].executor, tiny()[1].executor
    free.submit(guided_plan(PROMPTS, [False] * 4, sampling))
    unheld = np.frombuffer(free.collect().ids, "<i4")
    plan = guided_plan(PROMPTS, [False, True, False, True], sampling)
    halted.submit(plan)
    assert halted.waiting == 7
    assert not halted.pending
    with pytest.raises(RuntimeError, match="waits for masks"):
        halted.submit(plan)
    halted.resume(mask_bits([11, 30], [12]))
    assert halted.waiting is None
    ids = np.frombuffer(halted.collect().ids, "<i4")
    assert ids[[0, 2]].tolist() == unheld[[0, 2]].tolist()
    assert ids[1] in (11, 30)
    assert ids[3] == 12


def test_masks_of_another_size_are_refused() -> None:
    halted = tiny()[1].executor
    halted.submit(guided_plan(PROMPTS, [True] * 4))
    with pytest.raises(ValueError, match="masks of 8 bytes"):
        halted.resume(mask_bits([1]))
    halted.resume(None)
    assert halted.pending


def test_other_ranks_do_not_wait() -> None:
    class Second(SingleRank):
        rank, size = 1, 2

    model, driver = tiny()
    model.group = Second()
    driver.executor.submit(guided_plan(PROMPTS, [True] * 4))
    assert driver.executor.waiting is None
    assert driver.executor.pending


def test_a_reset_forgets_the_step_that_waits() -> None:
    halted = tiny()[1].executor
    halted.submit(guided_plan(PROMPTS, [True] * 4))
    halted.reset()
    assert halted.waiting is None
