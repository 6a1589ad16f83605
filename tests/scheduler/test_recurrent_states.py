"""Hybrid models: a sequence goes on from a copy of its recurrent state. The mock worker notices a wrong state."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lightllm_mp.facts import StateFacts
from lightllm_mp.messages import Guide
from lightllm_mp.plan import NO_STATE, unpack
from lightllm_mp.scheduler.admission import Admission
from lightllm_mp.scheduler.integrity import IntegrityError
from lightllm_mp.scheduler.recurrent_states import ANSWER_GRAINS, PROMPT_GRAINS, RecurrentStates
from tests.scheduler.harness import Harness, harness, mock_worker, prompt, request

both_depths = pytest.mark.parametrize("depth", [0, 1])


def hybrid(depth: int = 0, *, checkpoints: int = 100, grain: int = 4, **changes: object) -> Harness:
    return harness(depth, states=StateFacts(checkpoints, grain), **changes)


def states(h: Harness) -> RecurrentStates:
    found = h.kv.states
    assert isinstance(found, RecurrentStates)
    return found


def used(h: Harness) -> int:
    return int(h.scheduler.gauges()["state_checkpoints_used"])


def test_a_model_without_recurrent_layers_has_no_states_in_its_plans() -> None:
    h = harness()
    h.add(request(1, prompt(20)))
    assert not len(unpack(h.scheduler.plan() or b"").states)
    assert h.scheduler.gauges()["state_checkpoints"] == 0


def test_a_sequence_begins_without_a_state_and_loads_it_once() -> None:
    h = hybrid(step_tokens=8)
    h.add(request(1, prompt(20)))
    found = []
    while (plan := h.scheduler.plan()) is not None:
        found.append(unpack(plan).states.tolist())
        h.plans.append(plan)
        h.answer()
    # Place 9 comes after 8 rows and a spare one; position 16 is the last multiple of 4 below the last token.
    assert found[:2] == [[[0, 0, NO_STATE]], [[0, 16, 9]]]
    assert not any(found[2:])


@both_depths
@pytest.mark.parametrize(("length", "hit"), [(20, 16), (21, 20), (4, 0), (5, 4), (100, 96)])
def test_the_same_prompt_again(depth: int, length: int, hit: int) -> None:
    h = hybrid(depth)
    h.add(request(1, prompt(length)))
    h.run()
    h.add(request(2, prompt(length), max_new_tokens=30))
    h.run().check_answers()
    assert h.opened[2].cached_tokens == hit
    assert h.scheduler.gauges()["prefix_hit_tokens"] == hit


@both_depths
def test_the_next_turn_of_a_chat_goes_on_within_the_answer(depth: int) -> None:
    h = hybrid(depth)
    h.add(request(1, prompt(30), max_new_tokens=50, ignore_eos=True))
    h.run()
    h.add(request(2, [*prompt(30), *h.ids[1], 5, 6, 7]))
    h.run().check_answers()
    assert h.opened[2].cached_tokens == 64
    assert used(h) < 6, "of an answer only the newest copies are kept"


@both_depths
def test_prompts_with_one_beginning_share_it_from_the_third_on(depth: int) -> None:
    h = hybrid(depth)
    for rid in (1, 2, 3):
        h.add(request(rid, [*prompt(41), rid + 20, *prompt(30, rid)]))
        h.run()
    h.check_answers()
    assert [h.opened[rid].cached_tokens for rid in (1, 2, 3)] == [0, 0, 40]


@both_depths
def test_long_prompts_have_copies_at_intervals(depth: int) -> None:
    h = hybrid(depth, grain=1, max_context=400, kv_tokens=1500, max_input=390)
    h.add(request(1, prompt(100)))
    h.run()
    h.add(request(2, [*prompt(80), 1]))
    h.run().check_answers()
    assert h.opened[2].cached_tokens == 2 * PROMPT_GRAINS
    h.add(request(3, prompt(390, 7)))
    h.run().check_answers()
    assert used(h) < 20


@both_depths
@pytest.mark.parametrize("step_tokens", [7, 64])
def test_many_answers_compute_their_prompt_once(depth: int, step_tokens: int) -> None:
    h = hybrid(depth, step_tokens=step_tokens)
    h.add(request(10, prompt(59), n=4, temperature=1.0, max_new_tokens=20))
    h.run().check_answers()
    assert [h.opened[10 + index].cached_tokens for index in range(4)] == [0, 56, 56, 56]


@both_depths
def test_of_two_equal_prompts_the_second_catches_up(depth: int) -> None:
    h = hybrid(depth, step_tokens=16)
    h.add(request(1, prompt(100)), request(2, [*prompt(100), 9, 9]))
    while h.step():
        h.scheduler.check_integrity()
    h.check_answers()
    assert h.scheduler.gauges()["prefill_tokens"] < 170


def test_a_sequence_catches_up_with_a_checkpoint_of_known_tokens() -> None:
    h = hybrid(checkpoints=1, step_tokens=16)
    for number, seed in ((1, 0), (2, 5)):  # the second takes the first one's place, but not its tokens
        h.add(request(number, prompt(100, seed), max_new_tokens=1))
        h.run()
    h.add(request(3, prompt(100)), request(4, [*prompt(100), 9, 9]))
    h.run().check_answers()
    assert h.scheduler.gauges()["prefill_tokens"] < 200 + 170


def test_a_copy_that_a_sequence_has_left_behind_is_gone() -> None:
    """The sequence catches up while the step that saves its copy is in flight, and that step is never executed."""
    h = hybrid(1, grain=1, kv_tokens=2000, max_context=400, max_input=390, step_tokens=64)
    h.add(request(1, prompt(300)))
    while h.scheduler.gauges()["prefill_tokens"] < 280:
        h.step()
    h.add(request(2, [*prompt(200), 9, 9]))
    h.step()
    assert h.live[2].saves
    h.scheduler.plan()
    assert h.rows.borrowed.any()
    h.scheduler.reset(keep_cache=True)
    h.plans.clear()
    h.add(request(3, prompt(40)))
    h.run().check_answers(3)


@both_depths
def test_a_preempted_sequence_goes_on_from_its_newest_copy(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Admission, "admits", lambda *_: True)
    computed = []
    for checkpoints in (100, 0):
        h = hybrid(depth, checkpoints=checkpoints, kv_tokens=150, grain=2)
        h.add(request(1, prompt(30, 1), max_new_tokens=47, ignore_eos=True))
        h.add(request(2, prompt(30, 2), max_new_tokens=60, ignore_eos=True))
        while h.step():
            h.scheduler.check_integrity()
        h.check_answers()
        assert h.scheduler.gauges()["preemptions"] == 1
        computed.append(h.scheduler.gauges()["prefill_tokens"] - 60)
    assert computed[0] <= 2 * ANSWER_GRAINS * 2 < 70 < computed[1]


@both_depths
@pytest.mark.parametrize("checkpoints", [0, 1, 2])
def test_few_places_cost_hits_but_nothing_else(depth: int, checkpoints: int) -> None:
    h = hybrid(depth, checkpoints=checkpoints, grain=1)
    for turn in range(3):
        h.add(*[request(10 * turn + rid, prompt(20 + rid, rid), max_new_tokens=20) for rid in range(1, 8)])
        while h.step():
            h.scheduler.check_integrity()
    h.check_answers()
    assert used(h) <= checkpoints


def test_the_copy_unused_for_longest_makes_room() -> None:
    h = hybrid(checkpoints=2)
    for rid, seed in ((1, 1), (2, 2), (3, 1), (4, 3), (5, 1), (6, 2)):
        h.add(request(rid, prompt(20, seed), max_new_tokens=1))
        h.run()
    assert [h.opened[rid].cached_tokens for rid in range(1, 7)] == [0, 0, 16, 0, 16, 0]


def test_a_copy_that_is_about_to_be_loaded_stays() -> None:
    """Its sequence has a row, but steps have no token for it until a shorter prompt is computed and saved."""
    h = hybrid(checkpoints=1, step_tokens=4)
    h.add(request(1, prompt(20), max_new_tokens=1))
    h.run()
    h.add(request(2, prompt(40, 5)), request(3, [*prompt(20), *prompt(20, 6)]), request(4, prompt(7, 8)))
    while h.step():
        h.scheduler.check_integrity()
    h.check_answers()
    assert h.opened[3].cached_tokens == 16


def test_a_checkpoint_goes_with_its_tokens() -> None:
    h = hybrid(kv_tokens=60)
    h.add(request(1, prompt(20), max_new_tokens=1))
    h.run()
    assert used(h) == 1
    h.add(request(2, prompt(50, 3), max_new_tokens=8, ignore_eos=True))
    h.run().check_answers()
    assert h.scheduler.gauges()["evicted_tokens"] > 0
    h.add(request(3, prompt(20), max_new_tokens=1))
    h.run()
    assert h.opened[3].cached_tokens == 0


@both_depths
@pytest.mark.parametrize("after", range(1, 12, 2))
def test_aborted_sequences_leave_no_copy_that_the_tree_does_not_know(depth: int, after: int) -> None:
    h = hybrid(depth, grain=1, step_tokens=16)
    h.add(*[request(rid, prompt(20, rid), max_new_tokens=30, ignore_eos=True) for rid in (1, 2, 3)])
    for _ in range(after):
        h.step()
    h.scheduler.abort(2)
    h.scheduler.check_integrity()
    h.listen()
    h.add(request(4, prompt(20, 2)))
    h.run().check_answers(1, 3, 4)


@both_depths
@pytest.mark.parametrize("keep_cache", [False, True])
@pytest.mark.parametrize("after", range(1, 14, 3))
def test_after_a_reset_only_answered_steps_have_left_copies(depth: int, keep_cache: bool, after: int) -> None:
    h = hybrid(depth, grain=1, step_tokens=16)
    h.add(*[request(rid, prompt(20, rid % 3), max_new_tokens=12, temperature=1.0) for rid in range(1, 5)])
    for _ in range(after):
        h.step()
    h.scheduler.reset(keep_cache)
    h.scheduler.check_integrity()
    assert keep_cache or not used(h)
    if not keep_cache:
        h.worker = mock_worker(h.scheduler.limits, h.images)
    h.resume()
    h.run().check_answers()


def test_a_kept_cache_serves_the_next_epoch() -> None:
    h = hybrid(1)
    h.add(request(1, prompt(60), max_new_tokens=30, ignore_eos=True))
    for _ in range(20):
        h.step()
    h.scheduler.reset(keep_cache=True)
    h.resume()
    h.run().check_answers()
    assert h.opened[1].cached_tokens == 60


@both_depths
def test_prompts_that_do_not_use_the_cache_have_no_copies(depth: int) -> None:
    h = hybrid(depth)
    h.add(request(1, prompt(60), reuse_prompt=False, max_new_tokens=40, ignore_eos=True))
    h.run().check_answers()
    assert not used(h)


@both_depths
def test_forced_ids_go_on_from_the_state_of_the_row(depth: int) -> None:
    h = hybrid(depth, grain=1)
    h.add(*[request(rid, prompt(11, rid), guide=Guide("regex", "a"), max_new_tokens=40) for rid in range(1, 8)])
    h.run().check_answers()


def lose_a_copy(h: Harness) -> None:
    states(h).owners.popitem()


def free_a_copy_in_use(h: Harness) -> None:
    states(h).pool.give_back(np.array([next(iter(states(h).owners))]))


def forget_a_checkpoint(h: Harness) -> None:
    next(node for node in h.kv.tree.nodes() if node.checkpoint >= 0).checkpoint = -1


def reach_too_far(h: Harness) -> None:
    sequence = next(sequence for sequence in h.live.values() if sequence.saves)
    sequence.saves[next(iter(sequence.saves))] += 100


def forget_to_load(h: Harness) -> None:
    sequence = h.live[2]
    states(h)._free(states(h)._tree.match(np.array(prompt(24), np.int32))[1].checkpoint)
    h.rows.unloaded[sequence.row] = True


@pytest.mark.parametrize(
    "damage",
    [lose_a_copy, free_a_copy_in_use, forget_a_checkpoint, reach_too_far, forget_to_load],
    ids=lambda damage: damage.__name__,
)
def test_damage_is_found(damage: Callable[[Harness], None]) -> None:
    h = hybrid(grain=1)
    h.add(request(1, prompt(25), max_new_tokens=1))
    h.run()
    h.add(request(2, prompt(25), max_new_tokens=30, ignore_eos=True))
    for _ in range(10):
        h.step()
    h.scheduler.check_integrity()
    damage(h)
    with pytest.raises(IntegrityError, match=r"cop|state"):
        h.scheduler.check_integrity()
