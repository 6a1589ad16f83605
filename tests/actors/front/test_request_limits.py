"""How many requests may be live, and whose."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from lightllm_mp.actors.front import request_limits as door_module
from lightllm_mp.actors.front.request_limits import FULL, OVER_SHARE, RETRY_UNKNOWN, RequestLimits


def enter(door: RequestLimits, tenant: bytes) -> int:
    """As many as are let in."""
    count = 0
    while not door.refusal(tenant):
        door.enter(tenant)
        count += 1
    return count


def test_a_single_tenant_has_all_of_it() -> None:
    door = RequestLimits(10)
    assert enter(door, b"a") == 10
    assert door.refusal(b"a") == FULL
    door.leave(b"a")
    assert enter(door, b"a") == 1


def test_a_greedy_tenant_leaves_the_others_their_share() -> None:
    door = RequestLimits(100, tenants=2)
    assert enter(door, b"greedy") == 75
    assert door.refusal(b"greedy") == OVER_SHARE
    assert enter(door, b"other") == 25
    assert door.refusal(b"other") == door.refusal(b"greedy") == FULL
    door.leave(b"greedy")
    assert enter(door, b"other") == 1  # the common half is for whoever comes


@pytest.mark.parametrize("tenants", [1, 2, 3, 7])
def test_never_more_than_the_most_and_always_the_own_share(tenants: int) -> None:
    rng, door, live = random.Random(tenants), RequestLimits(40, tenants), Counter[int]()
    own = 40 // (2 * tenants) if tenants > 1 else 0
    for _ in range(4000):
        tenant = rng.randrange(tenants)
        if live[tenant] and rng.random() < 0.4:
            door.leave(bytes([tenant]))
            live[tenant] -= 1
        elif not door.refusal(bytes([tenant])):
            door.enter(bytes([tenant]))
            live[tenant] += 1
        else:
            assert live[tenant] >= own
        assert live.total() <= 40


def test_idle_time_does_not_count_in_what_refused_clients_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(door_module, "monotonic", lambda: now[0])
    door = RequestLimits(100)
    assert door.retry_after() == RETRY_UNKNOWN
    for _ in range(3):  # bursts of 40 requests, one finished every tenth of a second, with an hour between
        for _ in range(40):
            door.enter(b"")
        for _ in range(40):
            now[0] += 0.1
            door.finished()
            door.leave(b"")
        now[0] += 3600.0
    for _ in range(100):
        door.enter(b"")
    assert door.retry_after() == pytest.approx(100 / 10, rel=0.2)
    now[0] += 30.0  # nothing finishes any more
    assert door.retry_after() == 60.0
