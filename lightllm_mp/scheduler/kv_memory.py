"""KV memory: each slot is either free, in the prefix tree, or owned by one running sequence.

A sequence holds its first `Rows.treed` positions through a lock on the tree and owns the rest. The tree gets the
positions of answered steps when the prefill is done, so that other sequences share them, and when the sequence leaves.

Where every layer has a window, a sequence holds the positions that its next tokens see, from `Rows.first` on: others go
to the tree, without a lock, as it runs (`leave_behind`), where they stay until their slots are needed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lightllm_mp.facts import EngineLimits
from lightllm_mp.plan import Ints
from lightllm_mp.scheduler.counters import Counters
from lightllm_mp.scheduler.prefix_tree import EMPTY, HOLLOW, Namespace, PrefixNode, PrefixTree
from lightllm_mp.scheduler.recurrent_states import states_of
from lightllm_mp.scheduler.rows import Rows
from lightllm_mp.scheduler.sequence import Sequence
from lightllm_mp.scheduler.slot_pool import SlotPool
from lightllm_mp.vision.placeholders import sure_match


class KvMemory:
    def __init__(self, limits: EngineLimits, rows: Rows, counters: Counters) -> None:
        self._tail = limits.window - 1 if limits.window else None
        self._whole = limits.whole_images
        self.pool, self.tree = SlotPool(limits.kv_tokens), PrefixTree(self._tail)
        self._grain = limits.window_grain
        self.states = states_of(limits, rows, self.tree)
        self._rows = rows
        self._counters = counters

    @property
    def available(self) -> int:
        """Slots that `take` can give."""
        return self.pool.free + self.tree.evictable

    @property
    def used(self) -> int:
        """Slots held by running sequences, shared ones counted once."""
        return self.pool.total - self.available

    def clear(self) -> None:
        self.pool.clear()
        self.tree.clear()
        self.states.clear()

    def take(self, n: int) -> Ints | None:
        """int32 [n] slots; evicts cached prefixes if needed. None when that is not enough."""
        missing = n - self.pool.free
        if missing > self.tree.evictable:
            return None
        if missing > 0:
            self.pool.give_back(self.tree.evict(missing))
            self._counters.evicted_tokens += missing
            self.states.reclaim()
        return self.pool.alloc(n)

    def borrow(self, sequence: Sequence) -> Ints:
        """Lock the longest known prefix of a sequence in place of the one it held; returns its slots. The last id is
        never part of it: the sequence needs its logits, so the id is computed."""
        if not sequence.reads_cache:
            return EMPTY
        slots, node = self._match(sequence)
        self.tree.lock(node)
        self.let_go(sequence)
        sequence.node, sequence.tree_version = node, self.tree.version
        return slots

    def leave_behind(self) -> Iterator[tuple[int, int, int, int]]:
        """Give up positions that no token of a running sequence will see again, where there are enough of them. Yields
        (row, life, start, end) of positions whose slots have changed."""
        if self._tail is None:
            return
        rows = self._rows
        behind = rows.confirmed - self._tail
        for row in np.flatnonzero((rows.life > 0) & (behind - rows.first >= self._grain)).tolist():
            sequence = rows.sequences[row]
            assert sequence is not None
            if sequence.cached:
                start, end = self.publish(sequence)
                if start < end:
                    yield row, int(rows.life[row]), start, end
            elif behind[row] > rows.owned[row]:
                self.pool.give_back(rows.slots[row, rows.owned[row] : behind[row]].copy())
                rows.first[row] = behind[row]

    def forget(self, namespace: Namespace) -> None:
        """Nothing of what the tree has of a namespace may be used again: some of it may be wrong."""
        self.tree.forget(namespace)
        for sequence in self._rows.sequences:
            if sequence is not None and sequence.namespace == namespace:
                sequence.cached = False

    def _match(self, sequence: Sequence) -> tuple[Ints, PrefixNode]:
        """The longest usable prefix that surely has the same images (see `sure_match`): its slots and last node."""
        end = len(sequence.ids) - 1
        while True:
            slots, node = self.tree.match(sequence.ids[:end], sequence.namespace)
            end = sure_match(len(slots), sequence.spans, self._whole)
            if end == len(slots):
                return self.states.usable(sequence, slots, node)

    def _sharable(self, sequence: Sequence, ids: Ints) -> int:
        """How many of a sequence's computed `ids` may go to the tree: never only the start of an image. If the tree's
        match ends in what may be another image (see `sure_match`), only the ids before that image."""
        if not sequence.spans:
            return len(ids)
        known = self.tree.known(ids, sequence.namespace)
        sure = sure_match(known, sequence.spans, self._whole)
        return sure_match(len(ids), sequence.spans, self._whole) if sure == known else sure

    def let_go(self, sequence: Sequence) -> None:
        """Give up the lock on the shared prefix."""
        if sequence.node is not None:
            self.tree.unlock(sequence.node)
        sequence.node = None

    def publish(self, sequence: Sequence) -> tuple[int, int]:
        """Give the computed positions of a running sequence to the tree. Where the tree already has the same prefix,
        the sequence switches to the tree's slots; returns the start and end of those positions."""
        row, rows = sequence.row, self._rows
        start, end = int(rows.treed[row]), int(rows.confirmed[row])
        end = self._sharable(sequence, rows.ids[row, :end])
        node, known = self._insert(sequence, end)
        self.tree.lock(node)
        self.let_go(sequence)
        sequence.node = node
        rows.treed[row] = end
        rows.see_from(row, end)
        if known > start:
            rows.slots[row, start:known] = self.tree.slots_of(node)[start:known]
            rows.borrowed[row] = known
        self.states.keep(sequence, end)
        return start, max(start, known)

    def _insert(self, sequence: Sequence, end: int) -> tuple[PrefixNode, int]:
        """As `PrefixTree.insert`, for the first `end` positions of a running sequence. What the tree does not take of
        the sequence's slots is free."""
        row, rows = sequence.row, self._rows
        slots = rows.slots[row, :end].copy()
        slots[: rows.owned[row]] = HOLLOW
        node, known = self.tree.insert(rows.ids[row, :end], slots, sequence.namespace)
        self.pool.give_back(self.tree.fill(node, slots[:known]))
        return node, known

    def catch_up(self, sequence: Sequence) -> tuple[int, int]:
        """Use what other sequences have computed of a running sequence's prompt, if that is more than it has planned
        itself. Returns the start and end of the positions whose slots have changed."""
        row, rows = sequence.row, self._rows
        start, planned = int(rows.treed[row]), int(rows.planned[row])
        if not sequence.reads_cache or sequence.tree_version == self.tree.version:
            return start, start
        slots, node = self._match(sequence)
        sequence.tree_version = self.tree.version
        if len(slots) <= planned:
            return start, start
        self.tree.lock(node)
        self.let_go(sequence)
        sequence.node = node
        self.states.drop(sequence)
        self.pool.give_back(rows.slots[row, rows.owned[row] : planned].copy())
        rows.start_from(row, slots)
        return start, len(slots)

    def take_back(self, row: int, count: int) -> None:
        """Free the slots of the last `count` planned positions of a row: they are planned no longer."""
        end = int(self._rows.planned[row])
        self.pool.give_back(self._rows.slots[row, end - count : end].copy())
        self._rows.planned[row] = end - count

    def release(self, sequence: Sequence) -> None:
        """Take all slots from a running sequence; if it is `cached`, the tree gets the computed positions."""
        row, rows = sequence.row, self._rows
        treed, confirmed, planned = (int(column[row]) for column in (rows.treed, rows.confirmed, rows.planned))
        end = self._sharable(sequence, rows.ids[row, :confirmed]) if sequence.cached and confirmed > treed else treed
        if end > treed:
            self._insert(sequence, end)
        else:
            end = int(rows.owned[row])
        self.pool.give_back(rows.slots[row, end:planned].copy())
        self.states.keep(sequence, end)
        self.states.drop(sequence)
        self.let_go(sequence)
