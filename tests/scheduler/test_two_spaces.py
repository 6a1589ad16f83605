"""Models with windows in some layers: these layers have their own KV slots, which are freed as the window moves on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lightllm_mp.messages import StepDone
from lightllm_mp.plan import PlanBuilder, unpack
from lightllm_mp.scheduler.inspection import kv_map
from lightllm_mp.scheduler.integrity import IntegrityError
from lightllm_mp.scheduler.kv_space import KvSpace
from tests.scheduler.harness import VOCAB, Harness, harness, prompt, request
from tests.scheduler.mock_images import image_prompt

WINDOW, GRAIN = 32, 16
both_depths = pytest.mark.parametrize("depth", [0, 1])


def spaces(h: Harness) -> tuple[KvSpace, ...]:
    return h.kv.spaces


def near(h: Harness) -> KvSpace:
    """The space of the layers with windows."""
    return spaces(h)[1]


def most_used(h: Harness) -> list[int]:
    """Run to the end. Returns the most slots that were held in each space."""
    most = [0, 0]
    while h.step():
        h.scheduler.check_integrity()
        assert not h.scheduler._rows.first[0].any(), "admission charges for all tokens in the other layers"
        most = [max(before, space.used) for before, space in zip(most, spaces(h), strict=True)]
        for space in spaces(h):
            shown = kv_map(h.rows, space, {})
            assert int(np.round(shown.running.astype(int).sum() * shown.cell_slots / 100)) == space.used
        assert h.scheduler.gauges()["kv_window_used"] == near(h).used
    h.run()
    return most


def two(depth: int = 0, **changes: object) -> Harness:
    return harness(depth, **{"window": WINDOW, "window_tokens": 200, "run_ahead": depth, **changes})


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("reuse", [True, False])
def test_a_sequence_holds_a_window_and_all_else(depth: int, reuse: bool) -> None:
    h = two(depth, step_tokens=8, rows=2)
    assert h.scheduler.limits.window_grain == GRAIN
    h.add(request(1, prompt(100), max_new_tokens=90, ignore_eos=True, reuse_prompt=reuse))
    everything, window = most_used(h)
    assert 185 < everything <= 189
    assert WINDOW < window <= WINDOW + GRAIN + 8 * (1 + depth) == h.scheduler.limits.window_slots
    h.check_answers(1)


@both_depths
def test_few_slots_of_windows_serve_many_sequences(depth: int) -> None:
    """Four of 190 tokens need 760 slots, but at most 80 each of the windows' slots; half are held while all decode."""
    h = two(depth, kv_tokens=900, window_tokens=340, step_tokens=16)
    h.add(*[request(rid, prompt(100, rid), max_new_tokens=90, ignore_eos=True) for rid in range(1, 5)])
    running = 0.0
    while h.step():
        running = max(running, h.scheduler.gauges()["running"])
    assert running == 4
    assert h.scheduler.gauges()["preemptions"] == 0
    h.run().check_answers()


def test_a_sequence_is_no_longer_than_the_slots_of_the_other_layers() -> None:
    assert two(kv_tokens=120).scheduler.limits.width == 121
    assert two(kv_tokens=120, window_tokens=0).scheduler.limits.width == 200, "all layers have windows"


@pytest.mark.parametrize("short", ["kv_tokens", "window_tokens"])
def test_admission_asks_both_spaces(short: str) -> None:
    h = two(**{"kv_tokens": 900, "window_tokens": 900, short: 240}, step_tokens=16)
    h.add(*[request(rid, prompt(100, rid), max_new_tokens=60, ignore_eos=True) for rid in range(1, 6)])
    h.step()
    assert h.scheduler.gauges()["running"] == (1 if short == "kv_tokens" else 240 // h.scheduler.limits.window_slots)
    most_used(h)
    h.check_answers()
    assert h.scheduler.gauges()["preemptions"] == 0


@both_depths
def test_preempted_where_slots_of_windows_run_out(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightllm_mp.scheduler.admission.Admission.admits", lambda *_: True)
    h = two(depth, kv_tokens=900, window_tokens=120, step_tokens=16)
    h.add(*[request(rid, prompt(40, rid), max_new_tokens=60, ignore_eos=True) for rid in range(1, 6)])
    most_used(h)
    h.check_answers()
    assert h.scheduler.gauges()["preemptions"] > 0


def test_a_beginning_is_shared_while_both_spaces_have_it() -> None:
    h = two()
    h.add(request(1, prompt(100) + [5] * 40, max_new_tokens=50, ignore_eos=True))
    h.run()
    h.add(request(2, prompt(100) + [7] * 40))
    h.run().check_answers()
    assert h.opened[2].cached_tokens == 100


def use_up(h: Harness, rid: int, tokens: int) -> None:
    """Another sequence takes slots, and leaves nothing in the trees."""
    h.add(request(rid, prompt(tokens, rid), max_new_tokens=1, reuse_prompt=False))
    h.run()


def test_an_answer_goes_on_when_the_windows_of_its_beginning_are_gone() -> None:
    h = two(window_tokens=100, kv_tokens=900)
    h.add(request(1, prompt(90), max_new_tokens=30, ignore_eos=True))
    h.run()
    use_up(h, 2, 40)
    assert near(h).tree.tokens < 119
    h.add(request(3, [*prompt(90), *h.ids[1], 7], max_new_tokens=4))
    h.run().check_answers()
    assert h.opened[3].cached_tokens == 119


def test_a_hit_ends_where_its_last_window_is_there() -> None:
    """Only the tree of the other layers has the end of the answer, so that end does not count."""
    h = two(window_tokens=400, kv_tokens=900)
    h.add(request(1, prompt(90), max_new_tokens=30, ignore_eos=True))
    h.run()
    ids = np.array([*prompt(90), *h.ids[1]], np.int32)
    h.add(request(2, [*ids[:80].tolist(), 7], max_new_tokens=1))
    h.run()
    near(h).pool.give_back(near(h).tree.evict(near(h).tree.tokens - 40))  # keeps the second prompt's end, the newest
    h.scheduler.check_integrity()
    assert len(spaces(h)[0].tree.match(ids)[0]) == 119
    h.add(request(3, [*ids.tolist(), 7], max_new_tokens=40))
    most_used(h)
    h.check_answers(3)
    assert h.opened[3].cached_tokens == 80


def test_admission_knows_that_a_sequence_holds_no_more_than_its_window() -> None:
    """Three need all slots of windows at once; the first one ends before a fourth needs as many."""
    h = two(kv_tokens=900, window_tokens=240, step_tokens=16)
    h.add(*[request(rid, prompt(100, rid), max_new_tokens=60, ignore_eos=True) for rid in range(1, 6)])
    running = 0.0
    while h.step():
        running = max(running, h.scheduler.gauges()["running"])
    assert running == 5
    assert h.scheduler.gauges()["preemptions"] == 0


def test_a_long_prompt_does_not_cost_other_prompts_their_windows() -> None:
    h = two(kv_tokens=2000, window_tokens=240, max_context=600, max_input=500, step_tokens=16)
    for rid in (1, 2):
        h.add(request(rid, prompt(60, rid), max_new_tokens=20, ignore_eos=True))
        h.run()
    h.add(request(3, prompt(400, 3), max_new_tokens=20, ignore_eos=True))
    h.run()
    for rid in (1, 2, 3):
        asked = np.frombuffer(h.requests[rid].ids, "<i4").tolist()
        h.add(request(rid + 10, [*asked, *h.ids[rid], 7], max_new_tokens=2))
        h.run().check_answers(rid + 10)
        assert h.opened[rid + 10].cached_tokens == len(asked) + 19
        h.add(request(rid + 20, asked, max_new_tokens=2))
        h.run()
        assert h.opened[rid + 20].cached_tokens == len(asked) - 1, "the same prompt again"


def test_the_beginning_that_prompts_share_stays() -> None:
    """The second prompt with this beginning shows where the beginning ends."""
    h = two(kv_tokens=4000, window_tokens=300, max_context=600, max_input=500, step_tokens=16)
    for rid in range(1, 6):
        h.add(request(rid, prompt(100) + prompt(300, rid), max_new_tokens=2))
        h.run()
    h.check_answers()
    assert [h.opened[rid].cached_tokens for rid in range(3, 6)] == [100] * 3


def test_a_hit_ends_where_the_other_layers_have_slots() -> None:
    h = two(window_tokens=400, kv_tokens=150)
    h.add(request(1, prompt(90), max_new_tokens=30, ignore_eos=True))
    h.run()
    use_up(h, 2, 80)
    h.add(request(3, [*prompt(90), *h.ids[1], 7], max_new_tokens=4))
    most_used(h)
    h.check_answers(3)
    assert len(near(h).tree.match(np.array([*prompt(90), *h.ids[1]], np.int32))[0]) >= 119
    assert 0 < h.opened[3].cached_tokens < 90


def test_what_is_computed_again_fills_what_the_tree_lacks() -> None:
    """A prompt whose windows are gone is computed whole, holds no slot twice, and is known again."""
    h = two(window_tokens=120, kv_tokens=300)
    h.add(request(1, prompt(100), max_new_tokens=4, ignore_eos=True))
    h.run()
    near(h).pool.give_back(near(h).tree.evict(near(h).tree.tokens))
    h.add(request(2, [*prompt(100), 7], max_new_tokens=4, ignore_eos=True))
    most_used(h)
    assert h.opened[2].cached_tokens == 0
    h.add(request(3, [*prompt(100), 7], max_new_tokens=4, ignore_eos=True))
    h.run().check_answers()
    assert h.opened[3].cached_tokens == 100
    assert spaces(h)[0].tree.tokens < 110


@both_depths
def test_the_answers_of_a_request_share_its_prompt(depth: int) -> None:
    h = two(depth, kv_tokens=400, window_tokens=300)
    h.add(request(1, prompt(120), n=4, max_new_tokens=40, ignore_eos=True, temperature=1.0))
    most_used(h)
    h.check_answers()
    assert sorted(h.opened[rid].cached_tokens for rid in range(1, 5)) == [0, 119, 119, 119]


@pytest.mark.parametrize("known", [2, 6])
@pytest.mark.parametrize("whole", [False, True])
def test_an_image_of_which_a_tree_has_a_part(whole: bool, known: int) -> None:
    """Two slots may belong to another image, so the trees take nothing behind them, but the sequence still gives up its
    windows. Six slots cannot, so the tree takes the others."""
    h = two(kv_tokens=600, window_tokens=150, whole_images=whole, step_tokens=24, max_input=190)
    ids, spans = image_prompt(VOCAB, prompt(20), ("cat", 9), prompt(80, 1))
    part, cut = image_prompt(VOCAB, prompt(20), ("cat", known))
    h.add(request(1, part, spans=cut, max_new_tokens=1))
    h.run()
    assert all(space.tree.known(np.array(ids, np.int32)) == 20 + known for space in spaces(h))
    h.add(request(2, ids, spans=spans, max_new_tokens=60, ignore_eos=True))
    _, window = most_used(h)
    h.check_answers()
    assert window <= h.scheduler.limits.window_slots + WINDOW
    assert h.opened[2].cached_tokens == (20 if whole or known < 4 else 26)
    assert (len(spaces(h)[0].tree.match(np.array(ids, np.int32))[0]) > 100) == (known == 6)


@pytest.mark.parametrize("keep_cache", [False, True])
def test_a_reset_in_the_middle(keep_cache: bool) -> None:
    h = two(1, kv_tokens=500)
    h.add(*[request(rid, prompt(90, rid), max_new_tokens=30, ignore_eos=True) for rid in (1, 2, 3)])
    for _ in range(12):
        h.step()
    h.scheduler.reset(keep_cache)
    h.scheduler.check_integrity()
    assert all(space.used == 0 for space in spaces(h))
    assert all((space.tree.tokens > 0) == keep_cache for space in spaces(h))
    h.resume()
    h.run().check_answers()


def test_numbers_that_are_not_finite_are_forgotten_in_both_spaces() -> None:
    h = two(kv_tokens=600)
    h.add(request(1, prompt(90), max_new_tokens=60, ignore_eos=True))
    for _ in range(6):
        h.step()
    plan = h.scheduler.plan()
    assert plan is not None
    done = h.worker.step(plan)
    h.scheduler.done(replace_logprobs(done))
    h.scheduler.check_integrity()
    h.listen()
    assert 1 in h.failed
    assert all(len(space.tree.match(np.array(prompt(90), np.int32))[0]) == 0 for space in spaces(h))


def replace_logprobs(done: StepDone) -> StepDone:
    fields = {name: getattr(done, name) for name in done.__struct_fields__}
    return StepDone(**{**fields, "logprobs": np.full(1, np.nan, "<f4").tobytes()})


def test_a_plan_has_the_slots_of_both_spaces() -> None:
    builder = PlanBuilder(0)
    builder.write_slots(3, 5, np.array([[1, 2], [7, 8]], np.int32))
    builder.write_slot_each(np.array([1, 2]), np.array([9, 9]), np.array([[3, 4], [5, 6]], np.int32))
    slots = unpack(builder.pack()).slots
    assert slots.runs.tolist() == [[3, 5, 2], [1, 9, 1], [2, 9, 1]]
    assert slots.values.tolist() == [1, 2, 3, 4, 7, 8, 5, 6]


def test_one_space_costs_a_plan_nothing() -> None:
    plans = []
    for slots in (np.array([4, 5], np.int32), np.array([[4, 5]], np.int32)):
        builder = PlanBuilder(0)
        builder.write_slots(0, 0, slots)
        builder.add(0, 0, 2, sample=True)
        plans.append(builder.pack())
    assert plans[0] == plans[1]


def running() -> Harness:
    """Two sequences that share a prefix, in the middle of their answers, with windows behind them."""
    h = two(kv_tokens=400)
    h.add(request(1, prompt(60)))
    h.run()
    h.add(*[request(rid, [*prompt(60), rid], max_new_tokens=80, ignore_eos=True) for rid in (2, 3)])
    for _ in range(45):
        h.step()
    h.scheduler.check_integrity()
    return h


def lose_a_free_slot(h: Harness) -> None:
    assert near(h).pool.alloc(1) is not None


def own_a_slot_twice(h: Harness) -> None:
    rows = h.rows
    rows.slots[1, 1, rows.planned[1] - 1] = rows.slots[1, 0, rows.planned[0] - 1]


def free_a_slot_in_use(h: Harness) -> None:
    near(h).pool.give_back(near(h).held(0)[:1])


def forget_a_lock(h: Harness) -> None:
    near(h).tree.unlock(h.live[2].nodes[1])


def lock_without_an_owner(h: Harness) -> None:
    near(h).tree.lock(near(h).tree.match(np.array(prompt(60), np.int32))[1])


def miscount_the_tree(h: Harness) -> None:
    near(h).tree.evictable += 1


def share_what_is_not_shared(h: Harness) -> None:
    rows = h.rows
    rows.slots[1, 0, rows.treed[0] - 1] += 1


def forget_a_leaf(h: Harness) -> None:
    for node in near(h).tree.nodes():
        node.queued = False


def charge_too_much(h: Harness) -> None:
    h.rows.borrowed[1] = 0
    h.rows.first[1] = 0


@pytest.mark.parametrize(
    "damage",
    [
        *(lose_a_free_slot, own_a_slot_twice, free_a_slot_in_use, forget_a_lock, lock_without_an_owner),
        *(miscount_the_tree, share_what_is_not_shared, forget_a_leaf, charge_too_much),
    ],
    ids=lambda damage: damage.__name__,
)
def test_damage_is_found(damage: Callable[[Harness], None]) -> None:
    h = running()
    damage(h)
    with pytest.raises(IntegrityError):
        h.scheduler.check_integrity()


def test_the_mock_worker_notices_a_wrong_slot_of_a_window() -> None:
    """Without the mock's checks the answer changes."""
    answers = []
    for wrong in (False, True):
        h = two(kv_tokens=400)
        h.worker._checks = False
        h.add(request(1, prompt(60), max_new_tokens=30, ignore_eos=True))
        for _ in range(5):
            h.step()
        if wrong:
            rows = h.rows
            h.worker._spaces[1].digest[rows.slots[1, 0, rows.planned[0] - 1]] += np.uint64(1)
        answers.append(h.run().ids[1])
    assert answers[0] != answers[1]
