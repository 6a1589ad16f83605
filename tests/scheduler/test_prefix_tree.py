"""Tests the prefix tree against a plain dictionary of prefixes, and its order of eviction."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightllm_mp.scheduler.prefix_tree import PrefixTree

OPERATIONS = st.sampled_from(["insert", "match", "lock", "unlock", "evict"])


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def run(first: int, count: int) -> np.ndarray:
    return np.arange(first, first + count, dtype=np.int32)


def matched(tree: PrefixTree, *values: int, namespace: int = 0) -> list[int]:
    return tree.match(ids(*values), (namespace, b""))[0].tolist()


def test_a_prefix_is_found_at_token_grain() -> None:
    tree = PrefixTree()
    tree.insert(ids(1, 2, 3, 4, 5), run(10, 5))
    assert matched(tree, 1, 2, 3, 4, 5, 6) == [10, 11, 12, 13, 14]
    assert matched(tree, 1, 2, 3, 9) == [10, 11, 12]
    assert matched(tree, 1) == [10]
    assert matched(tree, 2, 3) == []
    assert matched(tree) == []
    assert tree.tokens == tree.evictable == 5


def test_inserting_a_known_prefix_keeps_the_slots_of_the_tree() -> None:
    tree = PrefixTree()
    tree.insert(ids(1, 2, 3), run(10, 3))
    _, known = tree.insert(ids(1, 2, 7, 8), run(20, 4))
    assert known == 2
    assert matched(tree, 1, 2, 7, 8) == [10, 11, 22, 23]
    assert matched(tree, 1, 2, 3) == [10, 11, 12]
    _, known = tree.insert(ids(1, 2), run(30, 2))
    assert known == 2
    assert tree.tokens == 5


def test_a_failed_look_up_changes_nothing_known() -> None:
    tree = PrefixTree()
    tree.insert(ids(1, 2, 3), run(0, 3))
    version = tree.version
    matched(tree, 1, 2, 9)
    assert tree.version == version
    tree.insert(ids(1, 2, 9), run(3, 3))
    assert tree.version > version


def test_namespaces_share_nothing() -> None:
    tree = PrefixTree()
    tree.insert(ids(1, 2), run(0, 2), namespace=(7, b""))
    assert matched(tree, 1, 2) == []
    assert matched(tree, 1, 2, namespace=7) == [0, 1]
    assert sorted(tree.evict(2).tolist()) == [0, 1]


def test_the_longest_unused_leaf_goes_first() -> None:
    tree = PrefixTree()
    tree.insert(ids(1, 1), run(0, 2))
    tree.insert(ids(2, 2), run(2, 2))
    tree.insert(ids(3, 3), run(4, 2))
    matched(tree, 1, 1)
    assert sorted(tree.evict(2).tolist()) == [2, 3]
    assert sorted(tree.evict(2).tolist()) == [4, 5]
    assert sorted(tree.evict(2).tolist()) == [0, 1]
    assert tree.tokens == 0


def test_a_leaf_is_trimmed_from_its_end() -> None:
    tree = PrefixTree()
    tree.insert(ids(1, 2, 3, 4), run(0, 4))
    assert tree.evict(1).tolist() == [3]
    assert matched(tree, 1, 2, 3, 4) == [0, 1, 2]
    assert sorted(tree.evict(9).tolist()) == [0, 1, 2]
    assert tree.evict(1).tolist() == []


def test_a_parent_goes_after_its_children() -> None:
    tree = PrefixTree()
    tree.insert(ids(1, 2, 3), run(0, 3))
    tree.insert(ids(1, 2, 9), run(3, 3))
    assert sorted(tree.evict(1).tolist()) == [2]
    assert sorted(tree.evict(1).tolist()) == [5]
    assert tree.evict(1).tolist() == [1]
    assert matched(tree, 1, 2) == [0]


def test_what_is_locked_stays() -> None:
    tree = PrefixTree()
    tree.insert(ids(1, 2, 3, 4), run(0, 4))
    tree.insert(ids(5, 6), run(4, 2))
    _, node = tree.match(ids(1, 2))
    tree.lock(node)
    assert tree.evictable == 4
    assert sorted(tree.evict(100).tolist()) == [2, 3, 4, 5]
    assert matched(tree, 1, 2, 3) == [0, 1]
    tree.unlock(node)
    assert tree.evictable == 2
    assert sorted(tree.evict(100).tolist()) == [0, 1]


def test_a_lock_survives_a_split() -> None:
    tree = PrefixTree()
    node, _ = tree.insert(ids(1, 2, 3, 4), run(0, 4))
    tree.lock(node)
    _, upper = tree.match(ids(1, 2, 9))
    assert tree.evict(4).tolist() == []
    tree.lock(upper)
    tree.unlock(node)
    assert sorted(tree.evict(4).tolist()) == [2, 3]
    tree.unlock(upper)
    assert sorted(tree.evict(4).tolist()) == [0, 1]


def test_two_locks_count_twice() -> None:
    tree = PrefixTree()
    node, _ = tree.insert(ids(1, 2), run(0, 2))
    tree.lock(node)
    tree.lock(node)
    tree.unlock(node)
    assert tree.evictable == 0
    tree.unlock(node)
    assert tree.evictable == 2


# --- a model whose layers all have windows ----------------------------------------------------------------------------


def test_a_lock_holds_the_last_slots_alone() -> None:
    tree = PrefixTree(tail=3)
    node, _ = tree.insert(run(50, 10), run(0, 10))
    tree.lock(node)
    assert (tree.tokens, tree.evictable) == (10, 7)
    assert tree.evict(4).tolist() == [0, 1, 2, 3], "the beginning first: what goes on from the end does not need it"
    assert tree.match(run(50, 10))[0].tolist() == [-1] * 4 + [4, 5, 6, 7, 8, 9]
    assert sorted(tree.evict(9).tolist()) == [4, 5, 6]
    assert (tree.tokens, tree.evictable) == (3, 0)
    tree.unlock(node)
    assert sorted(tree.evict(9).tolist()) == [7, 8, 9]
    assert (tree.tokens, tree.size) == (0, 0), "nothing hollow stays"


def test_a_prefix_is_known_where_its_last_slots_are() -> None:
    tree = PrefixTree(tail=3)
    node, _ = tree.insert(run(50, 10), run(0, 10))
    tree.lock(node)
    tree.evict(4)
    assert len(tree.match(run(50, 9))[0]) == 9
    assert len(tree.match(run(50, 7))[0]) == 7
    assert len(tree.match(run(50, 6))[0]) == 0, "slots 3, 4 and 5 would be needed"
    assert tree.known(run(50, 6)) == 6


def test_slots_are_offered_to_hollow_nodes() -> None:
    tree = PrefixTree(tail=3)
    node, _ = tree.insert(run(50, 10), run(0, 10))
    tree.lock(node)
    tree.evict(4)
    version = tree.version
    other, known = tree.insert(run(50, 8), run(20, 8))
    assert known == 8
    offered = run(20, 8)
    offered[:2] = -1
    assert sorted(tree.fill(other, offered).tolist()) == [24, 25, 26, 27], "the tree has slots of its own there"
    assert tree.slots_of(node).tolist() == [-1, -1, 22, 23, 4, 5, 6, 7, 8, 9]
    assert tree.version > version
    assert (tree.tokens, tree.evictable) == (8, 5)
    assert len(tree.match(run(50, 6))[0]) == 6


def test_slots_with_which_no_prefix_ends_go_first() -> None:
    tree = PrefixTree(tail=3)
    first, _ = tree.insert(run(50, 10), run(0, 10))
    tree.ends(first)
    tree.insert(run(100, 8), run(10, 8))  # newer, but no prefix has ended with it
    assert sorted(tree.evict(14).tolist()) == [*range(6), *range(10, 18)]
    assert len(tree.match(run(50, 10))[0]) == 10
    assert len(tree.match(run(50, 9))[0]) == 9, "one slot more, for the same prompt again"
    assert len(tree.match(run(50, 8))[0]) == 0


def test_a_place_where_prefixes_part_is_an_end() -> None:
    tree = PrefixTree(tail=3)
    for turn in range(3):
        node, _ = tree.insert(np.append(run(50, 10), run(100 * turn, 6)).astype(np.int32), run(20 * turn, 16))
        tree.fill(node, run(20 * turn, 16))
    tree.evict(tree.tokens - 4)
    assert len(tree.match(np.append(run(50, 10), [9]).astype(np.int32))[0]) == 10


def test_what_is_forgotten_is_evicted_later() -> None:
    tree = PrefixTree(tail=3)
    node, _ = tree.insert(ids(1, 2, 3, 4), run(0, 4))
    tree.lock(node)
    tree.forget((0, b""))
    assert matched(tree, 1, 2, 3, 4) == []
    tree.insert(ids(1, 2), run(4, 2))
    assert matched(tree, 1, 2, 3, 4) == [4, 5]
    assert sorted(tree.evict(9).tolist()) == [0, 4, 5]
    tree.unlock(node)
    assert sorted(tree.evict(9).tolist()) == [1, 2, 3]
    assert not list(tree.nodes())


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(OPERATIONS, st.lists(st.integers(0, 2), max_size=7)), max_size=40))
def test_like_a_dictionary_of_prefixes(operations: list[tuple[str, list[int]]]) -> None:
    """After any operations, a known prefix has the slots it was given, and every slot is known or returned, once."""
    tree, known = PrefixTree(), dict[tuple[int, ...], int]()
    locked: list[tuple[object, tuple[int, ...]]] = []
    slot = 0
    for what, values in operations:
        key = tuple(values)
        longest = max(n for n in range(len(key) + 1) if n == 0 or key[:n] in known)
        if what == "insert":
            _, before = tree.insert(ids(*key), run(slot, len(key)))
            assert before == longest
            known.update({key[: n + 1]: slot + n for n in range(before, len(key))})
            slot += len(key)
        elif what == "evict":
            freed = tree.evict(len(key)).tolist()
            held = {prefix[:n] for _, prefix in locked for n in range(1, len(prefix) + 1)}
            assert len(freed) == min(len(key), len(known) - len(held))
            known = {prefix: slot for prefix, slot in known.items() if slot not in freed}
            assert held <= known.keys()
        elif what == "unlock" and locked:
            tree.unlock(locked.pop(0)[0])  # type: ignore[arg-type]
        else:
            slots, node = tree.match(ids(*key))
            assert slots.tolist() == [known[key[: n + 1]] for n in range(longest)]
            if what == "lock":
                tree.lock(node)
                locked.append((node, key[:longest]))
        assert tree.tokens == len(known) == sum(len(node.slots) for node in tree.nodes())
        assert all(prefix[:-1] in known for prefix in known if len(prefix) > 1), "a prefix lost its beginning"


@pytest.mark.parametrize("seed", range(3))
def test_eviction_order_is_that_of_a_full_scan(seed: int) -> None:
    """The lazy queue finds the same leaf as a scan of all leaves."""
    tree, random = PrefixTree(), np.random.default_rng(seed)
    slot = 0
    for _ in range(200):
        values = random.integers(0, 3, random.integers(1, 8)).astype(np.int32)
        if random.random() < 0.5:
            tree.insert(values, run(slot, len(values)))
            slot += len(values)
        else:
            tree.match(values)
        if tree.tokens > 40:
            leaves = [node for node in tree.nodes() if node.evictable]
            oldest = min(node.last_use for node in leaves)
            last = {int(node.slots[-1]) for node in leaves if node.last_use == oldest}
            assert int(tree.evict(1)[0]) in last
