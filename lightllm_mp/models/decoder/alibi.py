"""Slopes of attention with linear biases (Press et al., arXiv 2108.12409)."""

from __future__ import annotations


def alibi_slopes(all_heads: int, first: int, count: int) -> tuple[float, ...]:
    """Slopes of `count` query heads from number `first`, of a model with `all_heads`; 0 for heads that pad the model.

    A number of heads that is no power of two takes the slopes of the power below, then every other slope of the power
    above, as BLOOM and Baichuan do.
    """
    power = 1 << (all_heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * i / power) for i in range(1, power + 1)]
    slopes += [2.0 ** (-4.0 * i / power) for i in range(1, 2 * (all_heads - power), 2)]
    slopes += [0.0] * (first + count - all_heads)
    return tuple(slopes[first : first + count])
