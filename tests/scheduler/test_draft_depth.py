"""The draft length is the one with most tokens per second."""

from __future__ import annotations

import numpy as np
import pytest

from lightllm_mp.scheduler.speculation.draft_depth import KEPT, STALE, TRIES, Acceptance, StepTimes, best_depths, depths


def times(fixed: float, each: float) -> StepTimes:
    made = StepTimes()
    for tokens in [*range(1, 16), *range(16, 32, 2), *range(32, 64, 4), *range(64, 192, 8)]:
        add(made, tokens, fixed + each * tokens)
    return made


def add(times: StepTimes, tokens: int, seconds: float) -> None:
    for _ in range(TRIES):
        times.add(tokens, seconds)


def speed(rate: float, depth: int, rows: int, fixed: float, each: float) -> float:
    return rows * sum(rate**k for k in range(depth + 1)) / (fixed + each * rows * (depth + 1))


@pytest.mark.parametrize("rows", [1, 4, 20])
@pytest.mark.parametrize("each", [0.0, 0.02, 0.1, 0.5])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8, 0.95])
def test_the_depth_is_nearly_the_best(rows: int, each: float, rate: float) -> None:
    chosen = best_depths(np.full(rows, rate), 8, rows, times(1.0, each))
    assert (chosen == chosen[0]).all()
    best = max(speed(rate, depth, rows, 1.0, each) for depth in range(9))
    assert speed(rate, int(chosen[0]), rows, 1.0, each) > 0.95 * best


def test_full_steps_draft_for_the_surest_only() -> None:
    alone = best_depths(np.array([0.5]), 8, 1, times(1.0, 0.02))
    assert 2 <= alone[0] <= 6
    crowd = best_depths(np.array([0.5, 0.95]), 8, 120, times(1.0, 0.02))
    assert crowd[0] == 0
    assert crowd[1] > 0


def test_sizes_that_were_never_seen_are_tried() -> None:
    made = StepTimes()
    assert best_depths(np.array([0.7]), 8, 1, made)[0] == 8
    add(made, 1, 0.01)
    assert best_depths(np.array([0.7]), 8, 1, made)[0] == 8
    add(made, 9, 0.09)
    assert best_depths(np.array([0.7]), 8, 1, made)[0] == 0
    for _ in range(2 * STALE):
        made.add(1, 0.01)
    assert best_depths(np.array([0.7]), 8, 1, made)[0] == 8, "and once in a while"
    for _ in range(STALE * (TRIES + 1)):
        made.add(1, 0.01)
    assert len(made._times) == 1


def test_times_follow_the_steps_and_forgive_slow_ones() -> None:
    made, four = StepTimes(), np.array([4])
    add(made, 4, 1.0)
    made.add(4, 9.0)
    assert made.at(four)[0] == 1.0
    for _ in range(KEPT):
        made.add(4, 2.0)
    assert made.at(four)[0] == 2.0
    made.add(4, 0.0)  # a worker without a clock
    assert made.at(four)[0] == 2.0


def test_a_rate_follows_what_comes_true_and_recovers() -> None:
    rows, lives = np.array([0, 2]), np.array([5, 6])
    known = Acceptance(3)
    first = known.rates(rows, lives)
    for _ in range(10):
        known.add(rows, np.array([4, 4]), np.array([4, 0]))
    rates = known.rates(rows, lives)
    assert rates[0] > 0.95 > first[0] > 0.2 > rates[1]
    for _ in range(300):
        known.recover(rows)
    assert known.rates(rows, lives) == pytest.approx(first, abs=0.1)
    known.add(rows, np.array([4, 4]), np.array([0, 0]))
    old, new = known.rates(rows, np.array([5, 7]))
    assert new > old, "another sequence has the row"


@pytest.mark.parametrize("right", [0, 4])
def test_of_new_sequences_is_expected_what_was_seen_of_others(right: int) -> None:
    known, row = Acceptance(1), np.array([0])
    for life in range(300):
        known.rates(row, np.array([life]))
        known.add(row, np.array([4]), np.array([right]))
    rate = known.rates(row, np.array([900]))[0]
    assert rate > 0.95 if right else 0.15 < rate < 0.25


def test_tokens_behind_the_first_unlikely_one_are_not_drafted() -> None:
    assert depths(np.array([0.5, 0.9]), 8, np.array([0.3, 1.0])).tolist() == [[1, 8], [0, 0]]
