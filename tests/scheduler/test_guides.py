"""Constrained sequences: the guide gets every id once, in order, and is asked for the masks of sampled sequences."""

from __future__ import annotations

import numpy as np
import pytest

from lightllm_mp.messages import Guide
from tests.scheduler.harness import EOS, column, harness, mock_worker, prompt, request

GUIDE = Guide("regex", "a")
both_depths = pytest.mark.parametrize("depth", [0, 1, 2])


@both_depths
def test_constrained_and_free_sequences_share_steps(depth: int) -> None:
    h = harness(depth)
    h.add(*[request(rid, prompt(11, rid), guide=GUIDE if rid % 2 else None, max_new_tokens=20) for rid in range(1, 8)])
    h.run().check_answers()


@both_depths
def test_many_answers_to_a_prompt_each_have_their_own_masks(depth: int) -> None:
    h = harness(depth)
    h.add(request(1, prompt(40), n=6, guide=GUIDE, temperature=1.0, max_new_tokens=30))
    h.run().check_answers()


@both_depths
def test_preempted_sequences_go_on_where_they_were(depth: int) -> None:
    h = harness(depth, kv_tokens=60)
    h.add(*[request(rid, prompt(4, rid), guide=GUIDE, max_new_tokens=4, min_new_tokens=4) for rid in range(1, 20)])
    h.run()  # from now on admission expects short answers
    h.add(*[request(rid, prompt(8, rid), guide=GUIDE, max_new_tokens=40, min_new_tokens=40) for rid in range(20, 26)])
    h.run().check_answers()
    assert h.scheduler.gauges()["preemptions"]


@both_depths
def test_aborted_and_stopped_sequences_leave_the_guide(depth: int) -> None:
    h = harness(depth)
    h.add(*[request(rid, prompt(8, rid), guide=GUIDE, max_new_tokens=50, ignore_eos=True) for rid in range(1, 12)])
    for _ in range(6):
        h.step()
    h.scheduler.abort(2)
    h.scheduler.stop_matched(3)
    h.scheduler.abort(11)  # still waits
    for rid in (2, 3, 11):
        del h.requests[rid]
    h.run().check_answers()


@both_depths
def test_a_new_epoch_hears_the_emitted_ids_again(depth: int) -> None:
    h = harness(depth)
    h.add(*[request(rid, prompt(9, rid), guide=GUIDE, max_new_tokens=30, ignore_eos=True) for rid in range(1, 5)])
    for _ in range(12):
        h.step()
    h.scheduler.reset(keep_cache=False)
    h.worker = mock_worker(h.scheduler.limits, h.images)
    h.resume()
    h.run().check_answers()


@both_depths
def test_a_dead_end_fails_its_own_sequence(depth: int) -> None:
    h = harness(depth)
    h.guide.dead_end = 4
    h.add(request(1, prompt(9), guide=GUIDE, max_new_tokens=30, min_new_tokens=10), request(2, prompt(9, 2)))
    h.run().check_answers(2)
    assert h.failed.keys() == {1}
    assert (h.failed[1].status, h.failed[1].code) == (400, "invalid_guide")
    assert len(h.ids[1]) == 4
    assert not h.scheduler.gauges()["invalid_logits"]


def test_an_end_of_sequence_id_ends_a_constrained_answer_that_ignores_it() -> None:
    """The guide allows it only where the answer cannot go on."""
    h = harness()
    h.guide.allowed = lambda ids: {EOS} if len(ids) == 3 else {7}  # type: ignore[method-assign]
    h.add(request(1, prompt(9), guide=GUIDE, max_new_tokens=30, ignore_eos=True))
    h.run()
    assert h.ids[1] == [7, 7, 7, EOS]
    assert h.finish[1] == 1


@both_depths
def test_forced_ids_are_computed_together(depth: int) -> None:
    """The answers equal those with one id per step, in fewer steps."""
    steps = []
    for tells in (False, True):
        h = harness(depth, run_ahead=depth)
        h.guide.jumps = True
        if not tells:
            h.guide.tell = lambda message: None
        h.add(*[request(rid, prompt(11, rid), guide=GUIDE, max_new_tokens=60, n=2) for rid in range(1, 8, 2)])
        h.run().check_answers()
        steps.append(h.scheduler.gauges()["steps"])
    assert steps[1] < (0.9 if depth else 0.8) * steps[0]


@both_depths
@pytest.mark.parametrize("most", range(1, 14))
def test_a_jump_ends_before_the_last_id_of_an_answer(depth: int, most: int) -> None:
    h = harness(depth, run_ahead=depth)
    h.guide.jumps = True
    h.add(*[request(rid, prompt(7, rid), guide=GUIDE, max_new_tokens=most, ignore_eos=True) for rid in range(1, 9)])
    h.run().check_answers()


@pytest.mark.parametrize("seed", range(12))
def test_many_at_random(seed: int) -> None:
    random = np.random.default_rng(seed)
    depth = int(random.integers(3))
    h = harness(depth, kv_tokens=150, run_ahead=depth)
    h.guide.jumps = seed % 3 > 0
    for rid in range(1, 60):
        guide = GUIDE if random.random() < 0.6 else None
        h.add(
            request(
                rid,
                prompt(int(random.integers(1, 40)), rid),
                guide=guide,
                max_new_tokens=int(random.integers(1, 30)),
                min_new_tokens=int(random.integers(0, 4)),
                ignore_eos=bool(random.random() < 0.3),
                reuse_prompt=bool(random.random() < 0.8),
                stop_ids=column([9, 14] if random.random() < 0.3 else []),
            )
        )
        for _ in range(int(random.integers(0, 5))):
            h.step()
        if random.random() < 0.1 and rid not in h.finish:
            h.scheduler.abort(rid)
            del h.requests[rid]
    h.run().check_answers()
