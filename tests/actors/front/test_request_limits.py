"""How many requests may be live, and whose."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from lightllm_mp.actors.front import request_limits as door_module
from lightllm_mp.actors.front.fair_shares import FULL, OVER_SHARE
from lightllm_mp.actors.front.request_limits import RETRY_UNKNOWN, RequestLimits


def enter(limits: RequestLimits, tenant: bytes) -> int:
    """As many as are let in."""
    count = 0
    while not limits.refusal(tenant):
        limits.enter(tenant)
        count += 1
    return count


def test_a_single_tenant_has_all_of_it() -> None:
    limits = RequestLimits(10)
    assert enter(limits, b"a") == 10
    assert limits.refusal(b"a") == FULL
    limits.leave(b"a")
    assert enter(limits, b"a") == 1


def test_a_greedy_tenant_leaves_the_others_their_share() -> None:
    limits = RequestLimits(100, tenants=2)
    assert enter(limits, b"greedy") == 75
    assert limits.refusal(b"greedy") == OVER_SHARE
    assert enter(limits, b"other") == 25
    assert limits.refusal(b"other") == limits.refusal(b"greedy") == FULL
    limits.leave(b"greedy")
    assert enter(limits, b"other") == 1  # the common half is for whoever comes


@pytest.mark.parametrize("tenants", [1, 2, 3, 7])
def test_never_more_than_the_most_and_always_the_own_share(tenants: int) -> None:
    rng, limits, live = random.Random(tenants), RequestLimits(40, tenants), Counter[int]()
    own = 40 // (2 * tenants) if tenants > 1 else 0
    for _ in range(4000):
        tenant = rng.randrange(tenants)
        if live[tenant] and rng.random() < 0.4:
            limits.leave(bytes([tenant]))
            live[tenant] -= 1
        elif not limits.refusal(bytes([tenant])):
            limits.enter(bytes([tenant]))
            live[tenant] += 1
        else:
            assert live[tenant] >= own
        assert live.total() <= 40


def test_idle_time_does_not_count_in_what_refused_clients_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(door_module, "monotonic", lambda: now[0])
    limits = RequestLimits(100)
    assert limits.retry_after() == RETRY_UNKNOWN
    for _ in range(3):  # bursts of 40 requests, one finished every tenth of a second, with an hour between
        for _ in range(40):
            limits.enter(b"")
        for _ in range(40):
            now[0] += 0.1
            limits.finished()
            limits.leave(b"")
        now[0] += 3600.0
    for _ in range(100):
        limits.enter(b"")
    assert limits.retry_after() == pytest.approx(100 / 10, rel=0.2)
    now[0] += 30.0  # nothing finishes any more
    assert limits.retry_after() == 60.0
