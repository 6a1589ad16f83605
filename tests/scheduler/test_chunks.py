"""How prompts share a step."""

from __future__ import annotations

from lightllm_mp.scheduler.admission import service_order


def share(prompts: list[tuple[int, ...]], budget: int) -> list[int]:
    """`prompts`: ([tenant,] priority, tokens left)"""
    got = [0] * len(prompts)
    full = [(0, *prompt) if len(prompt) == 2 else prompt for prompt in prompts]
    for index, most in service_order(full, budget):  # type: ignore[arg-type]
        count = min(most, budget, prompts[index][-1] - got[index])
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


def test_priority_does_not_count_against_other_tenants() -> None:
    greedy = [(1, 2**31 - 1, 500)] * 6
    assert share([(0, 0, 300), *greedy], 64)[0] == 64  # it comes first, and has the fewest tokens left
    assert share([*greedy, (0, 0, 300)], 64) == [32, 0, 0, 0, 0, 0, 32]
    assert share([(1, 0, 500), (1, 9, 400), (0, 0, 450)], 60) == [30, 30, 0]
