"""The map of KV memory and the stages of sequences match the scheduler's tables, at any size."""

from __future__ import annotations

import time

import numpy as np
import pytest

from lightllm_mp.facts import EngineLimits
from lightllm_mp.messages import COMPILING, DECODE, IMAGES, MOST_SHOWN, OTHERS, PREFILL, QUEUED, UNKNOWN
from lightllm_mp.scheduler.inspection import CELL_BITS, KvMap, kv_map
from lightllm_mp.scheduler.scheduler import Scheduler
from tests.scheduler.harness import Harness, limits, prompt, request
from tests.scheduler.mock_worker import MockWorker


def harness(**changes: object) -> Harness:
    bounds = limits(**changes)
    worker = MockWorker(
        rows=bounds.running, width=bounds.width, kv_tokens=bounds.kv_tokens, vocab_size=bounds.vocab_size
    )
    return Harness(Scheduler(bounds), worker)


def seen(h: Harness, *rids: int) -> KvMap:
    return kv_map(h.rows, h.kv.spaces[0], {rid: number for number, rid in enumerate(rids, 1)})


def told(h: Harness, *rids: int, lacking: set[int] | None = None, compiling: set[int] | None = None):
    column = np.array(rids, "<i8").tobytes()
    return h.scheduler.state(column, lacking_images=lacking or set(), compiling=compiling or set())


def test_the_map_is_what_the_tables_say() -> None:
    """Checks every step of many sequences that share prefixes, are preempted and evict. A cell is one slot."""
    h = harness(kv_tokens=160, rows=6)
    h.add(*(request(rid, prompt(20, rid % 3) + prompt(rid % 7, rid), max_new_tokens=30) for rid in range(24)))
    steps = 0
    while h.step():
        steps += 1
        rows, kv = h.rows, h.kv
        found = seen(h, *range(24))
        free = set(kv.pool.free_slots().tolist())
        owned = {
            int(slot): {int(rows.rid[row]) for row in rows.running() if slot in rows.slots[0, row, : rows.planned[row]]}
            for slot in range(160)
        }
        assert found.cell_slots == 1
        for slot in range(160):
            running, kept, owner = (int(column[slot]) for column in (found.running, found.kept, found.owners))
            assert (running, kept) == ((0, 0) if slot in free else (100, 0) if owned[slot] else (0, 100))
            assert owner - 1 in owned[slot] if owned[slot] else owner == 0
        assert int((found.running > 0).sum()) == kv.used
    assert steps > 40
    assert h.counters.preemptions
    assert h.kv.tree.size == len(list(h.kv.tree.nodes()))


def test_others_are_shown_as_others() -> None:
    h = harness()
    h.add(request(5, prompt(20)), request(6, prompt(20, 1)))
    h.step()
    owners = set(seen(h, 6).owners.tolist())
    assert owners == {0, 1, OTHERS}


def test_stages() -> None:
    h = harness(rows=2, step_tokens=16)
    h.add(*(request(rid, prompt(24, rid), max_new_tokens=20) for rid in (1, 2, 3)))
    assert told(h, 1, 2, 3, 9, 10, 11, lacking={9}, compiling={10}).stages == bytes(
        (QUEUED, QUEUED, QUEUED, IMAGES, COMPILING, UNKNOWN)
    )
    h.step()
    state = told(h, 1, 2, 3)
    assert state.stages == bytes((PREFILL, PREFILL, QUEUED))
    assert np.frombuffer(state.prompts, "<i4").tolist() == [24, 24, 24]
    for _ in range(4):
        h.step()
    state = told(h, 1, 2, 3)
    assert state.stages == bytes((DECODE, DECODE, QUEUED))
    assert min(np.frombuffer(state.computed, "<i4")[:2]) >= 24
    assert (state.tree_tokens, state.tree_nodes) == (48, 2)
    h.run()
    h.add(request(4, prompt(24, 1), max_new_tokens=2))
    h.step()
    assert np.frombuffer(told(h, 4).cached, "<i4")[0] >= 23


def test_steps_are_counted() -> None:
    h = harness(step_tokens=16)
    h.add(request(1, prompt(24), max_new_tokens=5))
    h.run()
    counted = h.counters
    assert (counted.prefill_tokens, counted.decode_tokens, counted.steps, counted.step_rows) == (24, 4, 6, 6)


@pytest.mark.parametrize("slots", [1, 2047, 2048, 2049, 1_000_001, 5_000_000])
def test_the_map_has_a_bounded_number_of_cells(slots: int) -> None:
    scheduler = Scheduler(EngineLimits(kv_tokens=slots, rows=2, max_context=100, max_input=90, step_tokens=8))
    found = kv_map(scheduler._rows, scheduler._kv.spaces[0], {})
    assert len(found.running) == len(found.kept) == len(found.owners) <= 1 << CELL_BITS
    assert (len(found.running) - 1) * found.cell_slots < slots <= len(found.running) * found.cell_slots
    assert not np.concatenate((found.running, found.kept, found.owners)).any()


def test_a_million_slots_and_a_thousand_sequences_are_cheap() -> None:
    """All slots are in use by sequences that share one prefix; half of the sequences are not shown."""
    rows, length = 1000, 1000
    bounds = EngineLimits(
        kv_tokens=1_001_000, rows=rows, max_context=2000, max_input=1900, step_tokens=8192, vocab_size=1000
    )
    h = Harness(
        Scheduler(bounds), MockWorker(rows=rows, width=bounds.width, kv_tokens=bounds.kv_tokens, vocab_size=1000)
    )
    random = np.random.default_rng(1)
    h.add(*(request(rid, random.integers(3, 1000, length).tolist(), max_new_tokens=2) for rid in range(rows)))
    for _ in range(120):  # the last ones are still computed
        h.step()
    asked = tuple(range(0, 2 * MOST_SHOWN, 2))
    begin = time.process_time()
    for _ in range(5):
        state = told(h, *asked)
    assert (time.process_time() - begin) / 5 < 0.1, "seconds of CPU for one look"
    size = len(state.running) + len(state.kept) + len(state.owners) + len(state.rids) + 4 * len(state.computed)
    assert size < 16_000


def test_the_work_that_is_left() -> None:
    h = harness()
    assert h.scheduler.expected_tokens() == 0
    h.add(*[request(rid, prompt(10, rid), max_new_tokens=4, ignore_eos=True) for rid in range(1, 13)])
    assert h.scheduler.expected_tokens() == 12 * 14
    left = [h.scheduler.expected_tokens()]
    while h.scheduler.has_work:
        h.step()
        left.append(h.scheduler.expected_tokens())
    assert left[-1] == 0
    assert left == sorted(left, reverse=True)
    h.add(request(20, prompt(10), max_new_tokens=100))
    assert 0 < h.scheduler.expected_tokens() <= 14  # as long as the others were
