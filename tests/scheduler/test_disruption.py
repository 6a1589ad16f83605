"""Preemption, aborts, matched stop strings, resumed sequences and resets change no answer."""

from __future__ import annotations

import numpy as np
import pytest

from lightllm_mp.errors import PromptTooLong
from lightllm_mp.scheduler.admission import Admission
from tests.scheduler.harness import Harness, harness, prompt, request
from tests.scheduler.mock_worker import MockWorker

both_depths = pytest.mark.parametrize("depth", [0, 1])


def expect_short_answers(h: Harness) -> None:
    """Give the scheduler a history of one-token answers, so that it admits more than fits."""
    for seed in range(30):
        h.scheduler.add(request(900_000 + seed, prompt(2, seed), max_new_tokens=1, ignore_eos=True))
    while h.step():
        pass


@both_depths
def test_preempted_sequences_go_on_as_if_nothing_had_happened(depth: int) -> None:
    h = harness(depth, kv_tokens=120)
    expect_short_answers(h)
    h.add(*[request(rid, prompt(8, rid), max_new_tokens=60, ignore_eos=True, temperature=1.0) for rid in range(1, 9)])
    h.run().check_answers()
    assert h.scheduler.gauges()["preemptions"] > 0
    started = [rid for rid in h.order if rid < 900_000]
    assert started == sorted(started)


@both_depths
def test_the_youngest_of_the_lowest_priority_is_preempted(depth: int) -> None:
    h = harness(depth, kv_tokens=120)
    expect_short_answers(h)
    for rid, priority in ((1, 0), (2, 1), (3, 0), (4, 1)):
        h.add(request(rid, prompt(8, rid), max_new_tokens=50, ignore_eos=True, priority=priority))
    ends: list[int] = []
    while h.step():
        ends += [rid for rid in h.finish if rid < 900_000 and rid not in ends]
    h.check_answers()
    assert ends == [2, 4, 1, 3]
    assert h.scheduler.gauges()["preemptions"] > 0


def let_everybody_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Admission, "admits", lambda *_: True)


@both_depths
def test_prompt_logprobs_survive_preemption(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two answers grow until the half-computed prompt beside them is preempted."""
    let_everybody_in(monkeypatch)
    h = harness(depth, kv_tokens=100, step_tokens=8)
    h.add(*[request(rid, prompt(20, rid), max_new_tokens=50, ignore_eos=True) for rid in (1, 2)])
    h.add(request(3, prompt(60, 3), max_new_tokens=20, ignore_eos=True, prompt_logprobs=0))
    while not h.scheduler.gauges()["preemptions"]:
        h.step()
    assert 3 in h.opened
    assert 3 not in h.scores
    h.run().check_answers()
    ids = np.array(prompt(60, 3), "<i4")
    assert h.scores[3].ids == ids.tobytes()
    assert h.scores[3].logprobs == (-(ids[1:] % 97) / np.float32(8)).astype("<f4").tobytes()


def test_prompts_that_block_each_other_are_sorted_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two prompts are half computed, no slot is left and no sequence decodes."""
    let_everybody_in(monkeypatch)
    h = harness(kv_tokens=64, step_tokens=16)
    h.add(request(1, prompt(58, 1), ignore_eos=True, max_new_tokens=3))
    h.add(request(2, prompt(40, 2), ignore_eos=True, max_new_tokens=3))
    h.run().check_answers()
    assert h.scheduler.gauges()["preemptions"] == 1
    assert h.order == [1, 2]


def test_admission_by_the_limit_never_preempts() -> None:
    """Without a history, every sequence is expected to reach its limit."""
    h = harness(kv_tokens=120)
    h.add(*[request(rid, prompt(8, rid), max_new_tokens=30, ignore_eos=True) for rid in range(1, 20)])
    h.run().check_answers()
    assert h.scheduler.gauges()["preemptions"] == 0


def test_admission_by_what_was_seen_runs_more_at_once() -> None:
    most = []
    for past in (False, True):
        h = harness(kv_tokens=120)
        if past:
            expect_short_answers(h)
        h.add(*[request(rid, prompt(8, rid), max_new_tokens=100, ignore_eos=False) for rid in range(1, 20)])
        h.step()
        most.append(h.scheduler.gauges()["running"])
    assert most[0] == 1
    assert most[1] >= 4


@both_depths
@pytest.mark.parametrize("after", range(9))
def test_abort_at_every_stage(depth: int, after: int) -> None:
    """Stages: waiting, between chunks of a prompt, decoding, with steps in flight, finished."""
    h = harness(depth, rows=3, step_tokens=16)
    h.add(*[request(rid, prompt(30, rid % 2), max_new_tokens=12) for rid in range(1, 6)])
    for _ in range(after):
        h.step()
    for rid in (1, 3, 5):
        h.scheduler.abort(rid)
        h.scheduler.abort(rid)
    h.listen()
    aborted = {1, 3, 5} - set(h.finish)
    assert h.closed == aborted & set(h.opened)
    h.add(request(7, prompt(40, 1)))
    h.run().check_answers(2, 4, 7)
    for rid in aborted & set(h.ids):
        assert h.ids[rid] == h.answer_of(rid)[: len(h.ids[rid])]
    assert h.scheduler.gauges()["finished_abort"] == len(aborted)


@both_depths
@pytest.mark.parametrize("after", range(1, 9))
def test_abort_of_the_one_who_computes_for_all(depth: int, after: int) -> None:
    h = harness(depth, step_tokens=16)
    h.add(request(10, prompt(60), n=3, temperature=1.0))
    for _ in range(after):
        h.step()
    h.scheduler.abort(10)
    h.run().check_answers(11, 12)


@both_depths
@pytest.mark.parametrize("after", range(1, 8))
def test_a_matched_stop_string_ends_a_sequence(depth: int, after: int) -> None:
    h = harness(depth, step_tokens=16)
    h.add(*[request(rid, prompt(20, rid), max_new_tokens=30, ignore_eos=True) for rid in (1, 2, 3)])
    for _ in range(after):
        h.step()
    h.scheduler.stop_matched(1)
    h.scheduler.stop_matched(77)
    got = len(h.ids.get(1, ()))
    h.run().check_answers(2, 3)
    assert len(h.ids.get(1, ())) == got
    assert 1 not in h.closed
    assert h.scheduler.gauges()["finished_stop"] == 1


@both_depths
def test_a_preempted_sequence_can_be_ended_while_it_waits(depth: int) -> None:
    h = harness(depth, kv_tokens=120)
    expect_short_answers(h)
    h.add(*[request(rid, prompt(8, rid), max_new_tokens=60, ignore_eos=True) for rid in range(1, 5)])
    while not h.scheduler.gauges()["preemptions"]:
        h.step()
    h.scheduler.abort(4)
    h.scheduler.stop_matched(3)
    h.run().check_answers(1, 2)
    assert h.closed == {4}


@both_depths
@pytest.mark.parametrize("emitted", [1, 5, 11])
def test_a_resumed_sequence_produces_the_rest(depth: int, emitted: int) -> None:
    h = harness(depth)
    rules: dict[str, object] = {"max_new_tokens": 12, "ignore_eos": True, "seed": 5, "temperature": 1.0}
    h.add(request(1, prompt(40), **rules))
    whole = h.run().ids[1]
    h.add(request(2, prompt(40), emitted=whole[:emitted], prompt_logprobs=1, **rules))
    h.run()
    assert h.ids[2] == whole[emitted:]
    assert np.frombuffer(h.opened[2].emitted, "<i4").tolist() == whole[:emitted]
    assert h.opened[2].prompt_tokens == 40
    assert h.opened[2].cached_tokens == 40
    assert not h.scores


def test_nothing_left_to_produce_is_a_bug_unless_the_memory_shrank() -> None:
    h = harness()
    with pytest.raises(ValueError, match="nothing is left"):
        h.scheduler.add(request(1, prompt(4), emitted=[5, 6], max_new_tokens=2))
    with pytest.raises(ValueError, match="do not go together"):
        h.scheduler.add(request(1, prompt(4), emitted=[5, 6], n=2))
    small = harness(kv_tokens=20)
    with pytest.raises(PromptTooLong):
        small.scheduler.add(request(1, prompt(10), emitted=[5] * 15, max_new_tokens=50))


@both_depths
@pytest.mark.parametrize("keep_cache", [False, True])
@pytest.mark.parametrize("after", range(0, 14, 2))
def test_a_reset_in_the_middle(depth: int, keep_cache: bool, after: int) -> None:
    h = harness(depth, step_tokens=16)
    h.add(*[request(rid, prompt(20, rid % 3), max_new_tokens=12, temperature=1.0) for rid in range(1, 5)])
    h.add(request(10, prompt(30), n=2, temperature=1.0))
    for _ in range(after):
        h.step()
    counted = h.scheduler.gauges()
    h.scheduler.reset(keep_cache)
    assert not h.scheduler.has_work
    assert h.scheduler.in_flight == 0
    assert h.scheduler.plan() is None
    h.scheduler.check_integrity()
    gauges = h.scheduler.gauges()
    assert keep_cache or gauges["kv_cached"] == 0
    assert gauges["kv_used"] == gauges["running"] == gauges["waiting"] == 0
    changing = {"running", "waiting", "kv_used", "kv_cached"}
    assert {k: v for k, v in gauges.items() if k not in changing} == {
        k: v for k, v in counted.items() if k not in changing
    }
    if not keep_cache:
        h.worker = MockWorker(rows=8, width=200, kv_tokens=400, vocab_size=60)
    h.resume()
    h.run().check_answers()


def test_a_kept_cache_serves_the_next_epoch() -> None:
    h = harness(1)
    h.add(request(1, prompt(60), max_new_tokens=30, ignore_eos=True))
    for _ in range(12):
        h.step()
    h.scheduler.reset(keep_cache=True)
    h.resume()
    h.run().check_answers()
    assert h.opened[1].cached_tokens == 60


def test_ids_of_steps_that_were_never_answered_are_not_in_the_tree() -> None:
    """The last steps of a dead worker may not have been computed."""
    h = harness(2, step_tokens=64)
    h.add(request(1, prompt(40), max_new_tokens=30, ignore_eos=True))
    assert h.scheduler.plan() is not None
    assert h.scheduler.plan() is not None
    h.scheduler.reset(keep_cache=True)
    assert h.scheduler.gauges()["kv_cached"] == 0
