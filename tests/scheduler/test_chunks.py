"""How a step is shared between prompts."""

from __future__ import annotations

from lightllm_mp.scheduler.admission import service_order


def share(prompts: list[tuple[int, int]], budget: int) -> list[int]:
    got = [0] * len(prompts)
    for index, most in service_order(prompts, budget):
        count = min(most, budget, prompts[index][1] - got[index])
        got[index] += count
        budget -= count
    return got


def test_one_prompt_gets_all() -> None:
    assert share([(0, 1000)], 64) == [64]
    assert share([(0, 10)], 64) == [10]
    assert share([], 64) == []


def test_a_short_prompt_does_not_wait_for_long_ones() -> None:
    assert share([(0, 1000), (0, 1000), (0, 1000), (0, 1000), (0, 20)], 64) == [44, 0, 0, 0, 20]


def test_long_prompts_finish_one_after_the_other() -> None:
    assert share([(0, 900), (0, 1000), (0, 1000)], 64) == [64, 0, 0]


def test_the_first_prompt_always_gets_half() -> None:
    assert share([(0, 1000)] + [(0, 5)] * 100, 65)[0] == 33


def test_priority_goes_first() -> None:
    assert share([(5, 500), (0, 3)], 64) == [64, 0]
    assert share([(5, 500), (5, 30), (0, 3)], 64) == [34, 30, 0]
