"""Logits that are not finite fail only their own sequence, with a typed error."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from lightllm_mp.facts import PooledFacts
from lightllm_mp.messages import StepDone
from lightllm_mp.plan import POOL, SAMPLE, unpack
from tests.scheduler.harness import Harness, harness, prompt, request

both_depths = pytest.mark.parametrize("depth", [0, 1])


def broken(h: Harness, *rids: int, after: int = 0) -> Harness:
    """Let the worker answer NaN for these sequences once they have produced `after` tokens."""
    compute = h.worker.step

    def step(plan: bytes, masks: bytes = b"") -> StepDone:
        done, rows, seqs = compute(plan, masks), h.rows, unpack(plan).seqs
        columns = {}
        for name, flag in (("logprobs", SAMPLE), ("pooled", POOL)):
            values = np.frombuffer(getattr(done, name), "<f4").copy()
            for index, (row, start, count, _) in enumerate(seqs[(seqs[:, 3] & flag) != 0].tolist()):
                if rows.rid[row] in rids and start + count >= rows.prompt[row] + after:
                    values[index] = np.nan
            columns[name] = values.tobytes()
        return replace(done, **columns)

    h.worker.step = step  # type: ignore[method-assign]
    return h


@both_depths
@pytest.mark.parametrize("after", [0, 3])
def test_only_the_broken_sequences_fail(depth: int, after: int) -> None:
    h = broken(harness(depth), 2, 4, after=after)
    h.add(*[request(rid, prompt(20, rid), ignore_eos=True, top_logprobs=rid % 3) for rid in range(1, 6)])
    h.run().check_answers(1, 3, 5)
    assert h.failed.keys() == h.closed == {2, 4}
    for rid in (2, 4):
        assert len(h.ids[rid]) == after
        assert h.ids[rid] == h.answer_of(rid)[:after]
        error = h.failed[rid]
        assert (error.status, error.type, error.code) == (500, "server_error", "invalid_logits")
    assert h.scheduler.gauges()["invalid_logits"] == 2


@both_depths
@pytest.mark.parametrize("window", [0, 8])
def test_the_prefix_tree_gets_nothing_of_a_broken_sequence(depth: int, window: int) -> None:
    """With windows the tree already has some of its positions; these are forgotten."""
    h = broken(harness(depth, window=window), 1)
    h.add(request(1, prompt(60)))
    h.run()
    h.add(request(2, prompt(60)))
    h.run().check_answers(2)
    assert h.opened[2].cached_tokens == 0


@both_depths
def test_answers_of_one_prompt_go_on_beside_a_broken_one(depth: int) -> None:
    """The front ends them. Until then they are ordinary sequences."""
    h = broken(harness(depth), 1)
    h.add(request(1, prompt(40), n=3))
    h.run().check_answers(2, 3)
    assert h.failed.keys() == {1}


@both_depths
def test_a_score_that_is_no_number_fails(depth: int) -> None:
    h = broken(harness(depth, pooled=PooledFacts("score", 1)), 2)
    h.add(*[request(rid, prompt(20, rid), max_new_tokens=0) for rid in (1, 2, 3)])
    h.run()
    assert h.pooled.keys() == {1, 3}
    assert h.failed[2].code == "invalid_logits"
    assert not h.closed


@both_depths
@pytest.mark.parametrize("at", [0, 15, 38])
def test_a_prompt_whose_logits_are_not_finite_fails_where_its_logprobs_are_asked_for(depth: int, at: int) -> None:
    """It also fails if only the logits after its last token are not finite."""
    h = harness(depth, step_tokens=16)
    compute = h.worker.step

    def step(plan: bytes, masks: bytes = b"") -> StepDone:
        done, rows, seqs = compute(plan, masks), h.rows, unpack(plan).seqs
        found = []
        for index, column, top_ids, top_logprobs in done.prompt:
            row, start, _, _ = seqs[index].tolist()
            values = np.frombuffer(column, "<f4").copy()
            if rows.rid[row] == 2 and start <= at < start + len(values):
                values[at - start] = np.nan
            found.append((index, values.tobytes(), top_ids, top_logprobs))
        return replace(done, prompt=tuple(found))

    h.worker.step = step  # type: ignore[method-assign]
    h.add(*[request(rid, prompt(40, rid), ignore_eos=True, prompt_logprobs=1) for rid in (1, 2, 3)])
    h.run().check_answers(1, 3)
    assert h.failed.keys() == {2}
    assert h.failed[2].code == "invalid_logits"
    assert h.ids[2] == []
    assert h.scheduler.gauges()["invalid_logits"] == 1
