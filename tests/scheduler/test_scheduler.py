"""The output of sequences at depths 0 and 1, in every case without a disruption."""

from __future__ import annotations

import numpy as np
import pytest

from lightllm_mp.errors import InvalidRequest, PromptTooLong
from lightllm_mp.messages import LENGTH, STOP
from lightllm_mp.plan import unpack
from tests.scheduler.harness import EOS, VOCAB, column, harness, prompt, request

both_depths = pytest.mark.parametrize("depth", [0, 1])


@both_depths
@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 100])
def test_chunked_prefill_and_decode(depth: int, length: int) -> None:
    h = harness(depth)
    h.add(request(1, prompt(length)))
    h.run().check_answers()


@both_depths
def test_one_token_answers(depth: int) -> None:
    h = harness(depth)
    h.add(*[request(rid, prompt(4, rid), max_new_tokens=1, ignore_eos=True) for rid in range(1, 6)])
    h.run().check_answers()
    assert set(h.finish.values()) == {LENGTH}


@both_depths
def test_a_shared_prefix_is_computed_once(depth: int) -> None:
    h = harness(depth)
    h.add(request(1, prompt(60)))
    h.run()
    h.add(request(2, [*prompt(60), 7, 8, 9]), request(3, prompt(60)), request(4, prompt(50)))
    h.run().check_answers()
    assert h.opened[1].cached_tokens == 0
    assert h.opened[2].cached_tokens == 60
    assert h.opened[3].cached_tokens == 59
    assert h.opened[4].cached_tokens == 49
    gauges = h.scheduler.gauges()
    assert gauges["prefix_hit_tokens"] == 168
    assert gauges["prefix_queries_tokens"] == 60 + 63 + 60 + 50


@both_depths
@pytest.mark.parametrize("step_tokens", [32, 30, 40])
def test_of_a_burst_with_one_beginning_the_first_computes_it(depth: int, step_tokens: int) -> None:
    """Requests that were admitted, or even started, while the first computed it use it as soon as it is there."""
    h = harness(depth, kv_tokens=2000, step_tokens=step_tokens)
    h.add(*[request(rid, [*prompt(100), *prompt(5, rid)]) for rid in range(1, 8)])
    computed = 0
    while (plan := h.scheduler.plan()) is not None or h.plans:
        if plan is not None:
            computed += int(unpack(plan).seqs[:, 2].sum())
            h.plans.append(plan)
        if plan is None or len(h.plans) > depth:
            h.answer()
            h.listen()
        h.scheduler.check_integrity()
    h.check_answers()
    produced = sum(map(len, h.ids.values()))
    assert computed <= 100 + 7 * 5 + produced + (1 + depth) * step_tokens


def test_a_burst_is_admitted_over_several_steps_but_fills_them() -> None:
    h = harness(kv_tokens=20_000, rows=200, step_tokens=400)
    h.add(*[request(rid, prompt(10, rid), max_new_tokens=4) for rid in range(1, 101)])
    h.step()
    assert h.scheduler.gauges()["running"] == 40
    h = harness(kv_tokens=20_000, rows=200, step_tokens=200)
    h.add(*[request(rid, prompt(100, rid), max_new_tokens=4) for rid in range(1, 101)])
    h.step()
    assert h.scheduler.gauges()["running"] == 32


@both_depths
def test_two_that_compute_the_same_prefix_at_once_end_up_with_one(depth: int) -> None:
    h = harness(depth, step_tokens=64)
    h.add(request(1, [*prompt(20), 3], max_new_tokens=30, ignore_eos=True))
    h.add(request(2, [*prompt(20), 4], max_new_tokens=30, ignore_eos=True))
    for _ in range(5):
        h.step()
    h.scheduler.check_integrity()
    used = h.scheduler.gauges()["kv_used"]
    produced = sum(map(len, h.ids.values()))
    assert used <= 20 + 2 + produced + 2 * depth
    h.run().check_answers()


@both_depths
def test_without_reuse_the_tree_is_neither_read_nor_fed(depth: int) -> None:
    h = harness(depth)
    h.add(request(1, prompt(40), reuse_prompt=False))
    h.run()
    assert h.scheduler.gauges()["kv_cached"] == 0
    h.add(request(2, prompt(40)))
    h.run()
    h.add(request(3, prompt(40), reuse_prompt=False))
    h.run().check_answers()
    assert [h.opened[rid].cached_tokens for rid in (1, 2, 3)] == [0, 0, 0]


def test_the_cache_can_be_switched_off() -> None:
    h = harness(prompt_cache=False)
    for rid in (1, 2):
        h.add(request(rid, prompt(40)))
        h.run()
    h.add(request(3, prompt(40), n=2, temperature=1.0))
    h.run().check_answers()
    assert h.scheduler.gauges()["prefix_queries_tokens"] == h.scheduler.gauges()["kv_cached"] == 0


@both_depths
def test_n_answers_compute_the_prompt_once(depth: int) -> None:
    h = harness(depth)
    h.add(request(10, prompt(70), n=4, temperature=1.0))
    h.run().check_answers()
    assert [h.opened[rid].cached_tokens for rid in (10, 11, 12, 13)] == [0, 69, 69, 69]
    assert len({tuple(h.ids[rid]) for rid in (10, 11, 12, 13)}) == 4, "their seeds differ"


def test_who_waits_for_a_prompt_holds_up_nobody() -> None:
    h = harness(step_tokens=8)
    h.add(request(10, prompt(70), n=3), request(20, prompt(6, 5)))
    h.run().check_answers()
    assert h.order[0] == 20


def test_a_short_prompt_starts_beside_long_ones() -> None:
    h = harness(kv_tokens=2000, step_tokens=32)
    h.add(*[request(rid, prompt(140, rid)) for rid in range(1, 5)], request(9, prompt(6, 9)))
    h.run().check_answers()
    assert h.order == [9, 1, 2, 3, 4]


def test_a_long_prompt_never_stops_decoding() -> None:
    h = harness()
    h.add(request(1, prompt(3), max_new_tokens=12, ignore_eos=True))
    h.step()
    h.add(request(2, prompt(140, 2)))
    for produced in range(2, 7):
        h.step()
        assert len(h.ids[1]) == produced
    h.run().check_answers()


def test_a_step_is_never_larger_than_allowed() -> None:
    h = harness(step_tokens=5)
    h.add(*[request(rid, prompt(3 + 4 * rid, rid), max_new_tokens=10) for rid in range(1, 12)])
    while (plan := h.scheduler.plan()) is not None:
        assert unpack(plan).seqs[:, 2].sum() <= 5
        assert h.scheduler.gauges()["running"] <= 5, "whoever runs can have a token in every step"
        h.plans.append(plan)
        h.answer()
        h.listen()
    h.check_answers()


def test_decode_plans_are_small() -> None:
    h = harness()
    h.add(*[request(rid, prompt(20, rid), max_new_tokens=20, ignore_eos=True) for rid in range(1, 5)])
    for _ in range(8):
        h.step()
    plan = h.scheduler.plan()
    assert plan is not None
    assert len(plan) == 4 * (16 + 4 * (3 + 1 + 4))


def test_higher_priority_first_then_arrival() -> None:
    h = harness(rows=1)
    for rid, priority in enumerate((0, 1, 0, 2, 1), start=1):
        h.add(request(rid, prompt(10, rid), priority=priority))
    h.run().check_answers()
    assert h.order == [4, 2, 5, 1, 3]


@both_depths
def test_end_of_sequence(depth: int) -> None:
    h = harness(depth)
    h.add(*[request(rid, prompt(9, rid), max_new_tokens=150) for rid in range(1, 9)])
    h.run().check_answers()
    stopped = [rid for rid, reason in h.finish.items() if reason == STOP]
    assert stopped
    assert all(h.ids[rid][-1] == EOS for rid in stopped)


@both_depths
def test_ignored_end_of_sequence_and_stop_ids(depth: int) -> None:
    h = harness(depth)
    h.add(*[request(rid, prompt(9, rid), max_new_tokens=100, ignore_eos=True) for rid in (1, 2, 3)])
    h.add(*[request(rid, prompt(9, rid), max_new_tokens=100, stop_ids=column([5, 6, 7])) for rid in (4, 5, 6)])
    h.run().check_answers()
    assert [h.finish[rid] for rid in (1, 2, 3)] == [LENGTH] * 3
    assert all(h.finish[rid] == STOP and h.ids[rid][-1] in (5, 6, 7, EOS) for rid in (4, 5, 6))


def test_a_stop_id_that_is_also_the_last_one_allowed_is_a_stop() -> None:
    h = harness()
    h.add(request(1, prompt(9)))
    first = h.run().ids[1][0]
    h.add(request(2, prompt(9), max_new_tokens=1, min_new_tokens=0, stop_ids=column([first])))
    h.run().check_answers()
    assert h.finish[2] == STOP


@both_depths
def test_least_tokens(depth: int) -> None:
    h = harness(depth)
    every = column(range(3, VOCAB))
    h.add(request(1, prompt(9), max_new_tokens=40, min_new_tokens=17, stop_ids=every))
    h.run().check_answers()
    assert len(h.ids[1]) == 18


def test_overshoot_after_an_end_is_dropped() -> None:
    """At depth 1 the step after an end-of-sequence id is planned already."""
    h = harness(1)
    h.add(request(1, prompt(9), max_new_tokens=50, stop_ids=column(range(3, VOCAB))))
    h.add(request(2, prompt(9, 2), max_new_tokens=5, ignore_eos=True))
    h.run().check_answers()
    assert len(h.ids[1]) == 2


def test_no_step_is_planned_past_the_last_token() -> None:
    """The end by length is known beforehand, so depth 1 takes no more steps than depth 0."""
    steps = []
    for depth in (0, 1):
        h = harness(depth)
        h.add(request(1, prompt(40), max_new_tokens=7, ignore_eos=True))
        h.run()
        steps.append(h.scheduler.gauges()["steps"])
    assert steps == [2 + 6, 2 + 6]


@both_depths
def test_alternatives_stay_with_their_sequence(depth: int) -> None:
    """Also when an earlier sequence of the step has ended, and its alternatives are dropped with its overshoot."""
    h = harness(depth)
    h.add(request(1, prompt(6), max_new_tokens=10, top_logprobs=1, ignore_eos=True))
    h.add(request(2, prompt(5), max_new_tokens=3, top_logprobs=2, stop_ids=column(range(3, VOCAB))))
    h.add(request(3, prompt(6, 2), max_new_tokens=10, top_logprobs=3), request(4, prompt(7, 3), max_new_tokens=10))
    h.run().check_answers()
    assert set(h.top) == {1, 2, 3}
    for rid, count in ((1, 1), (2, 2), (3, 3)):
        assert [np.frombuffer(ids, "<i4")[0] for ids, _ in h.top[rid]] == h.ids[rid]
        assert {len(logprobs) for _, logprobs in h.top[rid]} == {4 * count}


@both_depths
@pytest.mark.parametrize("top_n", [0, 2])
@pytest.mark.parametrize("length", [1, 2, 33, 70])
def test_prompt_logprobs(depth: int, length: int, top_n: int) -> None:
    h = harness(depth, step_tokens=32)
    h.add(request(1, prompt(length)))
    h.run()
    h.add(request(2, prompt(length), prompt_logprobs=top_n), request(3, prompt(20, 3)))
    h.run().check_answers()
    scores, ids = h.scores[2], np.array(prompt(length)[1:], "<i4")
    assert h.opened[2].cached_tokens == 0
    assert scores.ids == column(prompt(length))
    assert scores.logprobs == (-(ids % 97) / np.float32(8)).astype("<f4").tobytes()
    assert scores.top_n == top_n
    tops = np.frombuffer(scores.top_ids, "<i4").reshape(len(ids), top_n)
    assert (tops == (ids[:, None] + np.arange(top_n)) % VOCAB).all()
    assert len(scores.top_logprobs) == len(scores.top_ids)
    assert set(h.scores) == {2}


def test_depths_agree() -> None:
    answers = []
    for depth in (0, 1, 3):
        h = harness(depth, kv_tokens=160)
        for rid in range(1, 30):
            h.add(request(rid, [*prompt(20, rid % 4), *prompt(rid, rid)], max_new_tokens=25, temperature=rid % 2))
            h.step()
        answers.append(h.run().ids)
        h.check_answers()
    assert answers[0] == answers[1] == answers[2]


def test_the_same_calls_give_the_same_plans() -> None:
    def plans() -> list[bytes]:
        h, found = harness(kv_tokens=120), []
        for rid in range(1, 12):
            h.add(request(rid, prompt(10 + rid, rid), max_new_tokens=30))
        while (plan := h.scheduler.plan()) is not None:
            found.append(plan)
            h.scheduler.done(h.worker.step(plan))
        return found

    assert plans() == plans()


def test_what_the_detokenizer_is_told() -> None:
    h = harness()
    h.add(request(1, prompt(40)))
    h.run()
    opened = h.opened[1]
    assert opened.prompt_tokens == 40
    assert np.frombuffer(opened.prompt_tail, "<i4").tolist() == prompt(40)[-16:]
    assert opened.emitted == b""


@pytest.mark.parametrize(
    ("ids", "error"),
    [([], InvalidRequest), ([1, VOCAB], InvalidRequest), ([-1], InvalidRequest), ([3] * 151, PromptTooLong)],
)
def test_prompts_that_can_never_be_served(ids: list[int], error: type[Exception]) -> None:
    h = harness()
    with pytest.raises(error):
        h.scheduler.add(request(1, ids))
    assert not h.scheduler.has_work
    assert h.scheduler.plan() is None


def test_a_prompt_larger_than_the_memory_is_refused_and_one_that_fills_it_is_served() -> None:
    h = harness(kv_tokens=40)
    with pytest.raises(PromptTooLong):
        h.scheduler.add(request(1, prompt(41)))
    h.add(request(2, prompt(40), ignore_eos=True))
    h.run().check_answers()
    assert len(h.ids[2]) == 1


def test_answers_are_cut_to_the_context() -> None:
    h = harness(kv_tokens=1000, max_context=50)
    h.add(request(1, prompt(45), max_new_tokens=1000, ignore_eos=True))
    h.run().check_answers()
    assert len(h.ids[1]) == 5
    assert h.finish[1] == LENGTH


def test_wrong_answers_are_bugs() -> None:
    h = harness()
    h.add(request(1, prompt(5)))
    plan = h.scheduler.plan()
    assert plan is not None
    answer = h.worker.step(plan)
    with pytest.raises(RuntimeError, match="expected None"):
        harness().scheduler.done(answer)
    h.scheduler.done(answer)
    with pytest.raises(RuntimeError, match="answer to step"):
        h.scheduler.done(answer)


def test_a_rid_comes_once() -> None:
    h = harness()
    h.add(request(1, prompt(5), n=3))
    with pytest.raises(ValueError, match="already"):
        h.scheduler.add(request(3, prompt(5)))


def test_gauges_count() -> None:
    h = harness()
    h.add(*[request(rid, prompt(10, rid), max_new_tokens=4, ignore_eos=True) for rid in range(1, 13)])
    h.step()
    gauges = h.scheduler.gauges()
    assert gauges["running"] == 8
    assert gauges["waiting"] == 4
    assert gauges["kv_used"] == 32
    h.run()
    gauges = h.scheduler.gauges()
    assert gauges["finished_length"] == gauges["admitted"] == 12
    assert gauges["prompt_tokens"] == 120
    assert gauges["generation_tokens"] == 48
    assert gauges["kv_total"] == 400


@pytest.mark.parametrize(
    ("allowed", "rules", "said"),
    [
        ([VOCAB], {}, f"token ids lie in 0..{VOCAB - 1}"),
        ([5, 2**31 - 1], {}, "token ids lie in"),
        ([-1, 5], {}, "token ids lie in"),
        ([EOS], {}, r"ends the answer.*min_new_tokens \(1\)"),
        ([EOS, 9], {"stop_ids": column([9]), "min_new_tokens": 3}, r"ends the answer.*min_new_tokens \(3\)"),
    ],
)
def test_allowed_ids_that_can_not_be_served_are_a_typed_error(
    allowed: list[int], rules: dict[str, object], said: str
) -> None:
    with pytest.raises(InvalidRequest, match=said) as caught:
        harness().scheduler.add(request(1, [3, 4], allowed_ids=column(allowed), **rules))
    assert (caught.value.status, caught.value.param) == (400, "allowed_token_ids")


def test_one_allowed_id_beside_those_that_end_the_answer_is_enough() -> None:
    scheduler = harness().scheduler
    scheduler.add(request(1, [3, 4], allowed_ids=column([EOS, 9])))
    scheduler.add(request(2, [3, 4], allowed_ids=column([EOS]), min_new_tokens=0))
    assert [setup.allowed_ids.tolist() for setup in unpack(scheduler.plan() or b"").setups] == [[EOS, 9], [EOS]]
