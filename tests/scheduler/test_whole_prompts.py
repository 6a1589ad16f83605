"""Encoders: one step computes a prompt whole, and nothing of it is cached."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lightllm_mp.errors import PromptTooLong
from lightllm_mp.facts import PooledFacts
from lightllm_mp.plan import unpack
from tests.scheduler.harness import Harness, harness, prompt, request
from tests.scheduler.mock_worker import expected_score


def encoder(depth: int = 0, **changes: Any) -> Harness:
    whole = PooledFacts("score", 1, whole_prompts=changes.pop("usual", 100))
    return harness(depth, **{"pooled": whole, "step_tokens": 100, "max_input": 100, "prompt_cache": False, **changes})


def ask(h: Harness, lengths: dict[int, int]) -> None:
    h.add(*[request(rid, prompt(length, rid), max_new_tokens=0) for rid, length in lengths.items()])


def steps(h: Harness) -> list[list[tuple[int, int]]]:
    """(start, count) of each sequence of each step, until no work is left."""
    found = []
    while (plan := h.scheduler.plan()) is not None:
        found.append([tuple(seq[1:3]) for seq in unpack(plan).seqs.tolist()])
        h.scheduler.done(h.worker.step(plan))
    return found


@pytest.mark.parametrize("depth", [0, 1])
def test_no_prompt_is_cut(depth: int) -> None:
    h, lengths = encoder(depth), dict(enumerate((1, 60, 100, 3, 41, 99, 1, 2, 100, 50), 1))
    ask(h, lengths)
    h.run()
    for rid, length in lengths.items():
        assert np.frombuffer(h.pooled[rid].row, "<f4")[0] == pytest.approx(expected_score(prompt(length, rid)))


def test_a_step_takes_whole_prompts_in_order() -> None:
    """Short prompts do not overtake a long one that does not fit. Otherwise it would wait as long as they arrive."""
    h = encoder()
    ask(h, {1: 60, 2: 90, 3: 10, 4: 10, 5: 5})
    assert [sorted(count for _, count in seqs) for seqs in steps(h)] == [[60], [10, 90], [5, 10]]


def test_a_prompt_longer_than_the_usual_step_is_computed_alone() -> None:
    h = encoder(usual=30)
    ask(h, {1: 20, 2: 95, 3: 10, 4: 15, 5: 30, 6: 1})
    assert [[count for _, count in seqs] for seqs in steps(h)] == [[20], [95], [10, 15], [30], [1]]


def test_every_chunk_begins_at_the_first_token() -> None:
    h = encoder(kv_tokens=120)
    ask(h, {rid: 30 + rid for rid in range(1, 12)})
    found = steps(h)
    assert sum(map(len, found)) == 11
    assert {start for seqs in found for start, _ in seqs} == {0}


def test_a_prompt_longer_than_a_step_is_refused() -> None:
    with pytest.raises(PromptTooLong, match="at most 100"):
        ask(encoder(), {1: 101})


def test_nothing_is_cached() -> None:
    h = encoder()
    for _ in range(2):
        ask(h, {1: 90})
        h.run()
        h.pooled.clear()
        h.scheduled.clear()
    assert h.scheduler.gauges()["kv_cached"] == 0
