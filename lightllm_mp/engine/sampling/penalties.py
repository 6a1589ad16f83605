"""Changes logits before sampling, in place: bias, penalties, banned and allowed ids."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NEGATIVE_INFINITY = float("-inf")


@dataclass(slots=True)
class History:
    """The tokens that the penalties of n rows count, and the values of the penalties."""

    tokens: Tensor
    """int64 [n, width]"""
    counted: Tensor
    """bool [n, width]: whether each token counts."""
    presence: Tensor
    """float32 [n, 1]; so are the next two."""
    frequency: Tensor
    repetition: Tensor


def add_bias(logits: Tensor, lines: Tensor, ids: Tensor, values: Tensor) -> None:
    """logits[lines[i], ids[i]] += values[i]; values of an id named twice add up."""
    logits.index_put_((lines, ids), values, accumulate=True)


def ban(logits: Tensor, lines: Tensor, ids: Tensor) -> None:
    """logits[lines[i], ids[i]] = minus infinity."""
    logits[lines, ids] = NEGATIVE_INFINITY


def allow_only(logits: Tensor, masked: Tensor, lines: Tensor, ids: Tensor) -> None:
    """Minus infinity everywhere in the rows `masked`, except at [lines[i], ids[i]]."""
    kept = logits[lines, ids]
    logits.index_fill_(0, masked, NEGATIVE_INFINITY)
    logits[lines, ids] = kept


class Penalizer:
    """Applies penalties only at ids that occurred: the cost grows with the history, not with the vocabulary."""

    def __init__(self, vocab: int, device: torch.device) -> None:
        self.vocab = vocab
        self._counts = torch.zeros((0, vocab), dtype=torch.float32, device=device)

    def apply(self, logits: Tensor, lines: Tensor, history: History) -> None:
        """Penalises each id that occurred c > 0 times, in the rows `lines` (int64 [n]) of `logits` [any, vocab].

        Repetition (as in Hugging Face's RepetitionPenaltyLogitsProcessor and CTRL, arXiv:1909.05858): a positive logit
        is divided by it, any other is multiplied. Then `frequency * c + presence` is subtracted (the OpenAI
        definition)."""
        tokens = history.tokens
        counted = history.counted & (tokens >= 0) & (tokens < self.vocab)
        tokens = tokens.where(counted, 0)  # id 0 gains no count, and gets the value of the formula
        seen = self._count(tokens, counted)
        at = tokens + lines[:, None] * self.vocab
        value = logits.take(at)
        scaled = torch.where(value > 0, value / history.repetition, value * history.repetition)
        scaled -= history.frequency * seen + history.presence
        logits.put_(at, torch.where(seen > 0, scaled, value))

    def _count(self, tokens: Tensor, counted: Tensor) -> Tensor:
        """float32 [n, width]: how often each token occurs among the counted tokens of its row."""
        n = tokens.shape[0]
        if n > self._counts.shape[0]:
            self._counts = self._counts.new_zeros((n, self.vocab))
        table = self._counts[:n]
        table.scatter_add_(1, tokens, counted.to(torch.float32))
        seen = table.gather(1, tokens)
        table.scatter_(1, tokens, 0.0)
        return seen
