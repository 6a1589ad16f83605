"""KV memory of the running sequences and of the prefix cache, in one or two spaces (kv_space.py). A position has a slot
in each space.

A sequence holds its first `Rows.treed` positions through locks on the trees and owns the rest. The trees get the
positions of answered steps when the prefill is done, so that other sequences share them, and when the sequence leaves.
A prefix is known as far as the trees of all spaces know it.

In layers with windows, a sequence holds only the positions that its next tokens see, from `Rows.first` on. Earlier
positions go to the trees as it runs (`leave_behind`). In these layers they have no lock there, and stay until their
slots are needed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lightllm_mp.facts import EngineLimits
from lightllm_mp.plan import Ints
from lightllm_mp.scheduler.counters import Counters
from lightllm_mp.scheduler.kv_space import kv_spaces
from lightllm_mp.scheduler.prefix_tree import EMPTY, Namespace, PrefixNode
from lightllm_mp.scheduler.recurrent_states import states_of
from lightllm_mp.scheduler.rows import Rows
from lightllm_mp.scheduler.sequence import Sequence
from lightllm_mp.vision.placeholders import SURE_SLOTS, sure_match

Found = list[tuple[Ints, PrefixNode]]
"""A known prefix: its slots and its last node, for each space."""


class KvMemory:
    def __init__(self, limits: EngineLimits, rows: Rows, counters: Counters) -> None:
        self.spaces = kv_spaces(limits, rows)
        self._windowed = self.spaces[-1] if limits.window else None
        self._whole = limits.whole_images
        self._grain = limits.window_grain
        self.pool, self.tree = self.spaces[0].pool, self.spaces[0].tree
        """Pool and tree of the first space."""
        self.states = states_of(limits, rows, self.tree)
        self._rows = rows
        self._counters = counters

    @property
    def available(self) -> int:
        """Slots that `take` can give."""
        return min(space.available for space in self.spaces)

    @property
    def used(self) -> int:
        """Slots of the first space that running sequences hold. A shared slot counts once."""
        return self.spaces[0].used

    def gauges(self) -> dict[str, float]:
        """Gauges of the space of layers with windows; 0 if there is only one space."""
        near = self.spaces[1] if len(self.spaces) > 1 else None
        return {"kv_window_used": near.used if near else 0, "kv_window_total": near.pool.total if near else 0}

    def clear(self) -> None:
        for space in self.spaces:
            space.clear()
        self.states.clear()

    def take(self, n: int) -> Ints | None:
        """int32 [spaces, n] slots; evicts cached prefixes if needed. None if there are not enough even then."""
        if n > self.available:
            return None
        evicted = [space.make_room(n) for space in self.spaces]
        if any(evicted):
            self._counters.evicted_tokens += evicted[0]
            self.states.reclaim()
        taken = [space.pool.alloc(n) for space in self.spaces]
        return np.stack([slots for slots in taken if slots is not None])

    def borrow(self, sequence: Sequence) -> list[Ints]:
        """Lock the longest known prefix of a sequence instead of the one it held; returns its slots in each space. The
        prefix never includes the last id: the sequence needs its logits, so a step has to compute it."""
        if not sequence.reads_cache:
            return [EMPTY for _ in self.spaces]
        return self._share(sequence, self._match(sequence))

    def _share(self, sequence: Sequence, found: Found) -> list[Ints]:
        for space, (_, node) in zip(self.spaces, found, strict=True):
            space.tree.lock(node)
            space.tree.ends(node)
        self.let_go(sequence)
        sequence.nodes, sequence.tree_version = tuple(node for _, node in found), self._version
        return [slots for slots, _ in found]

    @property
    def _version(self) -> int:
        return sum(space.tree.version for space in self.spaces)

    def leave_behind(self) -> Iterator[tuple[int, int, int, int]]:
        """Give up positions that no token of a running sequence will see again, once there are enough of them. Yields
        (row, life, start, end) of positions whose slots have changed."""
        if (space := self._windowed) is None or space.tail is None:
            return
        rows = self._rows
        behind = rows.confirmed - space.tail
        for row in np.flatnonzero((rows.life > 0) & (behind - rows.first[space.number] >= self._grain)).tolist():
            sequence = rows.sequences[row]
            assert sequence is not None
            if sequence.cached:
                start, end = self._publish(sequence)
                if start < end:
                    yield row, int(rows.life[row]), start, end
            if behind[row] - rows.first[space.number, row] >= self._grain + SURE_SLOTS:
                sequence.cached = False  # the trees refuse them, because they have what may be another image
            if not sequence.cached:
                space.leave(row, int(behind[row]))

    def forget(self, namespace: Namespace) -> None:
        """Do not use the trees' present prefixes of a namespace again: some of their KV may be wrong."""
        for space in self.spaces:
            space.tree.forget(namespace)
        for sequence in self._rows.sequences:
            if sequence is not None and sequence.namespace == namespace:
                sequence.cached = False

    def _match(self, sequence: Sequence) -> Found:
        """The longest usable prefix that certainly has the same images (see `sure_match`)."""
        end = len(sequence.ids) - 1
        while True:
            found = [space.tree.match(sequence.ids[:end], sequence.namespace) for space in self.spaces]
            end = sure_match(min(len(slots) for slots, _ in found), sequence.spans, self._whole)
            if all(len(slots) == end for slots, _ in found):
                return [self.states.usable(sequence, *found[0]), *found[1:]]

    def _sharable(self, sequence: Sequence, ids: Ints) -> int:
        """How many of a sequence's computed `ids` may go to the trees; never a part of an image. If a tree's match ends
        in what may be another image (see `sure_match`), only the ids before that image."""
        if not sequence.spans:
            return len(ids)
        end = sure_match(len(ids), sequence.spans, self._whole)
        for space in self.spaces:
            known = space.tree.known(ids, sequence.namespace)
            if (sure := sure_match(known, sequence.spans, False)) < known:
                end = min(end, sure)
        return end

    def let_go(self, sequence: Sequence) -> None:
        """Give up the locks on the shared prefix."""
        for space, node in zip(self.spaces, sequence.nodes, strict=False):
            space.tree.unlock(node)
        sequence.nodes = ()

    def publish(self, sequence: Sequence) -> tuple[int, int]:
        """Give the computed positions of a running sequence, its whole prompt, to the trees. Where a tree has the same
        prefix already, the sequence switches to the tree's slots; returns the start and end of those positions."""
        moved = self._publish(sequence)
        for space, node in zip(self.spaces, sequence.nodes, strict=True):
            space.tree.ends(node)
        return moved

    def _publish(self, sequence: Sequence) -> tuple[int, int]:
        row, rows = sequence.row, self._rows
        start, end = int(rows.treed[row]), int(rows.confirmed[row])
        end = self._sharable(sequence, rows.ids[row, :end])
        found = [space.publish(sequence, start, end) for space in self.spaces]
        self.let_go(sequence)
        sequence.nodes = tuple(node for node, _ in found)
        rows.treed[row] = end
        rows.see_from(row, end)
        self.states.keep(sequence, end)
        return start, max(start, *(known for _, known in found))

    def catch_up(self, sequence: Sequence) -> tuple[int, int]:
        """Use what other sequences have computed of a running sequence's prompt, if that is more than it has planned
        itself. Returns the start and end of positions whose slots have changed."""
        row, rows = sequence.row, self._rows
        start, planned = int(rows.treed[row]), int(rows.planned[row])
        if not sequence.reads_cache or sequence.tree_version == self._version:
            return start, start
        found = self._match(sequence)
        sequence.tree_version = self._version
        known = len(found[0][0])
        if known <= planned:
            return start, start
        slots = self._share(sequence, found)
        self.states.drop(sequence)
        for space in self.spaces:
            space.give_back(row, int(rows.owned[space.number, row]), planned)
        rows.start_from(row, slots)
        return start, known

    def take_back(self, row: int, count: int) -> None:
        """Undo the plan of a row's last `count` planned positions, and free their slots."""
        end = int(self._rows.planned[row])
        for space in self.spaces:
            space.give_back(row, end - count, end)
        self._rows.planned[row] = end - count

    def release(self, sequence: Sequence) -> None:
        """Take all slots from a running sequence. If it is `cached`, the trees get its computed positions."""
        row, rows = sequence.row, self._rows
        treed, confirmed, planned = (int(column[row]) for column in (rows.treed, rows.confirmed, rows.planned))
        end = self._sharable(sequence, rows.ids[row, :confirmed]) if sequence.cached and confirmed > treed else treed
        for space in self.spaces:
            if end > treed:
                node, _ = space.insert(sequence, end)
                space.tree.ends(node)
            space.give_back(row, max(end, int(rows.owned[space.number, row])), planned)
        self.states.keep(sequence, end)
        self.states.drop(sequence)
        self.let_go(sequence)
