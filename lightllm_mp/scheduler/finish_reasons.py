"""Finish reasons of the sequences that got a token in a step."""

from __future__ import annotations

from collections.abc import Sequence as Series

import numpy as np

from lightllm_mp.messages import LENGTH, RUNNING, STOP
from lightllm_mp.plan import Ints
from lightllm_mp.scheduler.rows import Rows

Top = tuple[tuple[int, bytes, bytes], ...]


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
    """The alternatives of the kept samples, each with its index among the kept samples."""
    if not top:
        return ()
    index = np.cumsum(keep) - 1
    return tuple((int(index[sample]), ids, logprobs) for sample, ids, logprobs in top if keep[sample])
