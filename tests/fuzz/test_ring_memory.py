"""A lane whose memory somebody has written over: correct records or a poisoned lane, in both implementations."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightllm_mp.shm.implementation import VARIABLE, extension
from lightllm_mp.shm.layout import PAGE
from tools.fuzz.lanes import CAPACITY, LARGEST, Attacked

LENGTHS = st.lists(st.integers(0, LARGEST), max_size=20)
OVER = st.tuples(st.integers(0, PAGE + CAPACITY - 1), st.binary(min_size=1, max_size=CAPACITY))


def _use(ring: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, ring)
    if ring == "c" and extension() is None:
        pytest.skip("the extension lightllm_mp.shm._ring is not built")


def _attack(before: list[int], stretches: list[tuple[int, bytes]], bits: list[int], after: list[int]) -> None:
    lane = Attacked()
    try:
        lane.put(1, before)
        for at, data in stretches:
            lane.write(at, data)
        for bit in bits:
            lane.flip(bit)
        for _ in range(3):
            lane.drain(100)
            lane.put(1, after)
            lane.sleep()
        lane.attach()
        lane.check()
    finally:
        lane.close()


@pytest.mark.parametrize("ring", ["c", "python"])
def test_random_bytes_anywhere(ring: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _use(ring, monkeypatch)

    @settings(max_examples=100, deadline=None, derandomize=True, database=None)
    @given(LENGTHS, st.lists(OVER, min_size=1, max_size=3), LENGTHS)
    def run(before: list[int], stretches: list[tuple[int, bytes]], after: list[int]) -> None:
        _attack(before, stretches, [], after)

    run()


@pytest.mark.parametrize("ring", ["c", "python"])
def test_flipped_bits(ring: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the header's words and of the first records, where they hurt."""
    _use(ring, monkeypatch)
    places = st.integers(0, 8 * 800 - 1) | st.integers(8 * PAGE, 8 * (PAGE + 600))

    @settings(max_examples=100, deadline=None, derandomize=True, database=None)
    @given(LENGTHS, st.lists(places, min_size=1, max_size=6), LENGTHS)
    def run(before: list[int], bits: list[int], after: list[int]) -> None:
        _attack(before, [], bits, after)

    run()
