"""The mock worker gives the answers of `expected`, and notices every wrong slot."""

from __future__ import annotations

import numpy as np
import pytest

from lightllm_mp.messages import Sampling
from lightllm_mp.plan import PlanBuilder
from tests.scheduler.harness import harness, prompt, request
from tests.scheduler.mock_worker import MockWorker, WrongSlot, expected

IDS = np.array(prompt(12), np.int32)


def worker(checks: bool = True) -> MockWorker:
    return MockWorker(rows=2, width=32, kv_tokens=40, vocab_size=60, checks=checks)


def first_plan(step: int = 0, row: int = 0, slots: int = 0) -> PlanBuilder:
    plan = PlanBuilder(step)
    plan.setup(row, len(IDS), Sampling(seed=0))
    plan.write_ids(row, 0, IDS)
    plan.write_slots(row, 0, np.arange(slots, slots + len(IDS)))
    plan.add(row, 0, len(IDS), sample=True)
    return plan


def decode(step: int, slot: int, position: int) -> bytes:
    plan, at = PlanBuilder(step), np.array([position])
    plan.write_slot_each(np.array([0]), at, np.array([slot]))
    plan.add_each(np.array([0]), at)
    return plan.pack()


@pytest.mark.parametrize("checks", [False, True])
def test_it_answers_as_expected(checks: bool) -> None:
    mock = worker(checks)
    answers = [mock.step(first_plan().pack())] + [mock.step(decode(n, 20 + n, 11 + n)) for n in (1, 2, 3)]
    rules = Sampling(seed=0, max_new_tokens=4, min_new_tokens=0)
    want = expected(IDS.tolist(), rules, eos_ids=(), vocab_size=60, longest=99)
    assert [int(np.frombuffer(answer.ids, "<i4")[0]) for answer in answers] == want
    assert [answer.step for answer in answers] == [0, 1, 2, 3]


def test_an_overwritten_slot_is_noticed() -> None:
    mock = worker()
    mock.step(first_plan().pack())
    with pytest.raises(WrongSlot):
        mock.step(decode(1, 5, 12))


def test_an_overwritten_last_slot_changes_the_answer_without_checks() -> None:
    sound, damaged = worker(checks=False), worker(checks=False)
    for mock in (sound, damaged):
        mock.step(first_plan().pack())
    damaged.step(first_plan(step=1, row=1, slots=11).pack())
    assert sound.step(decode(2, 30, 12)).ids != damaged.step(decode(2, 30, 12)).ids


def test_a_slot_of_another_prefix_is_noticed() -> None:
    mock = worker()
    mock.step(first_plan().pack())
    plan = PlanBuilder(1)
    plan.setup(1, 13, Sampling(seed=0))
    plan.write_ids(1, 0, np.append(IDS[::-1], 4))
    plan.write_slots(1, 0, np.append(np.arange(12), 20))
    plan.add(1, 12, 1, sample=True)
    with pytest.raises(WrongSlot, match="wrong content"):
        mock.step(plan.pack())


def test_an_id_that_was_not_uploaded_is_noticed() -> None:
    mock = worker()
    plan = PlanBuilder(0)
    plan.setup(0, 4, Sampling(seed=0))
    plan.write_ids(0, 0, IDS[:3])
    plan.write_slots(0, 0, np.arange(4))
    plan.add(0, 0, 4, sample=True)
    with pytest.raises(WrongSlot, match="never written"):
        mock.step(plan.pack())


def test_without_checks_a_whole_run_is_the_same() -> None:
    outputs = []
    for checks in (True, False):
        h = harness(1)
        h.worker = MockWorker(rows=8, width=200, kv_tokens=400, vocab_size=60, checks=checks)
        h.add(*[request(rid, prompt(rid * 9, rid), temperature=1.0, n=2) for rid in (2, 4, 6)])
        outputs.append(h.run().ids)
    assert outputs[0] == outputs[1]
