"""Prompts of different length classes share no prefix, and a sequence keeps its prompt's class to its end."""

from __future__ import annotations

import pytest

from tests.scheduler.harness import Harness, harness, prompt, request
from tests.scheduler.test_disruption import expect_short_answers

BOUNDS = (8, 16, 32)
LONG = prompt(60, 7)


def classed(depth: int = 0, **changes: object) -> Harness:
    return harness(depth, class_bounds=BOUNDS, **changes)


def test_the_class_of_a_length() -> None:
    limits = classed().scheduler.limits
    lengths = (1, 8, 9, 16, 17, 32, 33, 150)
    assert [limits.rope_class(length) for length in lengths] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert harness().scheduler.limits.rope_class(150) == 0


@pytest.mark.parametrize("depth", [0, 1])
def test_a_prefix_is_reused_within_a_class_only(depth: int) -> None:
    h = classed(depth)
    cached = {}
    for rid, length in enumerate((60, 59, 20, 19, 7, 6), 1):
        h.add(request(rid, LONG[:length], max_new_tokens=3))
        h.run()
        cached[length] = h.opened[rid].cached_tokens
    h.check_answers()
    assert (cached[59], cached[19], cached[6]) == (58, 18, 5)
    assert (cached[60], cached[20], cached[7]) == (0, 0, 0)


def test_an_answer_that_outgrows_its_class_is_no_prefix_of_the_next() -> None:
    """The dialogue goes on with the whole text so far, but the cached part belongs to the shorter prompt's class."""
    h = classed()
    h.add(request(1, LONG[:7], max_new_tokens=20, ignore_eos=True))
    h.run()
    h.add(request(2, [*LONG[:7], *h.ids[1], 5]))
    h.run()
    h.check_answers()
    assert h.opened[2].cached_tokens == 0


@pytest.mark.parametrize("depth", [0, 1])
def test_a_preempted_sequence_keeps_its_class(depth: int) -> None:
    h = classed(depth, kv_tokens=120)
    expect_short_answers(h)
    h.add(*[request(rid, prompt(8, rid), max_new_tokens=60, ignore_eos=True) for rid in range(1, 9)])
    h.run()
    assert h.scheduler.gauges()["preemptions"] > 0
    h.check_answers()


def test_a_resumed_sequence_keeps_its_class() -> None:
    whole = classed()
    whole.add(request(1, LONG[:8], max_new_tokens=30, ignore_eos=True))
    emitted = whole.run().ids[1][:20]
    h = classed()
    h.add(request(1, LONG[:8], emitted=emitted, max_new_tokens=30, ignore_eos=True))
    h.run()
    h.check_answers()


def test_n_answers_share_their_class_and_their_prompt() -> None:
    h = classed()
    h.add(request(1, LONG[:30], n=3, temperature=1.0, max_new_tokens=12))
    h.run()
    h.check_answers()
    assert sorted(h.opened[rid].cached_tokens for rid in (1, 2, 3)) == [0, 29, 29]


def test_all_classes_at_once() -> None:
    h = classed(1, kv_tokens=150)
    lengths = (7, 15, 30, 60, 8, 16, 31, 55)
    h.add(*[request(rid, LONG[:length], max_new_tokens=20) for rid, length in enumerate(lengths, 1)])
    h.run()
    h.check_answers()
