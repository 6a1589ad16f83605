"""Routing: a request goes to its prefix and image, unless that replica is busier by more than the cache saves."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from lightllm_mp.replicas.footprint import Footprint
from lightllm_mp.replicas.routing import BLOCK_TOKENS, ReplicaRouter


def asked(*blocks: int, images: tuple[int, ...] = (), tokens: int | None = None, answer: int = 10) -> Footprint:
    return Footprint(blocks, images, BLOCK_TOKENS * len(blocks) + 10 if tokens is None else tokens, answer)


def fleet(count: int, *, kv_tokens: int = 1 << 20, images: int = 100, seed: int = 1) -> ReplicaRouter:
    router = ReplicaRouter(seed)
    for i in range(count):
        router.join(f"r{i}", kv_tokens=kv_tokens, images=images)
    return router


def test_a_request_goes_where_its_prefix_is():
    router = fleet(20)
    router.sent("r7", asked(1, 2, 3))
    router.done("r7", 1e9)
    assert {router.choose(asked(1, 2, 3, 4)) for _ in range(50)} == {"r7"}
    assert {router.choose(asked(1, 2, 9)) for _ in range(50)} == {"r7"}
    assert len({router.choose(asked(8, 9)) for _ in range(200)}) > 10


def test_a_request_goes_where_its_image_is():
    router = fleet(20)
    router.sent("r3", asked(1, images=(77,), tokens=600))
    router.done("r3", 1e9)
    assert {router.choose(asked(5, 6, images=(77,), tokens=700)) for _ in range(50)} == {"r3"}


def test_a_busy_replica_shares_its_prefix():
    router = fleet(8)
    hot, where = asked(*range(100), answer=200), Counter[str]()
    for _ in range(400):
        name = router.choose(hot)
        assert name is not None
        router.sent(name, hot)
        where[name] += 1
    assert len(where) == 8
    assert max(where.values()) < 1.6 * 400 / 8


def test_work_that_is_reported_counts():
    router = fleet(2)
    router.report("r0", work=1e6)
    assert {router.choose(asked(1)) for _ in range(20)} == {"r1"}
    router.report("r0", work=0.0, held=[asked(1, 2, 3)])
    assert {router.choose(asked(1, 2, 3)) for _ in range(20)} == {"r0"}
    router.report("gone", work=1.0)


def test_replicas_come_and_go():
    router = fleet(3)
    router.sent("r1", asked(1, 2))
    router.accept("r1", False)
    assert router.choose(asked(1, 2)) in ("r0", "r2")
    router.accept("r1", True)
    router.done("r1", 1e9)
    assert router.choose(asked(1, 2)) == "r1"
    assert router.choose(asked(1, 2), without={"r1"}) in ("r0", "r2")
    assert router.choose(asked(1, 2), without={"r0", "r1", "r2"}) is None
    router.leave("r1")
    router.done("r1", 5.0)
    assert router.choose(asked(1, 2)) in ("r0", "r2")
    for name in ("r0", "r2"):
        router.leave(name)
    assert router.choose(asked(1)) is None
    assert router._holders == {}


def test_what_a_replica_has_forgotten_is_not_expected_of_it():
    router = fleet(4, kv_tokens=10 * BLOCK_TOKENS, images=2)
    router.sent("r0", asked(1, 2, 3, images=(1,)))
    for other in range(2, 6):
        router.sent("r0", asked(*range(100 * other, 100 * other + 5), images=(other,)))
    assert router.saved("r0", asked(1, 2, 3, images=(1,), tokens=1000)) == 0
    assert len(router.replicas["r0"].blocks) == 10
    assert len(router._holders) == 12


def test_the_end_of_a_prompt_is_forgotten_first():
    router = fleet(1, kv_tokens=8 * BLOCK_TOKENS)
    router.sent("r0", asked(*range(8)))
    router.sent("r0", asked(100, 101, 102))
    assert router.saved("r0", asked(*range(8))) == 5 * BLOCK_TOKENS


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_left_of_random_traffic(seed: int):
    chance = random.Random(seed)
    router = fleet(5, kv_tokens=30 * BLOCK_TOKENS, images=3, seed=seed)
    open_: list[tuple[str, float]] = []
    for _ in range(500):
        match chance.randrange(8):
            case 0:
                name = f"r{chance.randrange(5)}"
                if name in router.replicas and chance.random() < 0.5:
                    router.leave(name)
                else:
                    router.join(name, kv_tokens=30 * BLOCK_TOKENS, images=3)
            case 1 if router.replicas:
                router.accept(chance.choice(list(router.replicas)), chance.random() < 0.7)
            case 2 if open_:
                router.done(*open_.pop(chance.randrange(len(open_))))
            case _:
                begin = 100 * chance.randrange(6)
                footprint = asked(*range(begin, begin + chance.randrange(12)), images=(chance.randrange(9),))
                name_or_none = router.choose(footprint)
                accepting = [name for name, replica in router.replicas.items() if replica.accepting]
                assert (name_or_none in accepting) if accepting else (name_or_none is None)
                if name_or_none is not None:
                    open_.append((name_or_none, router.sent(name_or_none, footprint)))
        for digest, names in router._holders.items():
            assert names
            assert all(digest in router.replicas[n].blocks or digest in router.replicas[n].images for n in names)
    for name in list(router.replicas):
        router.leave(name)
    assert router._holders == {}
