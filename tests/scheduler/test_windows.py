"""Models whose layers all have windows: the slots that a sequence holds, and the prefixes that others find."""

from __future__ import annotations

import numpy as np
import pytest

from lightllm_mp.scheduler.inspection import kv_map
from tests.scheduler.harness import Harness, harness, prompt, request

WINDOW = 32
GRAIN = 2


def steps(h: Harness) -> int:
    """Run to the end. Returns the most slots that were held."""
    most = 0
    while h.step():
        h.scheduler.check_integrity()
        kv, rows = h.kv, h.rows
        most = max(most, kv.used)
        owned = int((rows.planned - rows.owned)[0, rows.running()].sum())
        shown = kv_map(rows, kv.spaces[0], {})
        assert int(np.round(shown.running.astype(int).sum() * shown.cell_slots / 100)) == kv.used >= owned
    h.run()
    return most


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("reuse", [True, False])
def test_a_sequence_holds_its_window(depth: int, reuse: bool) -> None:
    h = harness(depth, window=WINDOW, kv_tokens=200, step_tokens=8, rows=2)
    assert h.scheduler.limits.window_grain == GRAIN
    h.add(request(1, prompt(100), max_new_tokens=90, ignore_eos=True, reuse_prompt=reuse))
    assert steps(h) <= WINDOW + GRAIN + 8 * (1 + depth)
    h.check_answers(1)


def test_more_sequences_fit() -> None:
    """Four of 190 tokens need 760 slots, or at most 49 each."""
    h = harness(window=WINDOW, kv_tokens=220, step_tokens=16)
    h.add(*[request(rid, prompt(100, rid), max_new_tokens=90, ignore_eos=True) for rid in range(1, 5)])
    running = 0.0
    while h.step():
        running = max(running, h.scheduler.gauges()["running"])
    assert running == 4
    assert h.scheduler.gauges()["preemptions"] == 0
    h.run().check_answers()


@pytest.mark.parametrize("depth", [0, 1])
def test_a_sequence_may_be_longer_than_the_pool(depth: int) -> None:
    h = harness(depth, window=WINDOW, kv_tokens=80, step_tokens=16, run_ahead=depth)
    assert h.scheduler.limits.width == 200
    h.add(*[request(rid, prompt(150, rid), max_new_tokens=50, ignore_eos=True, n=rid) for rid in (1, 2)])
    steps(h)
    h.check_answers()
    assert {len(ids) for ids in h.ids.values()} == {50}
    assert harness(window=WINDOW, kv_tokens=49, step_tokens=16).scheduler.limits.width == 50


def test_a_beginning_is_shared_while_there_is_memory() -> None:
    h = harness(window=WINDOW)
    h.add(request(1, prompt(100) + [5] * 40, max_new_tokens=50, ignore_eos=True))
    h.run()
    h.add(request(2, prompt(100) + [7] * 40))
    h.run().check_answers()
    assert h.opened[2].cached_tokens == 100


def test_an_answer_goes_on_when_its_beginning_is_gone() -> None:
    h = harness(window=WINDOW, kv_tokens=130)
    h.add(request(1, prompt(90), max_new_tokens=30, ignore_eos=True))
    h.run()
    h.add(request(2, prompt(60, 2), reuse_prompt=False))  # takes the oldest slots, which the first prompt starts with
    h.run()
    h.add(request(3, [*prompt(90), *h.ids[1], 7], max_new_tokens=4))
    h.run().check_answers()
    assert h.opened[3].cached_tokens == 119
    assert h.scheduler.gauges()["evicted_tokens"] > 0


@pytest.mark.parametrize("depth", [0, 1])
def test_the_answers_of_a_request_share_its_prompt(depth: int) -> None:
    h = harness(depth, window=WINDOW, kv_tokens=300)
    h.add(request(1, prompt(120), n=4, max_new_tokens=40, ignore_eos=True, temperature=1.0))
    steps(h)
    h.check_answers()
    assert sorted(h.opened[rid].cached_tokens for rid in range(1, 5)) == [0, 119, 119, 119]
