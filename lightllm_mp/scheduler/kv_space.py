"""A space of KV slots: those of all layers, of the layers without a window, or of the layers with windows. A slot is
free, in the prefix tree, or owned by one running sequence.

The tree of a space knows the prefixes whose KV the space's layers have. With windows it needs only the last slots of
each prefix; it keeps other slots until they are needed.
"""

from __future__ import annotations

from lightllm_mp.facts import EngineLimits
from lightllm_mp.plan import Ints
from lightllm_mp.scheduler.prefix_tree import HOLLOW, PrefixNode, PrefixTree
from lightllm_mp.scheduler.rows import Rows
from lightllm_mp.scheduler.sequence import Sequence
from lightllm_mp.scheduler.slot_pool import SlotPool


class KvSpace:
    def __init__(self, number: int, slots: int, tail: int | None, bound: int | None, rows: Rows) -> None:
        """`number`: index of the space in `Rows.slots`; `tail`: see PrefixTree; `bound`: most slots of one sequence."""
        self.number, self.tail, self.bound = number, tail, bound
        self.pool, self.tree = SlotPool(slots), PrefixTree(tail)
        self._rows = rows

    def clear(self) -> None:
        self.pool.clear()
        self.tree.clear()

    @property
    def available(self) -> int:
        """Slots that are free or can be freed by eviction."""
        return self.pool.free + self.tree.evictable

    @property
    def used(self) -> int:
        """Slots that running sequences hold. A shared slot counts once."""
        return self.pool.total - self.available

    def make_room(self, n: int) -> int:
        """Evict cached prefixes until `n` slots are free, which must be possible. Returns the number of their slots."""
        missing = max(0, n - self.pool.free)
        if missing:
            self.pool.give_back(self.tree.evict(missing))
        return missing

    def held(self, row: int) -> Ints:
        """The slots that the sequence in a row owns."""
        return self._slots(row)[self._rows.owned[self.number, row] : self._rows.planned[row]]

    def give_back(self, row: int, start: int, end: int) -> None:
        """Free the slots of positions that the sequence in a row owns."""
        self.pool.give_back(self._slots(row)[start:end].copy())

    def leave(self, row: int, position: int) -> None:
        """Free the slots that the sequence in a row owns before `position`, which is behind its window."""
        owned = int(self._rows.owned[self.number, row])
        if position > owned:
            self.give_back(row, owned, position)
            self._rows.first[self.number, row] = position

    def insert(self, sequence: Sequence, end: int) -> tuple[PrefixNode, int]:
        """Like `PrefixTree.insert`, for the first `end` positions of a running sequence. The slots of the sequence that
        the tree does not take become free."""
        row = sequence.row
        slots = self._slots(row)[:end].copy()
        slots[: self._rows.owned[self.number, row]] = HOLLOW
        node, known = self.tree.insert(self._rows.ids[row, :end], slots, sequence.namespace)
        self.pool.give_back(self.tree.fill(node, slots[:known]))
        return node, known

    def publish(self, sequence: Sequence, start: int, end: int) -> tuple[PrefixNode, int]:
        """Give positions `start` .. `end` - 1 of a running sequence to the tree and lock them there. Where the tree has
        them already, the sequence switches to the tree's slots. Returns its node and the end of those positions."""
        node, known = self.insert(sequence, end)
        self.tree.lock(node)
        if known > start:
            self._slots(sequence.row)[start:known] = self.tree.slots_of(node)[start:known]
            self._rows.borrowed[self.number, sequence.row] = known
        return node, known

    def _slots(self, row: int) -> Ints:
        slots: Ints = self._rows.slots[self.number, row]
        return slots


def kv_spaces(limits: EngineLimits, rows: Rows) -> tuple[KvSpace, ...]:
    """One space for all layers, or one for the layers without a window and a second one for those with windows."""
    if not limits.window:
        return (KvSpace(0, limits.kv_tokens, None, None, rows),)
    near = (limits.window - 1, limits.window_slots, rows)
    if not limits.window_tokens:
        return (KvSpace(0, limits.kv_tokens, *near),)
    return KvSpace(0, limits.kv_tokens, None, None, rows), KvSpace(1, limits.window_tokens, *near)
