"""Tests the peak formula against a simulation, and predictions against the distribution they are drawn from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightllm_mp.scheduler.output_lengths import SAMPLES, WINDOW, OutputLengths, capacity, most, peak


def simulate(held: list[int], left: list[int]) -> int:
    """Most tokens held at any time, step by step. A sequence frees all its tokens after its last one."""
    highest, now = 0, 0
    while any(left_i >= now for left_i in left):
        highest = max(highest, sum(h + now for h, left_i in zip(held, left, strict=True) if left_i >= now))
        now += 1
    return highest


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 30)), min_size=1, max_size=8))
def test_peak_is_that_of_a_simulation(sequences: list[tuple[int, int]]) -> None:
    held, left = [h for h, _ in sequences], [left_i for _, left_i in sequences]
    assert peak(np.array(held), np.array([left])) == simulate(held, left)
    assert peak(np.array(held), np.array([left])) <= most(np.array(held), np.array(left))


def test_the_worst_sample_counts() -> None:
    held = np.array([10, 20])
    left = np.array([[1, 1], [5, 50]])
    assert peak(held, left) == max(simulate([10, 20], [1, 1]), simulate([10, 20], [5, 50])) == 70


def test_nobody_holds_nothing() -> None:
    assert peak(np.zeros(0, np.int64), np.zeros((SAMPLES, 0), np.int64)) == 0


def draws(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((SAMPLES, n))


def test_without_history_the_limit_is_expected() -> None:
    lengths = OutputLengths()
    got = lengths.predict(np.array([0, 5]), np.array([100, 7]), draws(2))
    assert (got == [[100, 7]] * SAMPLES).all()


def test_the_expected_length_is_the_mean_of_the_longer_ones() -> None:
    lengths = OutputLengths()
    assert lengths.expected(np.array([0, 50]), np.array([100, 1000])).tolist() == [100, 306]
    for length in (10, 20, 60):
        lengths.record(length)
    found = lengths.expected(np.array([0, 10, 30, 60, 0]), np.array([999, 999, 999, 999, 7]))
    assert found.tolist() == [30, 40, 60, 316, 7]
    assert lengths.expected(np.zeros(0, np.int64), np.zeros(0, np.int64)).size == 0


def test_predictions_follow_what_was_seen_and_what_is_produced() -> None:
    lengths, random = OutputLengths(), np.random.default_rng(5)
    seen = random.integers(1, 200, WINDOW)
    for length in seen:
        lengths.record(int(length))
    for produced in (0, 50, 150):
        n = 4000
        got = lengths.predict(np.full(n, produced), np.full(n, 10_000), draws(n))
        rest = seen[seen > produced]
        assert (got > produced).all()
        inside = got[got < 10_000]
        assert set(inside.tolist()) <= set(rest.tolist())
        assert inside.mean() == pytest.approx(rest.mean(), rel=0.03)
        assert (got == 10_000).mean() == pytest.approx(1 / (len(rest) + 1), abs=0.005)


def test_past_all_that_was_seen_the_limit_is_expected() -> None:
    lengths = OutputLengths()
    for length in (3, 4, 5):
        lengths.record(length)
    assert (lengths.predict(np.array([5]), np.array([64]), draws(1)) == 64).all()
    assert (lengths.predict(np.array([1]), np.array([4]), draws(1)) <= 4).all()


def test_the_window_forgets() -> None:
    lengths = OutputLengths()
    for _ in range(WINDOW):
        lengths.record(1000)
    for _ in range(WINDOW):
        lengths.record(10)
    got = lengths.predict(np.zeros(200, np.int64), np.full(200, 5000), draws(200))
    assert set(got.ravel().tolist()) <= {10, 5000}


def test_a_reserve_is_kept() -> None:
    assert 0.95 <= capacity(10_000) / 10_000 <= 0.97
    assert capacity(10) == 10
