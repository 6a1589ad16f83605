"""The rule by which tenants share requests, image bytes, connections and look-ups."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from lightllm_mp.actors.front.fair_shares import FULL, OVER_SHARE, FairShares


def fill(shares: FairShares, tenant: bytes) -> int:
    """As many units as the tenant may take."""
    count = 0
    while not shares.refusal(tenant):
        shares.take(tenant)
        count += 1
    return count


def test_amounts_count_not_only_units() -> None:
    shares = FairShares(100, tenants=2)
    assert shares.refusal(b"a", 76) == OVER_SHARE
    assert shares.refusal(b"a", 101) == FULL
    assert not shares.refusal(b"a", 75)
    shares.take(b"a", 75)
    assert not shares.refusal(b"b", 25)
    assert shares.refusal(b"b", 26) == FULL
    shares.give_back(b"a", 75)
    assert not shares.refusal(b"b", 75)
    assert shares.total == 0


def test_of_an_unknown_number_of_tenants_a_newcomer_finds_room() -> None:
    shares = FairShares(100)
    found = [fill(shares, bytes([tenant])) for tenant in range(4)]
    assert found == [75, 16, 9, 0]
    shares.give_back(bytes([0]), 10)
    assert shares.refusal(bytes([0])) == OVER_SHARE
    assert fill(shares, bytes([3])) == 10


def test_more_tenants_than_units_to_reserve_are_treated_as_unknown() -> None:
    assert fill(FairShares(16, tenants=1000), b"greedy") == 12


@pytest.mark.parametrize("tenants", [0, 1, 2, 5])
def test_never_more_than_the_most(tenants: int) -> None:
    rng, shares, held = random.Random(tenants), FairShares(60, tenants), Counter[int]()
    own = 60 // (2 * tenants) if tenants > 1 else 0
    for _ in range(4000):
        tenant, amount = rng.randrange(tenants or 9), rng.randrange(1, 5)
        if held[tenant] >= amount and rng.random() < 0.4:
            shares.give_back(bytes([tenant]), amount)
            held[tenant] -= amount
        elif not shares.refusal(bytes([tenant]), amount):
            shares.take(bytes([tenant]), amount)
            held[tenant] += amount
        else:
            assert held[tenant] + amount > own
        assert shares.total == held.total() <= 60
