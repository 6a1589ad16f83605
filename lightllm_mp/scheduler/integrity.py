"""Integrity checks of KV slots, queues and image leases. They run when the scheduler goes idle, and in tests."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lightllm_mp.scheduler.kv_memory import KvMemory
from lightllm_mp.scheduler.kv_space import KvSpace
from lightllm_mp.scheduler.prefix_tree import EMPTY, PrefixNode, PrefixTree, path
from lightllm_mp.scheduler.prompt_images import Leases
from lightllm_mp.scheduler.recurrent_states import RecurrentStates
from lightllm_mp.scheduler.rows import Rows
from lightllm_mp.scheduler.sequence import Sequence
from lightllm_mp.scheduler.wait_queue import WaitQueue


class IntegrityError(AssertionError):
    """The scheduler's bookkeeping is wrong; the message names the place."""


def check(rows: Rows, kv: KvMemory) -> None:
    """IntegrityError unless each slot is free, in the tree or owned by one running sequence, and locks and counts add
    up. O(slots + nodes)."""
    running = [sequence for sequence in rows.sequences if sequence is not None]
    for space in kv.spaces:
        _check_slots(space, running)
        _check_tree(space, running)
        for sequence in running:
            _check_prefix(rows, space, sequence)
        charged = int(rows.computed[space.number, rows.running()].sum())
        if charged > space.used:
            raise IntegrityError(f"admission charges {charged} slots to running sequences, {space.used} are in use")
    if isinstance(kv.states, RecurrentStates):
        _check_states(rows, kv.states, kv.tree, running)


def check_queues(rows: Rows, live: Mapping[int, Sequence], waiting: WaitQueue, prefilling: WaitQueue) -> None:
    """IntegrityError unless each live sequence either waits or has a row, and `prefilling` holds exactly the running
    sequences whose prompt is not fully planned."""
    running = [sequence for sequence in rows.sequences if sequence is not None]
    _equal("live sequences", sorted(live), sorted(sequence.rid for sequence in [*waiting, *running]))
    _equal("rows in use", len(running), rows.total - rows.free)
    unfinished = [s.rid for s in running if rows.planned[s.row] < rows.target[s.row]]
    _equal("prefilling sequences", sorted(s.rid for s in prefilling), sorted(unfinished))


def check_leases(live: Mapping[int, Sequence], leases: Leases, in_flight: bool) -> None:
    """IntegrityError unless leases match the live sequences with images; others exist only with a step in flight."""
    holders: dict[int, int] = {}
    for sequence in live.values():
        if sequence.images is not None:
            holders[sequence.images.rid] = holders.get(sequence.images.rid, 0) + 1
    _equal("sequences that hold images, by request", leases.held, holders)
    if leases.leaving and not in_flight:
        raise IntegrityError(f"images of {leases.leaving} requests are kept for steps that are all answered")


def _check_slots(space: KvSpace, running: list[Sequence]) -> None:
    owned = [space.held(sequence.row) for sequence in running]
    treed = (node.slots for node in space.tree.nodes() if not node.hollow)
    holders = np.concatenate((space.pool.free_slots(), *treed, *owned))
    total = space.pool.total
    if holders.min(initial=0) < 0 or holders.max(initial=0) >= total:
        raise IntegrityError(f"slots lie in 0..{total - 1}: {holders.min()}..{holders.max()}")
    held = np.zeros(total, np.bool_)
    held[holders] = True
    if len(holders) == total and held.all():
        return  # `total` holders cover all `total` slots, so each slot has one
    twice = np.flatnonzero(np.bincount(holders, minlength=total) > 1)
    lost = np.flatnonzero(~held)
    raise IntegrityError(
        f"{len(lost)} slots are lost, {len(twice)} held more than once: {lost[:8].tolist()}, {twice[:8].tolist()}"
    )


def _check_tree(space: KvSpace, running: list[Sequence]) -> None:
    tree, locks = space.tree, dict[PrefixNode, int]()
    for sequence in running:
        for node in tree.needed(sequence.nodes[space.number]) if sequence.nodes else ():
            locks[node] = locks.get(node, 0) + 1
    tokens = evictable = 0
    for node in tree.nodes():
        tokens += node.held
        evictable += 0 if node.locks else node.held
        _equal(f"locks of the node of ids {node.ids[:8].tolist()}", node.locks, locks.pop(node, 0))
        _equal("ids and slots of a node", len(node.ids), len(node.slots))
        if (node.hollow and (node.locks or not node.children)) or (node.hollow and (node.slots >= 0).any()):
            raise IntegrityError(f"the node of ids {node.ids[:8].tolist()} must not be hollow")
        if tree.takes(node) and not node.queued:
            raise IntegrityError(f"the node of ids {node.ids[:8].tolist()} can never be evicted")
        if node.parent is None or node.parent.children.get(int(node.ids[0])) is not node:
            raise IntegrityError(f"the node of ids {node.ids[:8].tolist()} is not its parent's child")
    _equal("tokens in the tree", tree.tokens, tokens)
    _equal("evictable tokens", tree.evictable, evictable)
    if locks:
        raise IntegrityError(f"{len(locks)} locked nodes are not in the tree")


def _check_states(rows: Rows, states: RecurrentStates, tree: PrefixTree, running: list[Sequence]) -> None:
    """IntegrityError unless each copy is free, a checkpoint of one node, or owned by one running sequence."""
    owners: dict[int, PrefixNode | Sequence] = {node.checkpoint: node for node in tree.nodes() if node.checkpoint >= 0}
    for sequence in running:
        owners |= dict.fromkeys(sequence.saves, sequence)
        if max(sequence.saves.values(), default=0) > rows.planned[sequence.row]:
            raise IntegrityError(f"sequence {sequence.rid} has a copy of a state that it has not reached")
        lacking = sequence.node is not None and sequence.node.parent is not None and sequence.node.checkpoint < 0
        if lacking and rows.unloaded[sequence.row]:
            raise IntegrityError(f"sequence {sequence.rid} cannot go on: the state after its prefix is gone")
    if owners != states.owners:
        raise IntegrityError(f"copies of states: {sorted(states.owners)} noted, {sorted(owners)} counted")
    if sorted([*owners, *states.pool.free_slots().tolist()]) != list(range(states.pool.total)):
        raise IntegrityError(f"copies of states: {states.pool.free} free and {len(owners)} used of {states.pool.total}")


def _check_prefix(rows: Rows, space: KvSpace, sequence: Sequence) -> None:
    """IntegrityError unless the positions that a sequence shares are those of its locked path."""
    row = sequence.row
    nodes = path(sequence.nodes[space.number]) if sequence.nodes else []
    slots = np.concatenate([EMPTY, *(node.slots for node in nodes)])
    ids = np.concatenate([EMPTY, *(node.ids for node in nodes)])
    treed, first = int(rows.treed[row]), int(rows.first[space.number, row])
    same = np.array_equal(slots[first:], rows.slots[space.number, row, first:treed])
    if not (same and np.array_equal(ids, rows.ids[row, :treed])):
        raise IntegrityError(f"sequence {sequence.rid} shares {treed} positions that are not the tree's")
    if not treed <= rows.confirmed[row] <= rows.planned[row] < rows.limit[row]:
        raise IntegrityError(f"sequence {sequence.rid}: treed <= confirmed <= planned < limit does not hold")


def _equal(what: str, noted: object, counted: object) -> None:
    if noted != counted:
        raise IntegrityError(f"{what}: {noted} noted, {counted} counted")
