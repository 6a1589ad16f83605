"""Service order: tenants evenly, then priority, deadline and arrival."""

from __future__ import annotations

from collections import Counter

import numpy as np

from lightllm_mp.scheduler.wait_queue import OUTPUT_WEIGHT, Shares
from tests.scheduler.harness import Harness, harness, prompt, request


def test_the_earliest_deadline_first() -> None:
    h = harness(rows=1)
    for rid, start_by in enumerate((0.0, 30.0, 10.0, 20.0, 10.0), start=1):
        h.add(request(rid, prompt(10, rid), start_by=start_by))
    h.run().check_answers()
    assert h.order == [3, 5, 4, 2, 1]


def test_what_is_past_its_deadline_is_never_begun() -> None:
    h = harness(rows=2)
    h.add(request(1, prompt(10, 1), start_by=5.0), request(2, prompt(10, 2), n=2, start_by=5.0))
    h.add(request(4, prompt(10, 4), start_by=5.0, begun=True), request(5, prompt(10, 5)))
    plan = h.scheduler.plan(now=4.0)
    assert plan is not None
    h.plans.append(plan)
    h.answer()
    h.listen()
    assert h.counters.admitted == 2  # 1, and the leader of 2 and 3
    late = h.scheduler.plan
    h.scheduler.plan = lambda now=0.0: late(now=6.0)  # type: ignore[method-assign]
    h.run().check_answers()  # 3 is late, but its request has begun; so has 4
    assert set(h.finish) == {1, 2, 3, 4, 5}


def test_expired_requests_wait_for_their_abort_and_hold_nobody_up() -> None:
    h = harness(rows=4)
    h.add(request(1, prompt(10, 1), start_by=5.0), request(2, prompt(10, 2), start_by=7.0))
    plan = h.scheduler.plan(now=6.0)
    assert plan is not None
    h.plans.append(plan)
    h.answer()
    h.scheduler.abort(1)
    h.run()
    assert set(h.ids) == {2}


def served(h: Harness, steps: int) -> Counter[int]:
    """Tokens after `steps` steps, for each thousand of rids."""
    for _ in range(steps):
        h.step()
    got = Counter[int]()
    for rid, ids in h.ids.items():
        got[rid // 1000] += len(ids)
    return got


def test_two_tenants_share_evenly_whoever_sends_more() -> None:
    h = harness(rows=4, kv_tokens=4000)
    for i in range(40):
        h.add(request(1000 + i, prompt(12, i), tenant=b"many", max_new_tokens=10, ignore_eos=True))
    for i in range(10):
        h.add(request(2000 + i, prompt(12, 50 + i), tenant=b"few", max_new_tokens=10, ignore_eos=True))
    got = served(h, 40)
    assert 0.8 < got[1] / got[2] < 1.25
    h.run().check_answers()


def test_long_answers_count_as_what_they_cost() -> None:
    h = harness(rows=2, kv_tokens=4000)
    for i in range(30):
        h.add(request(1000 + i, prompt(12, i), tenant=b"long", max_new_tokens=40, ignore_eos=True))
    for i in range(200):
        h.add(request(2000 + i, prompt(12, 50 + i), tenant=b"short", max_new_tokens=4, ignore_eos=True))
    got = served(h, 400)
    assert 0.7 < (got[1] * OUTPUT_WEIGHT + 12 * got[1] / 40) / (got[2] * OUTPUT_WEIGHT + 12 * got[2] / 4) < 1.4
    h.run().check_answers()


def test_who_comes_late_has_no_claim_on_the_past() -> None:
    shares = Shares()
    a = shares.enter(b"a", 1)
    shares.computes(a, 1000)
    b = shares.enter(b"b", 1)
    assert shares.least([b, a]) == a  # both are at 1000, so the lower number is first
    shares.computes(a, 1)
    assert shares.least([a, b]) == b
    shares.leave(b)
    shares.computes(a, 500)
    assert shares.enter(b"b", 1) == b
    shares.computes(b, 1)
    assert shares.least([a, b]) == a
    shares.produces(np.array([a, a, b]))
    shares.leave(a)
    shares.leave(b)
    assert shares.enter(b"c", 1) == 0  # the engine was idle: accounts start anew
    assert shares.least([0]) == 0


def test_priority_counts_within_a_tenant_only() -> None:
    h = harness(rows=1)
    for rid, (tenant, priority) in enumerate(((b"a", 0), (b"a", 5), (b"b", 0), (b"a", 9)), start=1):
        h.add(request(rid, prompt(10, rid), tenant=tenant, priority=priority, ignore_eos=True))
    h.run().check_answers()
    assert h.order == [4, 3, 2, 1]
