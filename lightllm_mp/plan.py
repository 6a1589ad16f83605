"""The step plan: one int32 buffer that describes a step. All ranks receive it, and one upload can carry it.

The worker keeps two tables with one row per running sequence: `token_table[row, position]` with token ids and
`slot_table[row, position]` with KV slots. A plan first edits the tables, then names the sequences of the step:

    header   16 words   MAGIC, VERSION, step, words, then the section sizes below
    setups   SETUP_WORDS each, then their variable tails (bias ids, bias values, masked ids,
             allowed ids)
    ids      runs (row, position, count) and the ids themselves          -> token_table
    slots    runs (row, position, count) and the slots themselves        -> slot_table
             If layers with windows have slots of their own, the slots of the other layers, of all runs, come first;
             the slots of the layers with windows follow, and go to a second table
    seqs     (row, start, count, flags): compute positions start .. start + count - 1 of the row. Their ids are in
             token_table, either from `ids` or sampled by an earlier step, so a plan never waits for an id. A row with
             draft tokens has one entry per position, side by side, each with a count of 1
    images   (row, position, count, offset low, offset high, first, rows): positions position .. position + count - 1,
             which the step computes, take rows first .. first + count - 1 of the `rows` embeddings at that offset
             (bytes) of image memory instead of the embeddings of their ids
    rotary   runs (row, position, count) and three numbers per position: for positions that the step computes, their
             rows in the rotary tables by component, where these are not `rotary_shift` + position
    states   (row, position, place): the recurrent state of a row after its first `position` tokens. If position is the
             start of the row's sequence, the state is loaded from `place` before the step (NO_STATE: it is the state
             before the first token); otherwise the step computes it and saves it there. Entries of a row are in
             ascending order. A place is an index of the StatePool: the working states of all rows come first, then a
             spare one, then saved copies

With SAMPLE set, the step samples the next id from the logits of the sequence's last position and writes it to
`token_table[row, start + count]`. With POOL set, the prompt ends here and the answer has its row of numbers (embeddings
and scores). Sequences of one token (decode) come first, chunks after them. Floats are sent as their bit patterns. All
numbers are little-endian.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from lightllm_mp.messages import Sampling

Ints = NDArray[np.int32]

MAGIC, VERSION, HEADER_WORDS = 0x4C4D5031, 5, 16
SECTIONS = 11
IMAGE_WORDS = 7
NOTHING = np.empty(0, "<i4")
SAMPLE, POOL = 1, 2
NO_STATE = -1
PENALIZE_PROMPT, GUIDED = 1, 2
"""Bits of a setup's flags. The samples of a GUIDED row need a mask from the guide actor."""

ROWS_BYTES = 16 << 20
"""Most bytes of pooled rows in one step's answer."""
MAX_ROW = 30_000
"""Most numbers in a pooled row, so that it fits a record of the lane to the front."""

SETUP_DTYPE = np.dtype(
    [
        ("row", "<i4"),
        ("flags", "<i4"),
        ("prompt_tokens", "<i4"),
        ("seed", "<i8"),
        ("temperature", "<f4"),
        ("top_k", "<i4"),
        ("top_p", "<f4"),
        ("min_p", "<f4"),
        ("presence_penalty", "<f4"),
        ("frequency_penalty", "<f4"),
        ("repetition_penalty", "<f4"),
        ("min_new_tokens", "<i4"),
        ("top_logprobs", "<i4"),
        ("prompt_logprobs", "<i4"),
        ("biases", "<i4"),
        ("masked", "<i4"),
        ("rope_class", "<i4"),
        ("rotary_shift", "<i4"),
        ("allowed", "<i4"),
    ]
)
"""One row's sampling rules, the rotary length class of its prompt, and the shift: a position plus the shift is its row
in the class's rotary tables. `biases`, `masked` and `allowed` count the entries of its tail."""
SETUP_WORDS = SETUP_DTYPE.itemsize // 4


@dataclass(slots=True)
class RowSetup:
    """The rules with which a row starts a new sequence. `rules` is one SETUP_DTYPE record."""

    rules: np.void
    bias_ids: Ints
    bias_values: NDArray[np.float32]
    masked_ids: Ints
    """Ids that may not be sampled before min_new_tokens are produced."""
    allowed_ids: Ints
    """Only these ids may be sampled; empty: all ids."""


@dataclass(slots=True)
class PositionRuns:
    """Values of positions. `runs`: int32 [n, 3] of (row, position, count). `values`: int32 [sum of counts]; of slots,
    [spaces * sum of counts]."""

    runs: Ints
    values: Ints


@dataclass(slots=True)
class Plan:
    step: int
    setups: list[RowSetup]
    ids: PositionRuns
    slots: PositionRuns
    seqs: Ints
    """int32 [n, 4] of (row, start, count, flags)"""
    images: Ints
    """int32 [n, IMAGE_WORDS]"""
    rotary: PositionRuns
    """`values` int32 [sum of counts, 3]"""
    states: Ints
    """int32 [n, 3] of (row, position, place)"""


class PlanBuilder:
    """Collects one step and packs it. The `add` and `write` methods take integer numpy arrays."""

    def __init__(self, step: int) -> None:
        self.step = step
        self._setups: list[np.ndarray] = []
        self._tails: list[np.ndarray] = []
        self._id_runs: list[np.ndarray] = []
        self._ids: list[np.ndarray] = []
        self._slot_runs: list[np.ndarray] = []
        self._slots: list[np.ndarray] = []
        self._seqs: list[np.ndarray] = []
        self._images: list[np.ndarray] = []
        self._rotary_runs: list[np.ndarray] = []
        self._rotary: list[np.ndarray] = []
        self._states: list[np.ndarray] = []

    def setup(
        self,
        row: int,
        prompt_tokens: int,
        sampling: Sampling,
        masked_ids: Sequence[int] = (),
        rope_class: int = 0,
        rotary_shift: int = 0,
        *,
        guided: bool = False,
    ) -> None:
        """Give row `row` the rules of a new sequence whose first `prompt_tokens` positions are its prompt."""
        bias_ids = np.frombuffer(sampling.bias_ids, "<i4")
        masked, allowed = np.asarray(masked_ids, "<i4"), np.frombuffer(sampling.allowed_ids, "<i4")
        record = np.zeros(1, SETUP_DTYPE)
        for name in SETUP_DTYPE.names or ():
            if hasattr(sampling, name) and name != "seed":
                record[name] = getattr(sampling, name)
        record["row"], record["prompt_tokens"], record["rope_class"] = row, prompt_tokens, rope_class
        record["rotary_shift"] = rotary_shift
        record["flags"] = (PENALIZE_PROMPT if sampling.penalize_prompt else 0) | (GUIDED if guided else 0)
        record["seed"] = np.uint64(sampling.seed & 0xFFFF_FFFF_FFFF_FFFF).astype(np.int64)
        record["biases"], record["masked"], record["allowed"] = len(bias_ids), len(masked), len(allowed)
        self._setups.append(record.view("<i4"))
        self._tails += [bias_ids, np.frombuffer(sampling.bias_values, "<i4"), masked, allowed]

    def write_ids(self, row: int, position: int, ids: np.ndarray) -> None:
        self._id_runs.append(np.array((row, position, len(ids)), "<i4"))
        self._ids.append(ids)

    def write_slots(self, row: int, position: int, slots: np.ndarray) -> None:
        """`slots` [n], or [spaces, n]."""
        self._slot_runs.append(np.array((row, position, slots.shape[-1]), "<i4"))
        self._slots.append(slots)

    def write_slot_each(self, rows: np.ndarray, positions: np.ndarray, slots: np.ndarray) -> None:
        """Write one slot per space for each of many rows (decode): `slots` [n], or [spaces, n]."""
        self._slot_runs.append(_columns(rows, positions, 1))
        self._slots.append(slots)

    def add(self, row: int, start: int, count: int, *, sample: bool, pool: bool = False) -> None:
        """Add a chunk of one sequence."""
        flags = (SAMPLE if sample else 0) | (POOL if pool else 0)
        self._seqs.append(np.array((row, start, count, flags), "<i4"))

    def add_each(self, rows: np.ndarray, starts: np.ndarray) -> None:
        """Add one sampled token for each of many sequences (decode); call before `add`."""
        self._seqs.append(_columns(rows, starts, 1, SAMPLE))

    def add_image(self, row: int, position: int, count: int, offset: int, first: int, rows: int) -> None:
        """Let `count` positions of a chunk take image rows, from `first` on, of the `rows` at `offset` (bytes)."""
        low, high = np.array([offset], "<i8").view("<i4").tolist()
        self._images.append(np.array((row, position, count, low, high, first, rows), "<i4"))

    def write_rotary(self, row: int, position: int, lines: np.ndarray) -> None:
        """Give a chunk's positions their rows in the rotary tables, an integer array [positions, 3]."""
        self._rotary_runs.append(np.array((row, position, len(lines)), "<i4"))
        self._rotary.append(lines.ravel())

    def state(self, row: int, position: int, place: int) -> None:
        """Load the recurrent state of a row whose sequence starts at `position`, or save it if the step gets there."""
        self._states.append(np.array((row, position, place), "<i4"))

    def pack(self) -> bytes:
        setups, tails = _flat(self._setups), _flat(self._tails)
        id_runs, ids = _flat(self._id_runs), _flat(self._ids)
        slot_runs, slots, seqs = _flat(self._slot_runs), _flat(self._slots), _flat(self._seqs)
        images, rotary_runs, rotary = _flat(self._images), _flat(self._rotary_runs), _flat(self._rotary)
        states = _flat(self._states)
        sections = (setups, tails, id_runs, ids, slot_runs, slots, seqs, images, rotary_runs, rotary, states)
        header = np.zeros(HEADER_WORDS, "<i4")
        words = HEADER_WORDS + sum(map(len, sections))
        header[: 4 + len(sections)] = (MAGIC, VERSION, self.step, words, *map(len, sections))
        return np.concatenate((header, *sections)).tobytes()


def unpack(data: bytes | bytearray) -> Plan:
    """Read a packed plan as views into `data`, without copies. ValueError if it is not a plan of this version."""
    words = np.frombuffer(data, "<i4")
    if len(words) < HEADER_WORDS or words[0] != MAGIC or words[1] != VERSION or words[3] != len(words):
        raise ValueError("not a step plan of this version")
    sizes = words[4 : 4 + SECTIONS].tolist()
    ends = [*accumulate(sizes, initial=HEADER_WORDS)]
    if min(sizes) < 0 or ends[-1] != len(words):
        raise ValueError("a step plan whose sections do not add up")
    parts = [words[start:end] for start, end in pairwise(ends)]
    setups, tails, id_runs, ids, slot_runs, slots, seqs, images, rotary_runs, rotary, states = parts
    return Plan(
        step=int(words[2]),
        setups=_row_setups(setups.view(SETUP_DTYPE), tails),
        ids=PositionRuns(id_runs.reshape(-1, 3), ids),
        slots=PositionRuns(slot_runs.reshape(-1, 3), slots),
        seqs=seqs.reshape(-1, 4),
        images=images.reshape(-1, IMAGE_WORDS),
        rotary=PositionRuns(rotary_runs.reshape(-1, 3), rotary.reshape(-1, 3)),
        states=states.reshape(-1, 3),
    )


def _row_setups(records: np.ndarray, tails: Ints) -> list[RowSetup]:
    found, at = [], 0
    for rules in records:
        biases, masked, allowed = (int(rules[name]) for name in ("biases", "masked", "allowed"))
        if min(biases, masked, allowed) < 0:
            raise ValueError("a step plan with a tail of negative length")
        ends = [*accumulate((biases, biases, masked, allowed), initial=at)]
        ids, values, masked_ids, allowed_ids = (tails[start:end] for start, end in pairwise(ends))
        found.append(RowSetup(rules, ids, values.view("<f4"), masked_ids, allowed_ids))
        at = ends[-1]
    if at != len(tails):
        raise ValueError("a step plan whose tails do not add up")
    return found


def _columns(*columns: np.ndarray | int) -> np.ndarray:
    """Flatten a table of these columns row by row. A column is an array, or one number for all rows."""
    length = next(len(column) for column in columns if isinstance(column, np.ndarray))
    table = np.empty((length, len(columns)), "<i4")
    for index, column in enumerate(columns):
        table[:, index] = column
    return table.ravel()


def _flat(parts: list[np.ndarray]) -> np.ndarray:
    """Join the parts along their last axis into one flat array of words."""
    return np.concatenate(parts, axis=-1).astype("<i4", copy=False).ravel() if parts else NOTHING
