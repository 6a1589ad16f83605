"""The slot pool gives every slot once."""

from __future__ import annotations

import numpy as np
import pytest

from lightllm_mp.scheduler.slot_pool import SlotPool


def test_a_fresh_pool_gives_ascending_runs() -> None:
    pool = SlotPool(10)
    first, second = pool.alloc(4), pool.alloc(3)
    assert first is not None
    assert second is not None
    assert first.tolist() == [0, 1, 2, 3]
    assert second.tolist() == [4, 5, 6]
    assert first.dtype == np.int32
    assert pool.free == 3


def test_given_back_slots_come_again_in_order() -> None:
    pool = SlotPool(6)
    taken = pool.alloc(6)
    assert taken is not None
    assert pool.alloc(1) is None
    pool.give_back(taken[2:5])
    again = pool.alloc(3)
    assert again is not None
    assert again.tolist() == [2, 3, 4]


def test_too_many_takes_nothing() -> None:
    pool = SlotPool(5)
    assert pool.alloc(6) is None
    assert pool.free == 5
    nothing = pool.alloc(0)
    assert nothing is not None
    assert len(nothing) == 0


def test_freeing_twice_is_noticed() -> None:
    pool = SlotPool(5)
    slots = pool.alloc(2)
    assert slots is not None
    pool.give_back(slots)
    with pytest.raises(RuntimeError, match="twice"):
        pool.give_back(slots)


def test_random_use_keeps_every_slot_once() -> None:
    pool, random = SlotPool(97), np.random.default_rng(1)
    held: list[np.ndarray] = []
    for _ in range(500):
        if held and random.random() < 0.5:
            pool.give_back(held.pop(random.integers(len(held))))
        elif (slots := pool.alloc(int(random.integers(0, 30)))) is not None:
            held.append(slots)
        assert sorted(np.concatenate([pool.free_slots(), *held]).tolist()) == list(range(97))
    pool.clear()
    assert pool.free == 97
