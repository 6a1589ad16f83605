"""Checkpoints of recurrent states in the prefix tree: they let models with linear attention reuse prefixes.

A recurrent layer keeps no keys and values. It keeps one state per sequence, which every token changes. The worker has
the newest state of each row. To go on from a known prefix, a sequence needs the state at exactly its end, so plans save
copies on the way. A copy belongs to its sequence until the tree gets the tokens before it; then it is a checkpoint of
the node that ends there. A prefix is known as far as its deepest checkpoint.

A copy may take as much memory as the KV of thousands of tokens, so there are few, at multiples of a grain:
- below the last token of a prompt, for the same prompt again, its other answers, and the next turn of a chat;
- where a prompt leaves the known prefix, for further prompts with that beginning;
- at intervals in long prompts and in answers, for sequences that go on from there or are preempted. A running answer
  holds only its newest copies.
When all places are taken, the least recently used copy makes room, whether it is a checkpoint or not; its tokens stay
in the tree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from lightllm_mp.facts import EngineLimits
from lightllm_mp.plan import NO_STATE, Ints, PlanBuilder
from lightllm_mp.scheduler.prefix_tree import PrefixNode, PrefixTree
from lightllm_mp.scheduler.rows import Rows
from lightllm_mp.scheduler.sequence import Sequence
from lightllm_mp.scheduler.slot_pool import SlotPool

PROMPT_GRAINS, ANSWER_GRAINS = 32, 4
"""Grains between two copies, within a prompt and within an answer."""
MOST = 8
"""Most copies at intervals within a prompt; in longer prompts the intervals are larger."""


class NoStates:
    """For a model without recurrent layers: a prefix is known wherever its KV is."""

    def usable(self, sequence: Sequence, slots: Ints, node: PrefixNode) -> tuple[Ints, PrefixNode]:
        """The part of a known prefix, its slots and last node, from which the sequence can go on."""
        return slots, node

    def write(self, builder: PlanBuilder, decoding: np.ndarray, chunks: Mapping[Sequence, int]) -> None:
        """Write into a plan which states it loads and saves. `decoding`, `chunks`: as for `write_step`."""

    def keep(self, sequence: Sequence, end: int) -> None:
        """The tree has the first `end` ids of a running sequence, and may take its copies up to there."""

    def drop(self, sequence: Sequence) -> None:
        """Free the copies that only a running sequence owns."""

    def reclaim(self) -> None:
        """Free the checkpoints whose tokens the tree has evicted."""

    def clear(self) -> None:
        """Free all copies. Afterwards no sequence has one."""

    def gauges(self) -> dict[str, float]:
        return {"state_checkpoints_used": 0, "state_checkpoints": 0}


class RecurrentStates(NoStates):
    def __init__(self, checkpoints: int, grain: int, rows: Rows, tree: PrefixTree, first_place: int) -> None:
        """`first_place`: the place of the first copy in the worker's StatePool."""
        self.pool = SlotPool(checkpoints)
        self.owners: dict[int, PrefixNode | Sequence] = {}
        """Owners of the copies in use, by copy number; the least recently used copy comes first."""
        self._grain, self._rows, self._tree, self._first_place = grain, rows, tree, first_place
        self._written: set[int] = set()
        """Copies that the current plan saves. A step has no order between two saves to one place."""

    def usable(self, sequence: Sequence, slots: Ints, node: PrefixNode) -> tuple[Ints, PrefixNode]:
        sequence.known = length = len(slots)
        while node.parent is not None and node.checkpoint < 0:
            length -= len(node.ids)
            node = node.parent
        return slots[:length], node

    def write(self, builder: PlanBuilder, decoding: np.ndarray, chunks: Mapping[Sequence, int]) -> None:
        rows = self._rows
        self._written.clear()
        for sequence, start in chunks.items():
            if rows.unloaded[sequence.row]:
                builder.state(sequence.row, start, self._load(sequence) if start else NO_STATE)
                rows.unloaded[sequence.row] = False
        for sequence, start in chunks.items():
            for position in sorted(set(self._save_points(sequence, start))):
                self._save(builder, sequence, position)
        for row in decoding[rows.planned[decoding] % (ANSWER_GRAINS * self._grain) == 0].tolist():
            sequence = rows.sequences[row]
            assert sequence is not None
            self._drop_old(sequence)
            self._save(builder, sequence, int(rows.planned[row]))

    def _load(self, sequence: Sequence) -> int:
        """The place of the checkpoint that the sequence goes on from."""
        assert sequence.node is not None
        number = sequence.node.checkpoint
        self.owners[number] = self.owners.pop(number)
        return self._first_place + number

    def _save_points(self, sequence: Sequence, start: int) -> Iterator[int]:
        """Positions at which a chunk saves copies."""
        grain, end, target = self._grain, int(self._rows.planned[sequence.row]), len(sequence.ids)
        for position in (sequence.known // grain * grain, (target - 1) // grain * grain):
            if start < position <= end:
                yield position
        interval = PROMPT_GRAINS * grain
        interval *= -(-target // (MOST * interval))
        yield from range(start // interval * interval + interval, min(end, target - 1) + 1, interval)

    def _save(self, builder: PlanBuilder, sequence: Sequence, position: int) -> None:
        number = self._take() if sequence.cached else None
        if number is not None:
            self._written.add(number)
            self.owners[number] = sequence
            sequence.saves[number] = position
            builder.state(sequence.row, position, self._first_place + number)

    def _take(self) -> int | None:
        """A free copy, or the least recently used one that no sequence is about to load. None: there is no such copy,
        or only copies that this plan saves."""
        if not self.pool.free:
            running = [sequence for sequence in self._rows.sequences if sequence is not None]
            wanted = {sequence.node for sequence in running if self._rows.unloaded[sequence.row]}
            oldest = next((number for number, owner in self.owners.items() if owner not in wanted), None)
            if oldest is None or oldest in self._written:
                return None
            self._free(oldest)
        taken = self.pool.alloc(1)
        assert taken is not None
        return int(taken[0])

    def _free(self, number: int) -> None:
        owner = self.owners.pop(number)
        if isinstance(owner, PrefixNode):
            owner.checkpoint = -1
        else:
            del owner.saves[number]
        self.pool.give_back(np.array([number], np.int32))

    def _drop_old(self, sequence: Sequence) -> None:
        """Free a sequence's old copies. Keeps the newest one that is certainly computed, and all after it."""
        computed = self._rows.confirmed[sequence.row]
        for number in [number for number, position in sequence.saves.items() if position <= computed][:-1]:
            self._free(number)

    def keep(self, sequence: Sequence, end: int) -> None:
        ids = self._rows.ids[sequence.row]
        for number, position in list(sequence.saves.items()):
            if position > end:
                continue
            _, node = self._tree.match(ids[:position], sequence.namespace)
            if node.checkpoint >= 0:
                self._free(number)
                continue
            del sequence.saves[number]
            node.checkpoint, self.owners[number] = number, node
            self._tree.version += 1

    def drop(self, sequence: Sequence) -> None:
        for number in list(sequence.saves):
            self._free(number)

    def reclaim(self) -> None:
        for number in self._tree.lost_checkpoints:
            del self.owners[number]
        self.pool.give_back(np.array(self._tree.lost_checkpoints, np.int32))
        self._tree.lost_checkpoints.clear()

    def clear(self) -> None:
        self.pool.clear()
        self.owners.clear()

    def gauges(self) -> dict[str, float]:
        return {"state_checkpoints_used": self.pool.total - self.pool.free, "state_checkpoints": self.pool.total}


def states_of(limits: EngineLimits, rows: Rows, tree: PrefixTree) -> NoStates:
    if (facts := limits.states) is None:
        return NoStates()
    # The worker's places before the first copy are its rows and a spare one.
    return RecurrentStates(facts.checkpoints, facts.grain, rows, tree, limits.rows + 1)
