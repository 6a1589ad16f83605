"""Finds the sequences whose logits are not finite, so that only these fail."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lightllm_mp.errors import InvalidGuide, InvalidLogits
from lightllm_mp.messages import Close, ErrorInfo, Rejected, StepDone, Wire
from lightllm_mp.scheduler.rows import Rows
from lightllm_mp.scheduler.sequence import Sequence
from lightllm_mp.scheduler.step_writer import InFlightStep

NOT_FINITE = ErrorInfo.of(InvalidLogits("the model's logits for this request are not finite numbers"))
DEAD_END = ErrorInfo.of(
    InvalidGuide("no token is possible here: the constraint is too complex, or contradicts other rules of the request")
)


def check_columns(flight: InFlightStep, answer: StepDone, width: int) -> None:
    """RuntimeError when the answer's columns do not match the step. `width`: numbers in a pooled row."""
    sampled, pooled = int(flight.sampled.sum()), int(flight.pooled.sum())
    ids, numbers = len(answer.ids) // 4, len(answer.pooled) // 4
    if not ids == len(answer.logprobs) // 4 == sampled:
        raise RuntimeError(f"step {answer.step} has {ids} ids for {sampled} sequences")
    if numbers != pooled * width:
        raise RuntimeError(f"step {answer.step} has {numbers} numbers for {pooled} sequences of {width}")


def failed_sequences(
    rows: Rows, flight: InFlightStep, kept: NDArray[np.bool_], answer: StepDone, width: int
) -> list[tuple[Sequence, ErrorInfo]]:
    """The running sequences of the step with a logprob or a pooled row that is not finite, each with its error. `kept`
    says which entries count."""
    sampled, pooled = np.flatnonzero(flight.sampled), np.flatnonzero(flight.pooled)
    logprobs, numbers = np.frombuffer(answer.logprobs, "<f4"), np.frombuffer(answer.pooled, "<f4")
    lost = ~np.isfinite(numbers.reshape(len(pooled), width)).all(1)
    ended = np.isneginf(logprobs)
    broken = dict.fromkeys(sampled[ended].tolist(), DEAD_END)
    for index, column, _, _ in answer.prompt:
        if not np.isfinite(np.frombuffer(column, "<f4")).all():
            broken[index] = NOT_FINITE
    broken |= dict.fromkeys(sampled[~np.isfinite(logprobs) & ~ended].tolist(), NOT_FINITE)
    broken |= dict.fromkeys(pooled[lost].tolist(), NOT_FINITE)
    found = []
    for index, error in broken.items():
        row = flight.rows[index]
        sequence = rows.sequences[row] if kept[index] and rows.life[row] == flight.lives[index] else None
        if sequence is not None:
            found.append((sequence, error))
    return found


def failure(sequence: Sequence, error: ErrorInfo) -> list[Wire]:
    """The last messages of such a sequence: to the detokenizer (which does not know pooled ones) and to the front."""
    rejected = Rejected(sequence.rid, error)
    return [rejected] if sequence.pooled else [Close(sequence.rid), rejected]
