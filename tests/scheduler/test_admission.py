"""Which sequences admission lets in beside the running ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lightllm_mp.messages import Tokenized
from lightllm_mp.scheduler.admission import Admission
from tests.scheduler.harness import Harness, harness, prompt, request


def running_after(h: Harness, steps: int = 1) -> int:
    for _ in range(steps):
        h.step()
    return int(h.scheduler.gauges()["running"])


def fixed(rid: int, length: int, new: int, seed: int | None = None) -> Tokenized:
    return request(rid, prompt(length, rid if seed is None else seed), max_new_tokens=new, ignore_eos=True)


def test_without_a_past_the_peak_of_the_limits_has_to_fit() -> None:
    """100 slots, 96 for admission. Two of 20 + 29 computed tokens hold 98 at their end; two of 20 + 27 hold 94."""
    h = harness(kv_tokens=100, step_tokens=64)
    h.add(fixed(1, 20, 30), fixed(2, 20, 30))
    assert running_after(h) == 1
    h = harness(kv_tokens=100, step_tokens=64)
    h.add(fixed(1, 20, 28), fixed(2, 20, 28))
    assert running_after(h) == 2


def test_one_that_ends_early_makes_room_for_one_that_ends_late() -> None:
    """Together they would hold 40 + 4 + 60 = 104 tokens, but the first ends before the second has grown."""
    h = harness(kv_tokens=100, step_tokens=64)
    h.add(fixed(1, 40, 5), fixed(2, 20, 41))
    assert running_after(h) == 2
    h.run().check_answers()
    assert h.scheduler.gauges()["preemptions"] == 0


def test_a_shared_prefix_is_charged_once() -> None:
    h = harness(kv_tokens=200, rows=20, step_tokens=64)
    h.add(fixed(1, 60, 2, seed=1))
    h.run()
    h.add(*[fixed(rid, 60, 10, seed=1) for rid in range(2, 12)])
    assert running_after(h) == 10
    h.run().check_answers()
    assert h.scheduler.gauges()["preemptions"] == 0


def test_a_prefix_whose_owner_is_gone_still_takes_room() -> None:
    """60 shared + 40 of the second + 119 of the third do not fit into 192."""
    h = harness(kv_tokens=200, step_tokens=64)
    h.add(fixed(1, 60, 2, seed=1))
    h.run()
    h.add(fixed(2, 60, 40, seed=1), fixed(3, 80, 40))
    assert running_after(h, 4) == 1
    h.run().check_answers()


@pytest.mark.parametrize("end", [lambda h: h.scheduler.abort(1), lambda h: h.scheduler.stop_matched(1)])
def test_whoever_leaves_makes_room(end: Callable[[Harness], None]) -> None:
    h = harness(kv_tokens=100, step_tokens=64)
    h.add(fixed(1, 20, 70), fixed(2, 20, 70))
    assert running_after(h, 3) == 1
    end(h)
    assert running_after(h) == 1
    assert 2 in h.ids


def test_the_first_in_the_queue_is_not_overtaken() -> None:
    h = harness(kv_tokens=100, step_tokens=64)
    h.add(fixed(1, 20, 40), fixed(2, 60, 20), fixed(3, 5, 2))
    assert running_after(h, 3) == 1
    h.run().check_answers()
    assert h.order == [1, 3, 2]


def test_after_a_preemption_nobody_starts_before_somebody_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Admission, "admits", lambda *_: True)
    h = harness(kv_tokens=120)
    h.add(*[fixed(rid, 8, 60) for rid in range(1, 9)])
    while not h.scheduler.gauges()["preemptions"]:
        h.step()
    admitted = h.scheduler.gauges()["admitted"]
    while not h.finish:
        assert h.scheduler.gauges()["admitted"] == admitted
        h.step()
    h.run().check_answers()
    assert h.scheduler.gauges()["admitted"] > admitted
