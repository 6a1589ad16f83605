"""Writes the scheduler's decisions for a step as the bytes of a plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightllm_mp.messages import NeedMasks
from lightllm_mp.plan import PlanBuilder
from lightllm_mp.scheduler.recurrent_states import NoStates
from lightllm_mp.scheduler.rows import Rows
from lightllm_mp.scheduler.sequence import Sequence


@dataclass(slots=True, eq=False)
class InFlightStep:
    """A plan that was given out and is not yet answered. Arrays have one entry per sequence of the plan, in order. The
    first `decodes` entries are decode tokens; a row with draft tokens has one entry per token, side by side."""

    step: int
    rows: NDArray[np.int64]
    lives: NDArray[np.int64]
    """`Rows.life` of the entries: when the answer comes, a row may belong to another sequence."""
    ends: NDArray[np.int64]
    """First position after the computed ones. The sampled id belongs there."""
    sampled: NDArray[np.bool_]
    """Whether the answer holds the sequence's next id."""
    decodes: int
    drafts: int
    """Number of draft tokens."""
    tokens: int
    """Number of tokens of the step."""
    pooled: NDArray[np.bool_]
    """Whether the answer holds the sequence's row of numbers."""

    def masks(self, rows: Rows) -> NeedMasks | None:
        """The request for the masks that the step needs before it can be answered. None: it needs none."""
        guided = self.sampled & rows.guided[self.rows]
        if not guided.any():
            return None
        taken = self.rows[guided]
        counts = (self.ends[guided] - rows.prompt[taken]).astype("<i4")
        return NeedMasks(self.step, rows.rid[taken].tobytes(), counts.tobytes())


def write_step(
    step: int,
    rows: Rows,
    states: NoStates,
    moved: Iterable[tuple[int, int, int]],
    decoding: np.ndarray,
    chunks: Mapping[Sequence, int],
) -> tuple[bytes, InFlightStep]:
    """Rows `decoding` compute their last planned position and those of their draft. Sequences in `chunks` compute their
    planned positions from the given start on. `moved`: (row, start, end) of positions whose slots have changed. Updates
    `Sequence.uploaded`."""
    builder = PlanBuilder(step)
    for row, start, end in moved:
        builder.write_slots(row, start, rows.slots[:, row, start:end])
    lines, positions = _lines(rows, decoding)
    if len(decoding):
        builder.write_slot_each(lines, positions, rows.slots[:, lines, positions])
        builder.add_each(lines, positions)
    for row in decoding[rows.drafted[decoding] > 0].tolist():
        start = int(rows.planned[row] - rows.drafted[row])
        builder.write_ids(row, start, rows.ids[row, start : rows.planned[row]])
    ordered = sorted(chunks, key=lambda sequence: _place(rows, sequence, chunks[sequence]))
    for sequence in ordered:
        _write_chunk(builder, rows, sequence, chunks[sequence])
    chunked = np.array([sequence.row for sequence in ordered], np.int64)
    states.write(builder, decoding, chunks)
    taken, ends = np.append(lines, chunked), np.append(positions + 1, rows.planned[chunked])
    pooled, whole = rows.pooled[taken], ends >= rows.target[taken]
    tokens = len(lines) + int(rows.planned[chunked].sum()) - sum(chunks.values())
    return builder.pack(), InFlightStep(
        step=step,
        rows=taken,
        lives=rows.life[taken],
        ends=ends,
        sampled=whole & ~pooled,
        decodes=len(lines),
        drafts=len(lines) - len(decoding),
        tokens=tokens,
        pooled=whole & pooled,
    )


def _lines(rows: Rows, decoding: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and position of each token that decoding rows compute."""
    drafted = rows.drafted[decoding]
    if not drafted.any():
        return decoding, rows.planned[decoding] - 1
    counts = 1 + drafted
    before = rows.planned[decoding] - np.cumsum(counts)
    lines = decoding.repeat(counts)
    return lines, np.arange(len(lines)) + before.repeat(counts)


def _place(rows: Rows, sequence: Sequence, start: int) -> tuple[bool, bool]:
    """Sort key: chunks of one token come first, next to the decode tokens; among equals, sampled ones come first."""
    end = rows.planned[sequence.row]
    return bool(end - start > 1), bool(end < rows.target[sequence.row])


def _write_chunk(builder: PlanBuilder, rows: Rows, sequence: Sequence, start: int) -> None:
    row = sequence.row
    end, target = int(rows.planned[row]), int(rows.target[row])
    if not sequence.uploaded:
        shift = sequence.images.shift if sequence.images is not None else 0
        builder.setup(
            row,
            sequence.prompt_tokens,
            sequence.sampling,
            sequence.masked_ids,
            sequence.rope_class,
            shift,
            guided=sequence.guided,
        )
    first = start if sequence.uploaded else 0
    builder.write_slots(row, first, rows.slots[:, row, first:end])
    # Upload one id more than is computed: the prompt logprob at the chunk's last position needs it.
    upto = min(end + 1, target)
    if sequence.uploaded < upto:
        builder.write_ids(row, sequence.uploaded, rows.ids[row, sequence.uploaded : upto])
    sequence.uploaded = upto
    whole = end == target
    builder.add(row, start, end - start, sample=whole and not sequence.pooled, pool=whole and sequence.pooled)
    if sequence.images is not None:
        for part in sequence.images.parts(start, end):
            builder.add_image(row, *part)
        if len(rotary := sequence.images.rotary_rows(start, end)):
            builder.write_rotary(row, start, rotary)
