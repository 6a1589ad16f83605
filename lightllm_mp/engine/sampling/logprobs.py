"""Log probabilities that are reported: log-softmax of the model's own logits, in float32.

They are taken before bias, penalties, temperature and truncation, so they say what the model thought of a token,
whatever the rules of the request made of it; this is also what the common engines report by default. A value that is
no number, or below FLOOR (an id outside the vocabulary, a logit of minus infinity), is reported as FLOOR, which JSON
can carry.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightllm_mp.engine.sampling.topk import largest

FLOOR = -9999.0

Alternatives = tuple[Tensor, Tensor]
"""The best ids, int64 [n, k], and their logprobs, float32 [n, k], best first."""


def logprobs_at(table: Tensor, ids: Tensor) -> Tensor:
    """float32 [n]: the entries of `table` [n, vocab] (a log-softmax) at `ids` int64 [n], as they are."""
    return table.gather(-1, ids[:, None])[:, 0]


def known_logprobs_at(table: Tensor, ids: Tensor) -> Tensor:
    """Like `logprobs_at`; an id outside the vocabulary (a placeholder for an image, say) has minus infinity."""
    inside = (ids >= 0) & (ids < table.shape[-1])
    return logprobs_at(table, ids.where(inside, 0)).masked_fill_(~inside, float("-inf"))


def alternatives(table: Tensor, count: int) -> Alternatives:
    """The `count` best ids of each row of `table` [n, vocab] and their logprobs; fewer if the vocabulary is smaller."""
    values, ids = largest(table, count)
    return ids, reportable(values)


def reportable(logprobs: Tensor) -> Tensor:
    """`logprobs` with FLOOR for what is smaller or no number."""
    return torch.fmax(logprobs, torch.full((), FLOOR, device=logprobs.device))
