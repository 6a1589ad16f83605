"""Draws ids with the Gumbel-max trick: the id with the largest sum of score and Gumbel noise wins.

A draw among candidates and a draw over the whole row give the same bits, because the cut is a function of the row's
values and the noise is a function of the id. Of equal sums the smallest id wins.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightllm_mp.engine.sampling.noise import id_words, log_exponential
from lightllm_mp.engine.sampling.topk import falling, first_argmax, largest
from lightllm_mp.engine.sampling.truncation import TruncationRules, contains, least_kept, whole_mass

WIDTHS = (512, 8192)
"""Rows with top-k or top-p are cut among this many best ids, then among more, then among the whole row, as long as an
id outside the candidates may have to be kept."""

NOISE_ELEMENTS = 1 << 17
"""Noise of whole rows is computed in blocks of about this many ids, which fit into a core's cache."""

NEGATIVE_INFINITY = float("-inf")


@dataclass(slots=True)
class GumbelRows:
    """The n rows to draw from."""

    scores: Tensor
    """float32 [n, vocab]: logits over temperature, shifted so that each row's largest score is 0."""
    keys: Tensor
    """int32 [n, 2]: see noise.py."""
    limits: TruncationRules

    def of(self, rows: Tensor) -> GumbelRows:
        return GumbelRows(self.scores[rows], self.keys[rows], self.limits.of(rows))


def draw_whole(field: GumbelRows, *, min_p: bool) -> Tensor:
    """int64 [n]: draws with min-p only. `min_p`: whether a row has it."""
    return _draw_above(field, field.limits.log_min_p if min_p else None)


def draw_truncated(field: GumbelRows, *, top_p_alone: bool) -> Tensor:
    """int64 [n]: draws with all limits. `top_p_alone`: whether a row has top-p without top-k."""
    mass = whole_mass(field.scores) if top_p_alone else torch.ones_like(field.limits.top_p)
    return _draw_cut(field, mass, WIDTHS)


def _draw_cut(field: GumbelRows, mass: Tensor, widths: tuple[int, ...]) -> Tensor:
    """int64 [n]: draws with all limits, first among `widths[0]` candidates."""
    if not widths:
        return _draw_above(field, least_kept(falling(field.scores), mass, field.limits))
    top, ids = largest(field.scores, widths[0])
    cut = least_kept(top, mass, field.limits)
    drawn = _draw_among(top, ids, cut, field)
    if top.shape[-1] < field.scores.shape[-1]:
        missed = (~contains(top, cut, field.limits)).nonzero()[:, 0]
        if missed.shape[0]:
            drawn[missed] = _draw_cut(field.of(missed), mass[missed], widths[1:])
    return drawn


def _draw_among(top: Tensor, ids: Tensor, cut: Tensor, field: GumbelRows) -> Tensor:
    """int64 [n]: draws among the candidates `ids` [n, c] with scores `top` not below `cut` [n, 1]."""
    vocab = field.scores.shape[-1]
    noise = log_exponential(id_words(vocab, top.device)[ids], field.keys)
    noisy = torch.sub(top, noise, out=noise).masked_fill_(top < cut, NEGATIVE_INFINITY)
    best = noisy == noisy.amax(-1, keepdim=True)
    return ids.where(best, vocab - 1).amin(-1)


def _draw_above(field: GumbelRows, cut: Tensor | None) -> Tensor:
    """int64 [n]: draws over whole rows among scores not below `cut` [n, 1] (None: all)."""
    vocab = field.scores.shape[-1]
    words, block = id_words(vocab, field.scores.device), max(1, NOISE_ELEMENTS // vocab)
    drawn = []
    for start in range(0, field.scores.shape[0], block):
        part = slice(start, start + block)
        noise = log_exponential(words, field.keys[part])
        noisy = torch.sub(field.scores[part], noise, out=noise)
        if cut is not None:
            noisy.masked_fill_(field.scores[part] < cut[part], NEGATIVE_INFINITY)
        drawn.append(first_argmax(noisy))
    return torch.cat(drawn)
