"""Reported log probabilities: log-softmax of the model's raw logits, in float32.

They are computed before bias, penalties, temperature and truncation, as other engines do by default. NaN and values
below FLOOR (an id outside the vocabulary, a logit of minus infinity) are reported as FLOOR, which JSON can represent.
Only the logprob of a sampled id or of a prompt token stays NaN: it tells the scheduler that the row's logits are not
finite.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightllm_mp.engine.sampling.topk import largest

FLOOR = -9999.0

Alternatives = tuple[Tensor, Tensor]
"""The best ids, int64 [n, k], and their logprobs, float32 [n, k], best first."""


def logprobs_at(table: Tensor, ids: Tensor) -> Tensor:
    """float32 [n]: the entries of `table` [n, vocab] (a log-softmax) at `ids` int64 [n]."""
    return table.gather(-1, ids[:, None])[:, 0]


def known_logprobs_at(table: Tensor, ids: Tensor) -> Tensor:
    """Like `logprobs_at`; minus infinity for an id outside the vocabulary (such as an image placeholder)."""
    inside = (ids >= 0) & (ids < table.shape[-1])
    return logprobs_at(table, ids.where(inside, 0)).masked_fill_(~inside, float("-inf"))


def finite_or_nan(logprobs: Tensor, table: Tensor) -> Tensor:
    """`logprobs` [n] with FLOOR for smaller values, and NaN where the row of `table` [n, vocab], a log-softmax, comes
    from logits that are not finite."""
    return logprobs.clamp(min=FLOOR).where(table.amax(-1).isfinite(), float("nan"))


def alternatives(table: Tensor, count: int) -> Alternatives:
    """The `count` best ids of each row of `table` [n, vocab] and their logprobs; fewer if the vocabulary is smaller."""
    values, ids = largest(table, count)
    return ids, reportable(values)


def reportable(logprobs: Tensor) -> Tensor:
    """`logprobs` with FLOOR for NaN and smaller values."""
    return torch.fmax(logprobs, torch.full((), FLOOR, device=logprobs.device))
