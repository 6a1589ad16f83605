"""Top-k, top-p and min-p as one number per row, the cut: the least score that may still be sampled.

Scores are logits divided by the temperature, shifted so that a row's largest score is 0. Every rule keeps an upper part
of the row, so all rules together are a cut. All ids whose score equals the cut are kept. So a cut is a function of the
row's values alone; it does not matter which of equal entries a selection finds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

INFINITY = float("inf")


@dataclass(slots=True)
class TruncationRules:
    """The rules of n rows, each [n, 1]."""

    top_k: Tensor
    """int64; 0: off."""
    top_p: Tensor
    """float32; 1 or more: off."""
    log_min_p: Tensor
    """float32: log of min_p; minus infinity: off."""

    def of(self, rows: Tensor) -> TruncationRules:
        return TruncationRules(self.top_k[rows], self.top_p[rows], self.log_min_p[rows])


def whole_mass(scores: Tensor) -> Tensor:
    """float32 [n, 1]: sum of exp(score) over each row, whose largest score is 0.

    Uses the softmax kernel, which computes each row alone. A plain sum over a single row is split over threads, so its
    last bits would depend on the number of rows.
    """
    return torch.softmax(scores, -1).amax(-1, keepdim=True).reciprocal_()


def least_kept(top: Tensor, mass: Tensor, limits: TruncationRules) -> Tensor:
    """float32 [n, 1]: the cut, from the largest scores `top` [n, c] in falling order and the `mass` of whole rows.

    First top-k. Then top-p keeps, of the remaining ids, those before which less than `top_p` of their mass lies (at
    least one). Then min-p drops ids less likely than `min_p` times the likeliest. If `c` is less than the vocabulary,
    the cut is right if `top_k <= c` and the last score in `top` lies below the cut (see `contains`).
    """
    last = limits.top_k.clamp(1, top.shape[-1]) - 1
    by_k = torch.where(limits.top_k > 0, top.gather(-1, last), -INFINITY)
    kept = (top >= by_k) & (top > -INFINITY)
    weight = top.exp().mul_(kept)
    before = weight.cumsum(-1)
    left = torch.where(limits.top_k > 0, before[:, -1:], mass)
    before -= weight
    kept &= (before < left * limits.top_p) | (limits.top_p >= 1.0)
    by_p = top.masked_fill(~kept, INFINITY).amin(-1, keepdim=True).clamp_(max=0.0)
    return torch.maximum(by_p, limits.log_min_p)


def contains(top: Tensor, cut: Tensor, limits: TruncationRules) -> Tensor:
    """bool [n]: whether no id outside `top` reaches the cut that `least_kept` found from `top`."""
    return ((top[:, -1:] < cut) & (limits.top_k <= top.shape[-1]))[:, 0]
