"""Finds the sequences of a step whose logits are not finite, so that they fail and no other does."""

from __future__ import annotations

import numpy as np

from lightllm_mp.errors import InvalidLogits
from lightllm_mp.messages import ErrorInfo, Rejected, StepDone
from lightllm_mp.scheduler.step_writer import InFlightStep

ERROR = ErrorInfo.of(InvalidLogits("the model's logits for this request are not finite numbers"))


def invalid_sequences(flight: InFlightStep, answer: StepDone) -> list[int]:
    """Indices into the step's sequences of those whose logprob or score is not finite. RuntimeError when the answer's
    columns do not match the step."""
    sampled, scored = np.flatnonzero(flight.sampled), np.flatnonzero(flight.scored)
    logprobs, scores = np.frombuffer(answer.logprobs, "<f4"), np.frombuffer(answer.scores, "<f4")
    ids = len(answer.ids) // 4
    if not ids == len(logprobs) == len(sampled):
        raise RuntimeError(f"step {answer.step} has {ids} ids for {len(sampled)} sequences")
    if len(scores) != len(scored):
        raise RuntimeError(f"step {answer.step} has {len(scores)} scores for {len(scored)} sequences")
    return [*sampled[~np.isfinite(logprobs)].tolist(), *scored[~np.isfinite(scores)].tolist()]


def failed(rid: int) -> Rejected:
    """The last answer to such a sequence."""
    return Rejected(rid, ERROR)
