"""Finds the sequences of a step whose logits are not finite, so that they fail and no other does."""

from __future__ import annotations

import numpy as np

from lightllm_mp.errors import InvalidLogits
from lightllm_mp.messages import Close, ErrorInfo, Rejected, StepDone, Wire
from lightllm_mp.scheduler.rows import Rows
from lightllm_mp.scheduler.sequence import Sequence
from lightllm_mp.scheduler.step_writer import InFlightStep

ERROR = ErrorInfo.of(InvalidLogits("the model's logits for this request are not finite numbers"))


def invalid_sequences(rows: Rows, flight: InFlightStep, answer: StepDone, width: int) -> list[Sequence]:
    """The running sequences of the step whose logprob or row of numbers is not finite. RuntimeError when the answer's
    columns do not match the step."""
    sampled, pooled = np.flatnonzero(flight.sampled), np.flatnonzero(flight.pooled)
    logprobs, numbers = np.frombuffer(answer.logprobs, "<f4"), np.frombuffer(answer.pooled, "<f4")
    ids = len(answer.ids) // 4
    if not ids == len(logprobs) == len(sampled):
        raise RuntimeError(f"step {answer.step} has {ids} ids for {len(sampled)} sequences")
    if len(numbers) != len(pooled) * width:
        raise RuntimeError(f"step {answer.step} has {len(numbers)} numbers for {len(pooled)} sequences of {width}")
    lost = ~np.isfinite(numbers.reshape(len(pooled), width)).all(1)
    broken = [*sampled[~np.isfinite(logprobs)].tolist(), *pooled[lost].tolist()]
    running = (rows.sequences[flight.rows[i]] for i in broken if rows.life[flight.rows[i]] == flight.lives[i])
    return [sequence for sequence in running if sequence is not None]


def failure(sequence: Sequence) -> list[Wire]:
    """The last messages about such a sequence: to the detokenizer, which does not know pooled ones, and the front."""
    rejected = Rejected(sequence.rid, ERROR)
    return [rejected] if sequence.pooled else [Close(sequence.rid), rejected]
