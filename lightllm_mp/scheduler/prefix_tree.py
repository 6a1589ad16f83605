"""The prefix tree (a radix tree): it maps known token prefixes to the slots that hold their KV.

Its grain is one token: an edge holds any number of ids and is split where two prompts differ. A running sequence locks
the node whose slots it reads, and with it the path to the root. Nodes without a lock are evictable, leaves first, and
of these the least recently used leaf first. The tree owns the slots of its nodes only: it never allocates, and eviction
returns slots to the caller. Use stamps count tree operations, so runs are repeatable.

In layers with a window, a prefix is usable while the tree has the slots of its last `tail` ids. A lock holds only
these, and eviction also takes slots in front of them: it leaves a hollow node, which has ids without slots. Eviction
first takes slots that no prefix has ended with (`PrefixTree.ends`); otherwise one long prompt would cost all other
prefixes their last slots.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import count

import numpy as np

from lightllm_mp.plan import Ints

EMPTY = np.empty(0, np.int32)
HOLLOW = -1
"""Stands for a slot that the tree does not have."""

Namespace = tuple[int, bytes]
NO_NAMESPACE: Namespace = (0, b"")


class PrefixNode:
    """`ids` and `slots` are int32 of equal length, empty in a root; in a hollow node all slots are HOLLOW."""

    __slots__ = ("checkpoint", "children", "end_use", "ids", "last_use", "locks", "parent", "queued", "slots", "start")

    def __init__(self, ids: Ints, slots: Ints, parent: PrefixNode | None) -> None:
        self.ids, self.slots, self.parent = ids, slots, parent
        self.children: dict[int, PrefixNode] = {}
        """Children by their first id."""
        self.start: int = parent.start + len(parent.ids) if parent is not None else 0
        """Position of the first id."""
        self.checkpoint = -1
        """Number of the copy of the recurrent state after the last id (recurrent_states.py); -1: no copy."""
        self.locks = 0
        self.last_use = 0
        self.end_use = 0
        """Stamp of the last prefix that ended with these slots; 0: none."""
        self.queued = False
        """The node is in the queue of eviction candidates."""

    @property
    def hollow(self) -> bool:
        return len(self.slots) > 0 and bool(self.slots[0] < 0)

    @property
    def held(self) -> int:
        """Number of slots of the node."""
        return 0 if self.hollow else len(self.slots)

    @property
    def evictable(self) -> bool:
        return not self.locks and not self.children and self.parent is not None

    @property
    def can_be_hollow(self) -> bool:
        """Whether the slots can be evicted, if the model needs only the last slots of a prefix."""
        return not self.locks and self.parent is not None and not self.hollow


class LruLeaves:
    """Finds the least recently used leaf without a walk over the tree. `inner`: the queue holds all nodes that
    `can_be_hollow` instead of leaves, by `end_use`; of equally old nodes the one nearest to the root comes first,
    because a sequence that goes on from the end does not need it.

    A heap whose entries may be out of date: it notices a leaf that was used since, or is no longer evictable, only when
    the leaf comes up. So a use costs nothing, and finding the oldest leaf takes O(log n) on average.
    Each evictable leaf is in the heap once (`PrefixNode.queued`), with a key not above its present one.
    """

    def __init__(self, *, inner: bool = False) -> None:
        self._heap: list[tuple[tuple[int, int, int], int, PrefixNode]] = []
        self._order = count()
        self._inner = inner

    def takes(self, node: PrefixNode) -> bool:
        """Whether the node belongs in the queue."""
        return node.can_be_hollow if self._inner else node.evictable

    def offer(self, node: PrefixNode) -> None:
        """Queue a changed `node` if it is evictable and not yet queued."""
        if self.takes(node) and not node.queued:
            node.queued = True
            heapq.heappush(self._heap, (self._key(node), next(self._order), node))

    def _key(self, node: PrefixNode) -> tuple[int, int, int]:
        return (node.end_use, node.last_use, node.start) if self._inner else (node.last_use, 0, 0)

    def oldest(self) -> PrefixNode | None:
        """The least recently used evictable leaf, or None. It stays in the queue."""
        while self._heap:
            key, _, node = self._heap[0]
            if not self.takes(node):
                heapq.heappop(self._heap)
                node.queued = False
            elif (now := self._key(node)) != key:
                heapq.heapreplace(self._heap, (now, next(self._order), node))
            else:
                return node
        return None


class PrefixTree:
    """Each `namespace` has its own prefixes (see `Sequence.namespace`). `tail`: the number of a prefix's last ids whose
    slots are needed, if the model has windows; None: all."""

    def __init__(self, tail: int | None = None) -> None:
        self._tail = tail
        self._forgotten = 0
        self.clear()

    def clear(self) -> None:
        """Forget all prefixes; the caller frees the slots."""
        self._roots: dict[Namespace, PrefixNode] = {}
        self._leaves = LruLeaves(inner=self._tail is not None)
        self._clock = 0
        self.tokens = 0
        """Slots owned by the tree."""
        self.evictable = 0
        """Slots of the tree that no lock holds."""
        self.size = 0
        """Number of nodes, without the roots."""
        self.version = 0
        """Grows when a prefix or a checkpoint is added; until then, a failed match need not be tried again."""
        self.lost_checkpoints: list[int] = []
        """Checkpoints of evicted tokens; their owner frees them."""

    def match(self, ids: Ints, namespace: Namespace = NO_NAMESPACE) -> tuple[Ints, PrefixNode]:
        """The longest known prefix of `ids`: its int32 slots (with windows, HOLLOW before the last ones) and last node.
        Lock the node before using the slots."""
        node, found = self._descend(ids, namespace)
        slots = np.concatenate(found) if found else EMPTY
        if self._tail is not None and (end := _usable(slots, self._tail)) < len(slots):
            return self.match(ids[:end], namespace)
        return slots, node

    def known(self, ids: Ints, namespace: Namespace = NO_NAMESPACE) -> int:
        """The number of leading ids that the tree has, with or without their slots."""
        return sum(map(len, self._descend(ids, namespace)[1]))

    def insert(self, ids: Ints, slots: Ints, namespace: Namespace = NO_NAMESPACE) -> tuple[PrefixNode, int]:
        """Make `ids` a known prefix. Returns its last node and the number of leading ids that were known before. For
        those the tree keeps its own slots (but see `fill`); for the others it takes over `slots`."""
        node, found = self._descend(ids, namespace)
        known = sum(map(len, found))
        if known < len(ids):
            if node.children:
                self.ends(node)  # a sequence that differs only later also ends here
            node = self._grow(node, ids[known:].copy(), slots[known:].copy())
        return node, known

    def fill(self, node: PrefixNode, slots: Ints) -> Ints:
        """Offer slots, or HOLLOW, for the prefix that ends with `node`: hollow nodes take the slots that they lack.
        Returns the slots that no node takes."""
        spare, at = slots[slots >= 0], 0
        if self._tail is None:
            return spare
        for part in path(node):
            at += len(part.ids)
            own = slots[at - len(part.ids) : at]
            if part.hollow and (lacks := int((own < 0).sum())) < len(own):
                if lacks:
                    self._split(part, lacks)
                part.slots = own[lacks:].copy()
                self.tokens += part.held
                self.evictable += part.held
                self.version += 1
                self._leaves.offer(part)
                spare = np.setdiff1d(spare, part.slots, assume_unique=True)
        return spare

    def slots_of(self, node: PrefixNode) -> Ints:
        """The slots of the prefix that ends with `node`."""
        return np.concatenate([EMPTY, *(part.slots for part in path(node))])

    def forget(self, namespace: Namespace) -> None:
        """Never match the present prefixes of a namespace again. They stay until they are evicted."""
        if (root := self._roots.pop(namespace, None)) is not None:
            self._forgotten += 1
            self._roots[(-self._forgotten, b"forgotten")] = root

    def lock(self, node: PrefixNode) -> None:
        for part in self.needed(node):
            if not part.locks:
                self.evictable -= len(part.slots)
            part.locks += 1

    def unlock(self, node: PrefixNode) -> None:
        for part in self.needed(node):
            part.locks -= 1
            if not part.locks:
                self.evictable += len(part.slots)
                self._leaves.offer(part)

    def ends(self, node: PrefixNode) -> None:
        """Note that a prefix ends with `node` and that others may go on from there. Eviction then prefers other slots
        to its last ones, and to one more, because the same prompt again goes on from before its last id."""
        if self._tail is not None:
            for part in self._last(node, self._tail + 1):
                part.end_use = self._clock

    def needed(self, node: PrefixNode) -> Iterator[PrefixNode]:
        """The nodes whose slots a lock on `node` holds, from the end on. The first of them may be split for it."""
        return self._last(node, self._tail)

    def _last(self, node: PrefixNode, left: int | None) -> Iterator[PrefixNode]:
        """The nodes of the last `left` ids (None: of all ids) of the prefix that ends with `node`."""
        for part in _path(node):
            if left is not None and left <= 0:
                return
            if left is not None and len(part.ids) > left:
                self._split(part, len(part.ids) - left)
            yield part
            left = None if left is None else left - len(part.ids)

    def evict(self, n: int) -> Ints:
        """Forget the `n` least recently used tokens (fewer if fewer are evictable); returns their slots."""
        freed: list[Ints] = []
        while n > 0 and (node := self._leaves.oldest()) is not None:
            take = self._hollow if node.children else self._trim
            freed.append(take(node, min(n, len(node.slots))))
            n -= len(freed[-1])
        return np.concatenate(freed) if freed else EMPTY

    def takes(self, node: PrefixNode) -> bool:
        """Whether eviction may take slots of the node."""
        return self._leaves.takes(node)

    def nodes(self) -> Iterator[PrefixNode]:
        """All nodes except the roots, parents first."""
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
        upper.locks, upper.last_use, upper.end_use = node.locks, node.last_use, node.end_use
        self.size += 1
        assert node.parent is not None
        node.parent.children[int(upper.ids[0])] = upper
        node.ids, node.slots, node.parent = node.ids[at:].copy(), node.slots[at:].copy(), upper
        node.start += at
        upper.children[int(node.ids[0])] = node
        self._leaves.offer(upper)
        return upper

    def _grow(self, parent: PrefixNode, ids: Ints, slots: Ints) -> PrefixNode:
        """A new child of `parent`. It must not be hollow in part."""
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
        self._remove(leaf)
        return slots

    def _remove(self, leaf: PrefixNode) -> None:
        """Remove a leaf without slots, and hollow nodes above it that have no other child."""
        parent = leaf.parent
        assert parent is not None
        del parent.children[int(leaf.ids[0])]
        leaf.parent = None
        self.size -= 1
        if parent.hollow and not parent.children:
            self._remove(parent)
        else:
            self._leaves.offer(parent)

    def _hollow(self, node: PrefixNode, n: int) -> Ints:
        """Take the slots of the first `n` ids of an inner node."""
        part = node if n == len(node.slots) else self._split(node, n)
        slots, part.slots = part.slots, np.full(n, HOLLOW, np.int32)
        self.tokens -= n
        self.evictable -= n
        return slots


def path(node: PrefixNode) -> list[PrefixNode]:
    """The nodes from the root's child down to `node`."""
    return list(_path(node))[::-1]


def _path(node: PrefixNode) -> Iterator[PrefixNode]:
    while node.parent is not None:
        yield node
        node = node.parent


def _usable(slots: Ints, tail: int) -> int:
    """Length of the longest beginning whose last `tail` slots (or all) are there."""
    hollow = np.flatnonzero(slots < 0)
    begins, ends = np.append(0, hollow + 1), np.append(hollow, len(slots))
    return int(ends[(ends - begins >= tail) | (begins == 0)].max())


def _common(a: Ints, b: Ints) -> int:
    """Length of the common prefix."""
    n = min(len(a), len(b))
    differs = a[:n] != b[:n]
    first = int(differs.argmax())
    return first if differs[first] else n
