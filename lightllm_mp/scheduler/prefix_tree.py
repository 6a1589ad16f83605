"""The prefix tree, a radix tree: which token prefixes have their KV in which slots.

Its grain is one token: an edge holds any number of ids and is split where two prompts differ. A running sequence locks
the node whose slots it reads, and with it the path to the root. Nodes without a lock are evictable, leaves first, the
least recently used leaf first. The tree owns the slots of its nodes and nothing else: it never allocates, and eviction
returns slots to the caller. Use stamps count tree operations, so runs are repeatable.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import count

import numpy as np

from lightllm_mp.plan import Ints

EMPTY = np.empty(0, np.int32)

Namespace = tuple[int, bytes]
NO_NAMESPACE: Namespace = (0, b"")


class PrefixNode:
    """`ids` and `slots` are int32 of equal length, empty in a root."""

    __slots__ = ("checkpoint", "children", "ids", "last_use", "locks", "parent", "queued", "slots")

    def __init__(self, ids: Ints, slots: Ints, parent: PrefixNode | None) -> None:
        self.ids, self.slots, self.parent = ids, slots, parent
        self.children: dict[int, PrefixNode] = {}
        """By first id."""
        self.checkpoint = -1
        """Number of the copy of the recurrent state after the last id (recurrent_states.py); -1: there is none."""
        self.locks = 0
        self.last_use = 0
        self.queued = False
        """The node is in the queue of eviction candidates."""

    @property
    def evictable(self) -> bool:
        return not self.locks and not self.children and self.parent is not None


class LruLeaves:
    """Finds the least recently used leaf without a walk over the tree.

    A heap whose entries may be out of date: a leaf that was used since, or is no longer evictable, is noticed only when
    it comes up. So a use costs nothing, and finding the oldest leaf takes O(log n) on average.
    Each evictable leaf is in the heap once (`PrefixNode.queued`), with a stamp not above its last use.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, PrefixNode]] = []
        self._order = count()

    def offer(self, node: PrefixNode) -> None:
        """Queue a changed `node` if it is evictable and not yet queued."""
        if node.evictable and not node.queued:
            node.queued = True
            heapq.heappush(self._heap, (node.last_use, next(self._order), node))

    def oldest(self) -> PrefixNode | None:
        """The least recently used evictable leaf, or None. It stays in the queue."""
        while self._heap:
            stamp, _, node = self._heap[0]
            if not node.evictable:
                heapq.heappop(self._heap)
                node.queued = False
            elif node.last_use != stamp:
                heapq.heapreplace(self._heap, (node.last_use, next(self._order), node))
            else:
                return node
        return None


class PrefixTree:
    """Each `namespace` has its own prefixes (see `Sequence.namespace`)."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget all prefixes; the caller frees the slots."""
        self._roots: dict[Namespace, PrefixNode] = {}
        self._leaves = LruLeaves()
        self._clock = 0
        self.tokens = 0
        """Slots owned by the tree."""
        self.evictable = 0
        """Slots of the tree that no lock holds."""
        self.size = 0
        """Number of nodes but the roots."""
        self.version = 0
        """Grows when a prefix or a checkpoint is added; until then a failed match need not be tried again."""
        self.lost_checkpoints: list[int] = []
        """Checkpoints of evicted tokens, for their owner."""

    def match(self, ids: Ints, namespace: Namespace = NO_NAMESPACE) -> tuple[Ints, PrefixNode]:
        """The longest known prefix of `ids`: its int32 slots and last node. Lock the node before using the slots."""
        node, found = self._descend(ids, namespace)
        return (np.concatenate(found) if found else EMPTY), node

    def insert(self, ids: Ints, slots: Ints, namespace: Namespace = NO_NAMESPACE) -> tuple[PrefixNode, int]:
        """Make `ids` a known prefix. Returns its last node and how many leading ids were known before: for those the
        tree keeps its own slots, for the rest it takes over `slots`."""
        node, found = self._descend(ids, namespace)
        known = sum(map(len, found))
        if known < len(ids):
            node = self._grow(node, ids[known:].copy(), slots[known:].copy())
        return node, known

    def lock(self, node: PrefixNode) -> None:
        for part in _path(node):
            if not part.locks:
                self.evictable -= len(part.slots)
            part.locks += 1

    def unlock(self, node: PrefixNode) -> None:
        for part in _path(node):
            part.locks -= 1
            if not part.locks:
                self.evictable += len(part.slots)
                self._leaves.offer(part)

    def evict(self, n: int) -> Ints:
        """Forget the `n` least recently used tokens (fewer if fewer are evictable); returns their slots."""
        freed: list[Ints] = []
        while n > 0 and (leaf := self._leaves.oldest()) is not None:
            freed.append(self._trim(leaf, min(n, len(leaf.slots))))
            n -= len(freed[-1])
        return np.concatenate(freed) if freed else EMPTY

    def nodes(self) -> Iterator[PrefixNode]:
        """All nodes but the roots, parents first."""
        left = [child for root in self._roots.values() for child in root.children.values()]
        while left:
            yield (node := left.pop())
            left.extend(node.children.values())

    def _descend(self, ids: Ints, namespace: Namespace) -> tuple[PrefixNode, list[Ints]]:
        """The node where the known prefix of `ids` ends (split there if needed) and the slots on the way."""
        node = self._roots.get(namespace)
        if node is None:
            node = self._roots[namespace] = PrefixNode(EMPTY, EMPTY, None)
        self._clock += 1
        at, found = 0, []
        while at < len(ids) and (child := node.children.get(int(ids[at]))) is not None:
            common = _common(child.ids, ids[at:])
            parted = common < len(child.ids)
            node = self._split(child, common) if parted else child
            node.last_use = self._clock
            found.append(node.slots)
            at += common
            if parted:
                break
        return node, found

    def _split(self, node: PrefixNode, at: int) -> PrefixNode:
        """Cut `node` in two and return the upper part. `node` becomes the lower part: locks refer to their end."""
        upper = PrefixNode(node.ids[:at].copy(), node.slots[:at].copy(), node.parent)
        upper.locks, upper.last_use = node.locks, node.last_use
        self.size += 1
        assert node.parent is not None
        node.parent.children[int(upper.ids[0])] = upper
        node.ids, node.slots, node.parent = node.ids[at:].copy(), node.slots[at:].copy(), upper
        upper.children[int(node.ids[0])] = node
        return upper

    def _grow(self, parent: PrefixNode, ids: Ints, slots: Ints) -> PrefixNode:
        node = PrefixNode(ids, slots, parent)
        parent.children[int(ids[0])] = node
        node.last_use = self._clock
        self.size += 1
        self.tokens += len(slots)
        self.evictable += len(slots)
        self.version += 1
        self._leaves.offer(node)
        return node

    def _trim(self, leaf: PrefixNode, n: int) -> Ints:
        """Take the last `n` tokens off a leaf and remove it once it has none; returns their slots."""
        keep = len(leaf.slots) - n
        slots = leaf.slots[keep:]
        self.tokens -= n
        self.evictable -= n
        if leaf.checkpoint >= 0:
            self.lost_checkpoints.append(leaf.checkpoint)
            leaf.checkpoint = -1
        if keep:
            leaf.ids, leaf.slots = leaf.ids[:keep], leaf.slots[:keep]
            return slots
        parent = leaf.parent
        assert parent is not None
        del parent.children[int(leaf.ids[0])]
        leaf.parent = None
        self.size -= 1
        self._leaves.offer(parent)
        return slots


def path(node: PrefixNode) -> list[PrefixNode]:
    """The nodes from the root's child down to `node`."""
    return list(_path(node))[::-1]


def _path(node: PrefixNode) -> Iterator[PrefixNode]:
    while node.parent is not None:
        yield node
        node = node.parent


def _common(a: Ints, b: Ints) -> int:
    """Length of the common prefix."""
    n = min(len(a), len(b))
    differs = a[:n] != b[:n]
    first = int(differs.argmax())
    return first if differs[first] else n
