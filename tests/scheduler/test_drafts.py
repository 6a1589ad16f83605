"""Draft tokens change only the number of steps."""

from __future__ import annotations

import numpy as np
import pytest

from lightllm_mp.messages import LENGTH, STOP, Guide, StepDone
from lightllm_mp.plan import unpack
from lightllm_mp.scheduler.speculation.drafts import LINES
from tests.scheduler.harness import EOS, Harness, column, harness, mock_worker, prompt, request
from tests.scheduler.mock_drafts import draft_answers

both_depths = pytest.mark.parametrize("depth", [0, 1, 2])


def drafting(depth: int = 0, right: float = 1.0, **changes: object) -> Harness:
    h = harness(depth, **{"draft_tokens": 4, "run_ahead": min(depth, 1), **changes})
    draft_answers(h, np.random.default_rng(7), right)
    return h


def checked(h: Harness) -> Harness:
    """Run to the end and check the bookkeeping at each step."""
    while h.step():
        h.scheduler.check_integrity()
    h.run().check_answers()
    return h


@both_depths
@pytest.mark.parametrize("right", [0.0, 0.5, 0.9, 1.0])
def test_answers_are_those_without(depth: int, right: float) -> None:
    h = drafting(depth, right)
    h.add(*[request(rid, prompt(11, rid), max_new_tokens=50, temperature=float(rid % 2)) for rid in range(1, 8)])
    gauges = checked(h).scheduler.gauges()
    assert gauges["draft_tokens"] >= gauges["accepted_tokens"] >= (gauges["draft_tokens"] if right == 1 else 0) * 0.9
    assert gauges["generation_tokens"] == sum(map(len, h.ids.values()))
    assert not h.scheduler._rows.drafted.any()


@both_depths
def test_right_drafts_save_steps(depth: int) -> None:
    steps = []
    for most in (0, 4):
        h = drafting(depth, draft_tokens=most)
        h.add(request(1, prompt(11), max_new_tokens=100, ignore_eos=True, min_new_tokens=100))
        steps.append(checked(h).scheduler.gauges()["steps"])
    assert steps[1] < steps[0] / (4 if depth == 0 else 1.9)


@pytest.mark.parametrize("most", range(1, 12))
def test_an_answer_ends_at_its_limit(most: int) -> None:
    h = drafting()
    h.add(request(1, prompt(7), max_new_tokens=most, ignore_eos=True))
    checked(h)
    assert len(h.ids[1]) == most
    assert h.finish[1] == LENGTH


@both_depths
def test_nothing_counts_behind_the_id_that_ends_an_answer(depth: int) -> None:
    """End-of-sequence and stop ids are in the middle of a draft."""
    h = drafting(depth, draft_tokens=12)
    stops = [column([id]) for id in range(3, 13)]
    h.add(*[request(i + 1, prompt(9, i), max_new_tokens=80, stop_ids=stop) for i, stop in enumerate(stops)])
    checked(h)
    assert STOP in h.finish.values()
    assert any(h.ids[rid][-1] == EOS for rid in h.ids)


@both_depths
def test_alternatives_and_banned_ids_are_those_of_each_position(depth: int) -> None:
    tops = []
    for right in (0.7, 1.0):
        h = drafting(depth, right)
        h.add(*[request(rid, prompt(9, rid), top_logprobs=2, min_new_tokens=9, max_new_tokens=30) for rid in (1, 2)])
        checked(h)
        assert all(len(h.top[rid]) == len(h.ids[rid]) for rid in (1, 2))
        tops.append(h.top)
    assert tops[0] == tops[1]


@both_depths
def test_many_answers_to_one_prompt(depth: int) -> None:
    h = drafting(depth, 0.8)
    h.add(request(1, prompt(40), n=6, temperature=1.0, max_new_tokens=30))
    checked(h)


@both_depths
def test_constrained_answers_and_those_that_do_not_want_it_have_no_drafts(depth: int) -> None:
    h = drafting(depth)
    h.add(request(1, prompt(11), guide=Guide("regex", "a"), max_new_tokens=30))
    h.add(request(2, prompt(11, 2), speculate=False, max_new_tokens=30))
    assert not checked(h).scheduler.gauges()["draft_tokens"]


@both_depths
def test_prompts_are_computed_beside_drafts(depth: int) -> None:
    h = drafting(depth, 0.9, step_tokens=24)
    h.add(request(1, prompt(9), max_new_tokens=100, ignore_eos=True))
    for rid in range(2, 8):
        for _ in range(4):
            h.step()
        h.add(request(rid, prompt(100, rid), max_new_tokens=5))
    checked(h)
    assert h.scheduler.gauges()["accepted_tokens"]


@both_depths
def test_the_next_turn_finds_accepted_tokens_only(depth: int) -> None:
    h = drafting(depth, 0.6)
    h.add(request(1, prompt(20), max_new_tokens=40, ignore_eos=True))
    checked(h)
    h.add(request(2, [*prompt(20), *h.ids[1], 5, 6], max_new_tokens=20))
    checked(h)
    assert h.opened[2].cached_tokens == 59


@both_depths
@pytest.mark.parametrize("keep_cache", [False, True])
@pytest.mark.parametrize("after", [3, 5, 8])
def test_a_new_epoch_goes_on_in_the_middle_of_a_draft(depth: int, keep_cache: bool, after: int) -> None:
    h = drafting(depth, 0.8)
    h.add(*[request(rid, prompt(20, rid), max_new_tokens=60, ignore_eos=True, temperature=1.0) for rid in (1, 2, 3)])
    for _ in range(after):
        h.step()
    h.scheduler.plan()  # the answer to this plan never comes
    h.scheduler.reset(keep_cache)
    h.scheduler.check_integrity()
    if not keep_cache:
        h.worker = mock_worker(h.scheduler.limits, h.images)
    h.resume()
    checked(h)


@pytest.mark.parametrize("rows", [1, 3, 30])
def test_a_step_has_no_more_lines_than_the_worker_has_room_for(rows: int) -> None:
    h = drafting(draft_tokens=40, rows=rows, step_tokens=200, kv_tokens=4000)
    h.add(*[request(rid, prompt(5, rid), max_new_tokens=90, ignore_eos=True) for rid in range(1, 31)])
    most = 0
    while (plan := h.scheduler.plan()) is not None:
        most = max(most, int((unpack(bytearray(plan)).seqs[:, 2] == 1).sum()))
        h.plans.append(plan)
        h.answer()
        h.listen()
    assert 40 < most <= max(LINES, rows)
    h.run().check_answers()


def test_a_draft_takes_no_slot_that_running_sequences_need_next() -> None:
    h = drafting(kv_tokens=40, draft_tokens=30)
    h.add(request(1, prompt(20), max_new_tokens=18, ignore_eos=True))
    h.add(request(2, prompt(10, 2), max_new_tokens=2, ignore_eos=True))
    checked(h)
    assert not h.scheduler.gauges()["preemptions"]


def test_logits_that_are_not_finite_behind_a_draft_cost_no_token_before_them() -> None:
    """The sequence fails at the same token as without drafts."""
    h = drafting()
    h.add(request(1, prompt(11), max_new_tokens=30, ignore_eos=True))
    while len(h.ids.get(1, ())) < 20 and not h.failed:
        plan = h.scheduler.plan()
        assert plan is not None
        done, seqs = h.worker.step(plan), unpack(bytearray(plan)).seqs
        logprobs = np.frombuffer(done.logprobs, "<f4").copy()
        logprobs[seqs[(seqs[:, 3] & 1) != 0, 1:3].sum(1) >= 11 + 7] = np.nan  # from the eighth token on
        h.scheduler.done(StepDone(done.step, done.ids, logprobs.tobytes()))
        h.listen()
    assert h.failed.keys() == {1}
    assert h.ids[1] == h.answer_of(1)[:7]
    h.scheduler.check_integrity()


def test_a_tenant_pays_for_accepted_tokens() -> None:
    """Tenants share the tokens, not the steps."""
    h = drafting(draft_tokens=4)
    for rid, tenant in ((1, b"a"), (2, b"b")):
        h.add(request(rid, prompt(11, rid), max_new_tokens=50, ignore_eos=True, tenant=tenant, speculate=rid == 1))
    while 1 not in h.finish:
        h.step()
    served = h.scheduler._shares._served
    assert served[0] - served[1] == pytest.approx(2.0 * (len(h.ids[1]) - len(h.ids[2])), abs=2.0 * 5)
