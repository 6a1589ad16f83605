"""Every legal request's plans and messages fit their lanes; tenants neither learn from others nor take from them."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from lightllm_mp.actors.topology import MIB, PLANS
from lightllm_mp.facts import EngineLimits
from lightllm_mp.messages import PromptLogprobs, Sampling, StepDone, Terms, Tokenized
from lightllm_mp.plan import SAMPLE, unpack
from lightllm_mp.scheduler.admission import UPLOAD_POSITIONS
from lightllm_mp.scheduler.prompt_logprobs import PIECE, OwedLogprobs
from lightllm_mp.scheduler.scheduler import Scheduler

CONTEXT = 131_072
ARENA = 8 * MIB


def limits(**more) -> EngineLimits:
    values = {
        "kv_tokens": 2_000_000,
        "rows": 256,
        "max_context": CONTEXT,
        "max_input": CONTEXT - 1,
        "step_tokens": 2048,
        "vocab_size": 60_000,
    }
    return EngineLimits(**{**values, **more})


def request(rid: int, ids: np.ndarray, *, tenant: bytes = b"", n: int = 1, priority: int = 0, **rules) -> Tokenized:
    sampling = Sampling(**{"seed": rid, "max_new_tokens": 4, "ignore_eos": True, **rules})
    terms = Terms(sampling, n=n, tenant=tenant, priority=priority)
    return Tokenized(rid=rid, terms=terms, ids=ids.astype("<i4").tobytes(), prompt_tokens=len(ids))


def step(scheduler: Scheduler) -> tuple[int, list]:
    """One step, answered with random tokens. Returns the plan's size and the events."""
    plan = scheduler.plan()
    if plan is None:
        return 0, scheduler.take_events()
    found = unpack(plan)
    count = int(np.count_nonzero(found.seqs[:, 3] & SAMPLE))
    ids = np.full(count, 7, "<i4")
    scheduler.done(StepDone(found.step, ids.tobytes(), np.zeros(count, "<f4").tobytes()))
    return len(plan), scheduler.take_events()


def run(scheduler: Scheduler, most: int = 5000) -> int:
    """Run to the end. Returns the size of the largest plan."""
    largest = 0
    for _ in range(most):
        if not scheduler.has_work:
            return largest
        largest = max(largest, step(scheduler)[0])
    raise AssertionError("the scheduler does not come to an end")


@pytest.mark.parametrize(
    ("prompt", "n", "requests"),
    [(17_600, 64, 1), (8_000, 1, 256), (32_000, 1, 40), (16_000, 1, 128), (CONTEXT - 10, 16, 1), (60_000, 1, 64)],
)
def test_plans_of_shared_prefixes_fit(prompt, n, requests):
    scheduler = Scheduler(limits())
    ids = np.arange(prompt) % 50_000
    scheduler.add(request(1_000_000, ids[:-1]))
    run(scheduler)
    for number in range(requests):
        scheduler.add(request(1 + number * n, np.append(ids, number), n=n))
    largest = run(scheduler)
    assert largest <= 8 * UPLOAD_POSITIONS + 8 * prompt + MIB <= PLANS // 2
    # The same after a repair, when the n answers come one by one.
    for number in range(requests * n):
        scheduler.add(request(10_000 + number, np.append(ids, (number, 9, 9))))
    assert run(scheduler) <= PLANS // 2
    scheduler.check_integrity()


def test_one_sequence_larger_than_the_budget_still_starts():
    scheduler = Scheduler(
        limits(max_context=2 * UPLOAD_POSITIONS, max_input=2 * UPLOAD_POSITIONS - 1, step_tokens=65_536)
    )
    ids = np.arange(UPLOAD_POSITIONS + 70_000) % 50_000
    scheduler.add(request(1, ids))
    run(scheduler)
    scheduler.add(request(2, np.append(ids, 3)))
    scheduler.add(request(3, np.append(ids, 4)))
    run(scheduler)


def test_prompt_logprobs_of_the_longest_prompt_come_in_pieces():
    owed = OwedLogprobs(CONTEXT - 1, 20)
    column = np.arange(CONTEXT - 1, dtype="<f4")
    top = np.repeat(column, 20)
    owed.add(column.tobytes(), top.astype("<i4").tobytes(), top.tobytes())
    prompt = np.arange(CONTEXT, dtype="<i4")
    pieces = owed.messages(5, prompt)
    assert len(pieces) == CONTEXT // PIECE
    assert [piece.more for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    assert max(len(msgspec.msgpack.encode(piece)) for piece in pieces) <= ARENA // 8
    for name, whole in (("ids", prompt), ("logprobs", column), ("top_ids", top.astype("<i4")), ("top_logprobs", top)):
        assert b"".join(getattr(piece, name) for piece in pieces) == whole.tobytes()
    assert isinstance(pieces[0], PromptLogprobs)


def test_a_step_of_all_rows_with_alternatives_fits():
    columns = tuple((row, bytes(80), bytes(80)) for row in range(256))
    texts = tuple(("\U0001f600" * 64,) * 20 for _ in range(256))
    assert len(msgspec.msgpack.encode((columns, texts, ("x" * 2000,) * 256))) <= ARENA


def cached(scheduler: Scheduler, rid: int, ids: np.ndarray, tenant: bytes) -> int:
    """The `cached_tokens` that the client of this request is told."""
    scheduler.add(request(rid, ids, tenant=tenant))
    found = -1
    while scheduler.has_work:
        for event in step(scheduler)[1]:
            found = getattr(event, "cached_tokens", found)
    return found


def test_cached_tokens_tell_nothing_of_other_tenants():
    ids = np.arange(100)
    for shared in (False, True):
        scheduler = Scheduler(limits(share_prompt_cache=shared))
        assert cached(scheduler, 1, ids, b"a") == 0
        assert cached(scheduler, 2, ids, b"a") > 90
        assert (cached(scheduler, 3, ids, b"b") > 0) == shared


def test_a_greedy_tenant_cannot_stop_anothers_prefill():
    scheduler = Scheduler(limits(step_tokens=64))
    scheduler.add(request(1, np.arange(2000), tenant=b"victim"))
    for number in range(6):
        ids = np.arange(2000) + 10_000 + 3000 * number
        scheduler.add(request(10 + number, ids, tenant=b"greedy", priority=2**31 - 1))
    for _ in range(120):
        step(scheduler)
    victim = scheduler._live.get(1)
    assert victim is None or int(scheduler._rows.planned[victim.row]) >= 1900


def test_preemption_takes_the_tenant_that_was_served_most():
    scheduler = Scheduler(limits(kv_tokens=260, step_tokens=64, max_context=250, max_input=200))
    for number in range(3):
        ids = np.arange(40) + 1000 * number
        scheduler.add(request(10 + number, ids, tenant=b"greedy", priority=2**31 - 1, max_new_tokens=60))
    scheduler.add(request(1, np.arange(20) + 9000, tenant=b"victim", max_new_tokens=60))
    sequence, preempted = scheduler._live[1], []
    usual = scheduler._preempt
    scheduler._preempt = lambda s: (preempted.append(s), usual(s))  # type: ignore[method-assign,func-returns-value]
    run(scheduler)
    assert sequence not in preempted
