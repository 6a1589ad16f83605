"""Shows operators what the scheduler does: the stage of each sequence, and KV memory as a map of fixed size.

It costs a few operations on whole arrays: about 5 ms with a million slots in use. It keeps no state between calls.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightllm_mp.messages import COMPILING, DECODE, IMAGES, OTHERS, PREFILL, QUEUED, UNKNOWN, SchedulerState
from lightllm_mp.scheduler.kv_memory import KvMemory
from lightllm_mp.scheduler.kv_space import KvSpace
from lightllm_mp.scheduler.rows import Rows
from lightllm_mp.scheduler.sequence import Sequence

CELL_BITS = 11
"""The map has at most 2 ** CELL_BITS cells. A cell is a power of two slots."""


class KvMap(NamedTuple):
    """Columns of uint8 [cells]; see SchedulerState."""

    cell_slots: int
    running: NDArray[np.uint8]
    kept: NDArray[np.uint8]
    owners: NDArray[np.uint8]


def scheduler_state(
    rows: Rows,
    kv: KvMemory,
    live: Mapping[int, Sequence],
    rids: bytes,
    *,
    lacking_images: Collection[int],
    compiling: Collection[int],
) -> SchedulerState:
    """The answer to Inspect. `lacking_images` and `compiling`: rids that the scheduler does not know yet."""
    asked = np.frombuffer(rids, "<i8").tolist()
    table = np.zeros((4, len(asked)), "<i4")
    for column, rid in enumerate(asked):
        if (sequence := live.get(rid)) is not None:
            table[:, column] = _progress(rows, sequence)
        else:
            table[0, column] = IMAGES if rid in lacking_images else COMPILING if rid in compiling else UNKNOWN
    found = kv_map(rows, kv.spaces[0], {rid: number for number, rid in enumerate(asked, 1)})
    return SchedulerState(
        rids,
        stages=table[0].astype(np.uint8).tobytes(),
        prompts=table[1].tobytes(),
        computed=table[2].tobytes(),
        cached=table[3].tobytes(),
        cell_slots=found.cell_slots,
        running=found.running.tobytes(),
        kept=found.kept.tobytes(),
        owners=found.owners.tobytes(),
        tree_tokens=kv.tree.tokens,
        tree_nodes=kv.tree.size,
    )


def _progress(rows: Rows, sequence: Sequence) -> tuple[int, int, int, int]:
    """Stage, prompt tokens, computed positions, and positions that came from the prefix tree."""
    if (row := sequence.row) < 0:
        return QUEUED, sequence.prompt_tokens, 0, 0
    computed = int(rows.confirmed[row])
    stage = PREFILL if computed < rows.target[row] else DECODE
    return stage, sequence.prompt_tokens, computed, min(int(rows.borrowed[0, row]), sequence.prompt_tokens)


def kv_map(rows: Rows, space: KvSpace, numbers: Mapping[int, int]) -> KvMap:
    """KV memory in cells. `numbers`: rid -> the owner number that stands for it; other rids become OTHERS."""
    total = space.pool.total
    shift = max(0, (total - 1).bit_length() - CELL_BITS)
    starts = np.arange(0, total, 1 << shift)
    sizes = np.diff(starts, append=total)
    held, owner = _held(rows, space, numbers)
    cells = held >> shift
    running = np.bincount(cells, minlength=len(starts))
    free = space.pool.free_in(starts)
    owners = np.zeros(len(starts), np.uint8)
    owners[cells] = owner
    return KvMap(1 << shift, _percent(running, sizes), _percent(sizes - free - running, sizes), owners)


def _held(rows: Rows, space: KvSpace, numbers: Mapping[int, int]) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """The slots that running sequences hold, each once, and for each the number of one holder."""
    parts, owners = [np.empty(0, np.int32)], [0]
    seen = set[int]()
    for row in rows.running().tolist():
        sequence = rows.sequences[row]
        assert sequence is not None
        number = numbers.get(sequence.rid, OTHERS)
        parts.append(space.held(row))
        owners.append(number)
        for node in space.tree.needed(sequence.nodes[space.number]) if sequence.nodes else ():
            if id(node) in seen:
                continue
            seen.add(id(node))
            parts.append(node.slots)
            owners.append(number)
    return np.concatenate(parts), np.repeat(np.array(owners, np.uint8), list(map(len, parts)))


def _percent(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.uint8]:
    return (-(-100 * part // np.maximum(whole, 1))).astype(np.uint8)
