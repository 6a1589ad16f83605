"""Draws ids from scores with noise: the largest sum of a score and its Gumbel noise (the Gumbel-max trick).

A draw is the same to the last bit whichever route finds it, among candidates or over the whole row, because the cut is
a function of the row's values and the noise one of the id. Equal sums go to the smallest id.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightllm_mp.engine.noise import id_words, log_exponential
from lightllm_mp.engine.ranking import falling, first_argmax, largest
from lightllm_mp.engine.truncation import Limits, contains, least_kept, whole_mass

CANDIDATES = 512
"""Rows with top-k or top-p are first cut among this many best ids, and among the whole row where that fails."""

NOISE_ELEMENTS = 1 << 18
"""Noise of whole rows is made in blocks of about this many ids, small enough for the cache of a core."""

NEGATIVE_INFINITY = float("-inf")


@dataclass(slots=True)
class Field:
    """n rows to draw from."""

    scores: Tensor
    """float32 [n, vocab]: logits over temperature, the largest of each row 0."""
    keys: Tensor
    """int32 [n, 2]: see noise.py."""
    limits: Limits

    def of(self, rows: Tensor) -> Field:
        return Field(self.scores[rows], self.keys[rows], self.limits.of(rows))


def draw_whole(field: Field) -> Tensor:
    """int64 [n]: draws by min-p alone."""
    return _draw_above(field, field.limits.log_min_p)


def draw_truncated(field: Field, *, top_p_alone: bool) -> Tensor:
    """int64 [n]: draws by all limits. `top_p_alone`: some row has top-p and no top-k."""
    scores, limits = field.scores, field.limits
    top, ids = largest(scores, CANDIDATES)
    mass = whole_mass(scores) if top_p_alone else torch.ones_like(limits.top_p)
    cut = least_kept(top, mass, limits)
    drawn = _draw_among(top, ids, cut, field)
    if top.shape[-1] < scores.shape[-1]:
        missed = (~contains(top, cut, limits)).nonzero()[:, 0]
        if len(missed):
            rest = field.of(missed)
            drawn[missed] = _draw_above(rest, least_kept(falling(rest.scores), mass[missed], rest.limits))
    return drawn


def _draw_among(top: Tensor, ids: Tensor, cut: Tensor, field: Field) -> Tensor:
    """int64 [n]: draws among the candidates `ids` [n, c] with scores `top` not below `cut` [n, 1]."""
    vocab = field.scores.shape[-1]
    noise = log_exponential(id_words(vocab, top.device)[ids], field.keys)
    noisy = torch.sub(top, noise, out=noise).masked_fill_(top < cut, NEGATIVE_INFINITY)
    best = noisy == noisy.amax(-1, keepdim=True)
    return ids.where(best, vocab - 1).amin(-1)


def _draw_above(field: Field, cut: Tensor) -> Tensor:
    """int64 [n]: draws over whole rows, among scores not below `cut` [n, 1]."""
    vocab = field.scores.shape[-1]
    words, block, drawn = id_words(vocab, cut.device), max(1, NOISE_ELEMENTS // vocab), []
    for scores, keys, least in zip(field.scores.split(block), field.keys.split(block), cut.split(block), strict=True):
        noise = log_exponential(words, keys)
        drawn.append(first_argmax(torch.sub(scores, noise, out=noise).masked_fill_(scores < least, NEGATIVE_INFINITY)))
    return torch.cat(drawn)
