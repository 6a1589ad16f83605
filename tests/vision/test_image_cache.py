"""The image cache against a model of what it promises, over random histories."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lightllm_mp.shm import Arena
from lightllm_mp.vision.cache import OVERTAKES, ImageCache, LeaseGrant, WantedImage

GRANULE = 4096


def image(name: int, granules: int = 1) -> WantedImage:
    """An image that takes so many granules; equal names are equal images."""
    return WantedImage(name.to_bytes(32, "big"), granules, GRANULE * granules - 64)


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena.create(16 * GRANULE, GRANULE)
    yield arena
    arena.close()


def rids(grants: list[LeaseGrant]) -> list[int]:
    return [grant.rid for grant in grants]


def fill(cache: ImageCache, grants: list[LeaseGrant]) -> list[int]:
    return [rid for grant in grants for wanted in grant.missing for rid in cache.ready(wanted.key)]


def test_one_encoding_for_many_requests(arena: Arena) -> None:
    cache = ImageCache(10, arena)
    assert all(cache.ask(rid, [image(1)]) for rid in range(100))
    grants = cache.grant()
    assert rids(grants) == list(range(100))
    assert [wanted for grant in grants for wanted in grant.missing] == [image(1)]
    assert not any(cache.complete(rid) for rid in range(100))
    assert cache.ready(image(1).key) == list(range(100))
    assert (cache.counts.misses, cache.counts.joins, cache.counts.hits) == (1, 99, 0)
    assert cache.ask(100, [image(1), image(1)])
    assert cache.grant() == [LeaseGrant(100, ())]
    assert cache.complete(100)
    assert cache.counts.hits == 1


def test_all_or_nothing_in_order(arena: Arena) -> None:
    cache = ImageCache(10, arena)
    for rid in range(8):
        assert cache.ask(rid, [image(6 * rid + i) for i in range(6)])
    for rid in range(8):
        grants = cache.grant()
        assert rids(grants) == [rid]
        assert fill(cache, grants) == [rid]
        assert cache.items <= 10
        assert cache.release(rid) == []
    assert (cache.granted, cache.waiting, cache.leased) == (0, 0, 0)


def test_the_least_recently_used_goes_first(arena: Arena) -> None:
    cache = ImageCache(3, arena)
    for rid, name in enumerate((1, 2, 3, 1)):
        cache.ask(rid, [image(name)])
        fill(cache, cache.grant())
        cache.release(rid)
    cache.ask(9, [image(4)])
    cache.grant()
    assert [cache.entry(image(name).key) is not None for name in (1, 2, 3, 4)] == [True, False, True, True]


def test_what_never_fits_is_refused(arena: Arena) -> None:
    cache = ImageCache(4, arena)
    assert not cache.ask(1, [image(i) for i in range(5)])
    assert not cache.ask(2, [image(1, 9), image(2, 8)])
    assert cache.ask(3, [image(1)] * 5)
    assert not cache.ask(3, [image(1)])
    assert cache.counts.refusals == 3


def test_a_failure_is_everybodys_who_waits_for_it(arena: Arena) -> None:
    cache = ImageCache(4, arena)
    cache.ask(1, [image(1), image(2)])
    cache.ask(2, [image(1)])
    cache.ask(3, [image(2)])
    cache.grant()
    assert cache.fail(image(1).key) == [1, 2]
    assert cache.granted == 1
    assert cache.ready(image(2).key) == [3]
    cache.release(3)
    assert (cache.items, cache.leased) == (1, 0)


def test_an_image_that_nobody_waits_for_any_more(arena: Arena) -> None:
    cache = ImageCache(4, arena)
    cache.ask(1, [image(1), image(2)])
    cache.grant()
    cache.ready(image(2).key)
    assert cache.release(1) == [image(1).key]
    assert cache.fail(image(1).key) == []
    assert (cache.items, arena.blocks) == (1, 1)


def test_a_request_without_need_for_space_overtakes_so_often(arena: Arena) -> None:
    cache = ImageCache(4, arena)
    cache.ask(0, [image(1), image(2)])
    fill(cache, cache.grant())
    cache.ask(1, [image(i) for i in range(3, 7)])
    assert cache.grant() == []
    for rid in range(2, 2 + 2 * OVERTAKES):
        cache.ask(rid, [image(1)])
    overtaking = rids(cache.grant())
    assert overtaking == list(range(2, 2 + OVERTAKES))
    assert cache.grant() == []
    for rid in (0, *overtaking):
        cache.release(rid)
    assert rids(cache.grant()) == [1]


def test_a_requests_own_images_may_lie_in_the_way(arena: Arena) -> None:
    cache = ImageCache(4, arena)
    for rid, wanted in enumerate((image(1, 6), image(2, 4))):
        cache.ask(rid, [wanted])
        fill(cache, cache.grant())
        cache.release(rid)
    cache.ask(2, [image(2, 4), image(3, 12)])
    assert cache.grant() == [LeaseGrant(2, (image(2, 4), image(3, 12)))]


class Histories(RuleBasedStateMachine):
    """Requests come, images get ready or fail, requests end, epochs end, in any order."""

    @initialize(capacity=st.integers(1, 6), granules=st.integers(4, 16))
    def begin(self, capacity: int, granules: int) -> None:
        self.arena = Arena.create(granules * GRANULE, GRANULE)
        self.cache = ImageCache(capacity, self.arena)
        self.order: list[int] = []
        """Requests that wait, in order."""
        self.granted: dict[int, set[bytes]] = {}
        self.filling: set[bytes] = set()
        self.next = 0

    def teardown(self) -> None:
        if hasattr(self, "arena"):
            self.drain()
            self.arena.close()

    @rule(names=st.lists(st.integers(0, 12), min_size=1, max_size=6))
    def ask(self, names: list[int]) -> None:
        wanted = [image(name, 1 + name % 3) for name in names]
        rid, self.next = self.next, self.next + 1
        possible = self.cache.fits(wanted)
        assert self.cache.ask(rid, wanted) == possible
        if possible:
            self.order.append(rid)
            self.wanted = {**getattr(self, "wanted", {}), rid: {w.key for w in wanted}}
        self.grant()

    def grant(self) -> None:
        for rid, missing in self.cache.grant():
            keys = {wanted.key for wanted in missing}
            assert not keys & self.filling, "an image is encoded twice at a time"
            assert rid == self.order[0] or not missing, "space was given out of order"
            self.order.remove(rid)
            self.filling |= keys
            self.granted[rid] = self.wanted[rid]

    @precondition(lambda self: self.filling)
    @rule(data=st.data(), good=st.booleans())
    def end_of_an_encoding(self, data: st.DataObject, good: bool) -> None:
        key = data.draw(st.sampled_from(sorted(self.filling)))
        self.finish(key, good)
        self.grant()

    def finish(self, key: bytes, good: bool) -> None:
        self.filling.discard(key)
        if good:
            complete = self.cache.ready(key)
            assert all(not self.granted[rid] & self.filling for rid in complete)
            return
        for rid in self.cache.fail(key):
            assert key in self.granted.pop(rid)
        self.drop_orphans()

    def drop_orphans(self) -> None:
        held = set().union(*self.granted.values())
        for key in self.filling - held:
            assert self.cache.fail(key) == []
            self.filling.discard(key)

    @precondition(lambda self: self.granted or self.order)
    @rule(data=st.data())
    def end_of_a_request(self, data: st.DataObject) -> None:
        rid = data.draw(st.sampled_from([*self.granted, *self.order]))
        orphans = self.cache.release(rid)
        self.granted.pop(rid, None)
        if rid in self.order:
            self.order.remove(rid)
        held = set().union(*self.granted.values())
        assert set(orphans) <= self.filling - held
        self.drop_orphans()
        self.grant()

    @rule()
    def end_of_an_epoch(self) -> None:
        self.cache.release_all()
        self.order.clear()
        self.granted.clear()
        self.drop_orphans()

    @invariant()
    def within_its_bounds(self) -> None:
        if not hasattr(self, "cache"):
            return
        cache, held = self.cache, set().union(*self.granted.values())
        assert cache.items <= cache.capacity
        assert self.arena.blocks == cache.items
        assert self.arena.used <= self.arena.capacity
        assert all(cache.entry(key) is not None for key in held), "a leased image was evicted"
        assert cache.leased == len(held)
        assert (cache.granted, cache.waiting) == (len(self.granted), len(self.order))
        for rid, keys in self.granted.items():
            assert cache.complete(rid) == (not keys & self.filling)

    def drain(self) -> None:
        """No deadlock: when everybody who holds something gives it back, all who wait are granted in the end."""
        while self.granted or self.order:
            for key in list(self.filling):
                self.finish(key, True)
            assert self.granted or not self.order
            for rid in list(self.granted):
                self.cache.release(rid)
                del self.granted[rid]
            self.grant()
        assert self.cache.leased == 0


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=40))
def test_everybody_is_served_in_the_end(arena: Arena, sizes: list[int]) -> None:
    cache = ImageCache(10, arena)
    arena.reset()
    waiting = {rid: [image(100 * rid + i, size) for i in range(3)] for rid, size in enumerate(sizes)}
    assert all(cache.ask(rid, wanted) for rid, wanted in waiting.items())
    served = []
    while cache.waiting or cache.granted:
        grants = cache.grant()
        fill(cache, grants)
        for rid in rids(grants):
            served.append(rid)
            cache.release(rid)
    assert served == list(range(len(sizes)))
