"""Takes a step's sampled tokens into the rows, and finds the sequences that they finish."""

from __future__ import annotations

from collections.abc import Sequence as Series
from dataclasses import dataclass

import numpy as np

from lightllm_mp.messages import LENGTH, RUNNING, STOP, Advance, StepDone, Tokens, Wire
from lightllm_mp.plan import Ints
from lightllm_mp.scheduler.rows import Rows
from lightllm_mp.scheduler.step_writer import InFlightStep

Top = tuple[tuple[int, bytes, bytes], ...]


@dataclass(slots=True)
class TakenTokens:
    """The tokens that the sequences in `rows` got from a step."""

    rows: np.ndarray
    finish: np.ndarray
    """uint8 finish reasons."""
    events: list[Wire]


def taken_tokens(
    columns: Rows, eos_ids: Series[int], flight: InFlightStep, alive: np.ndarray, answer: StepDone
) -> TakenTokens | None:
    """Write the ids of a step's `alive` sequences into the rows. None if there are none."""
    ids, logprobs = np.frombuffer(answer.ids, "<i4"), np.frombuffer(answer.logprobs, "<f4")
    keep = alive[flight.sampled]
    wanted = alive & flight.sampled
    rows, ends = flight.rows[wanted], flight.ends[wanted]
    if not len(rows):
        return None
    ids = ids[keep]
    columns.ids[rows, ends] = ids
    rids, finish = columns.rid[rows], finish_reasons(columns, eos_ids, rows, ends, ids)
    top, scores = renumber(answer.top, keep), logprobs[keep].tobytes()
    events: list[Wire] = [Tokens(rids.tobytes(), ids.tobytes(), scores, finish.tobytes(), top)]
    if (goes_on := columns.guided[rows] & (finish == RUNNING)).any():
        events.append(Advance(rids[goes_on].tobytes(), ids[goes_on].tobytes()))
    return TakenTokens(rows, finish, events)


def finish_reasons(columns: Rows, eos_ids: Series[int], rows: np.ndarray, ends: np.ndarray, ids: Ints) -> np.ndarray:
    """uint8 [n] finish reasons of rows that got `ids` at positions `ends`. An end-of-sequence or stop id gives STOP
    even if it is the last id that the limit allows."""
    finish = np.where(ends + 1 == columns.limit[rows], np.uint8(LENGTH), np.uint8(RUNNING))
    stopped = np.zeros(len(rows), np.bool_)
    for eos in eos_ids:
        stopped |= ids == eos
    stopped &= columns.heeds_eos[rows]
    asking = np.flatnonzero(columns.has_stop_ids[rows])
    for index, row, token in zip(asking.tolist(), rows[asking].tolist(), ids[asking].tolist(), strict=True):
        if token in columns.stop_ids[row]:
            stopped[index] = True
    finish[stopped] = STOP
    return finish


def renumber(top: Top, keep: np.ndarray) -> Top:
    """The alternatives of the kept samples, each with its index among these."""
    if not top:
        return ()
    index = np.cumsum(keep) - 1
    return tuple((int(index[sample]), ids, logprobs) for sample, ids, logprobs in top if keep[sample])
