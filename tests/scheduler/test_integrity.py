"""The integrity check finds each kind of wrong bookkeeping."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lightllm_mp.scheduler.integrity import IntegrityError
from tests.scheduler.harness import Harness, harness, prompt, request


def running() -> Harness:
    """Two sequences that share a prefix with the tree, in the middle of their answers."""
    h = harness()
    h.add(request(1, prompt(20)))
    h.run()
    h.add(*[request(rid, [*prompt(20), rid], max_new_tokens=30, ignore_eos=True) for rid in (2, 3)])
    for _ in range(4):
        h.step()
    h.scheduler.check_integrity()
    return h


def lose_a_free_slot(h: Harness) -> None:
    assert h.kv.pool.alloc(1) is not None


def own_a_slot_twice(h: Harness) -> None:
    h.rows.slots[0, 1, h.rows.planned[1] - 1] = h.rows.slots[0, 0, 25]


def free_a_slot_in_use(h: Harness) -> None:
    h.kv.pool.give_back(h.rows.slots[0, 0, 25:26])


def lock_without_an_owner(h: Harness) -> None:
    h.kv.tree.lock(h.kv.tree.match(np.array(prompt(20), np.int32))[1])


def forget_a_lock(h: Harness) -> None:
    sequence = h.live[2]
    assert sequence.node is not None
    h.kv.tree.unlock(sequence.node)


def drop_a_branch(h: Harness) -> None:
    next(iter(h.kv.tree._roots.values())).children.clear()


def miscount_the_tree(h: Harness) -> None:
    h.kv.tree.evictable += 1


def share_what_is_not_shared(h: Harness) -> None:
    h.rows.ids[0, 3] += 1


def lose_a_sequence(h: Harness) -> None:
    del h.live[3]


def lose_a_row(h: Harness) -> None:
    h.rows._free.pop()


def forget_a_leaf(h: Harness) -> None:
    for node in h.kv.tree.nodes():
        node.queued = False


DAMAGE = [
    lose_a_free_slot,
    own_a_slot_twice,
    free_a_slot_in_use,
    lock_without_an_owner,
    forget_a_lock,
    drop_a_branch,
    miscount_the_tree,
    share_what_is_not_shared,
    lose_a_sequence,
    lose_a_row,
    forget_a_leaf,
]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_damage_is_found(damage: Callable[[Harness], None]) -> None:
    h = running()
    damage(h)
    with pytest.raises(IntegrityError):
        h.scheduler.check_integrity()


def test_sound_books_pass_at_every_step() -> None:
    h = harness(1, kv_tokens=100)
    h.add(*[request(rid, prompt(20, rid % 2), max_new_tokens=20) for rid in range(1, 8)])
    while h.step():
        h.scheduler.check_integrity()
