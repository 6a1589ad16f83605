"""Alibi slopes against BLOOM's formula, and their split over ranks and padding."""

from __future__ import annotations

import math

import pytest
import torch

from lightllm_mp.models.decoder.attention import alibi_slopes


def upstream(heads: int) -> list[float]:
    """`build_alibi_tensor` of transformers' BLOOM."""
    power = 2 ** math.floor(math.log2(heads))
    base = 2 ** (-(2 ** -(math.log2(power) - 3)))
    slopes = [base**i for i in range(1, power + 1)]
    if power != heads:
        extra = 2 ** (-(2 ** -(math.log2(2 * power) - 3)))
        slopes += [extra**i for i in range(1, 1 + 2 * min(power, heads - power), 2)]
    return slopes


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 6, 8, 12, 20, 32, 40, 52, 112])
def test_slopes(heads):
    assert alibi_slopes(heads, 0, heads) == pytest.approx(upstream(heads), rel=1e-12)


def test_known_values():
    assert alibi_slopes(8, 0, 8) == tuple(2.0**-i for i in range(1, 9))
    assert alibi_slopes(6, 4, 2) == (2.0**-1, 2.0**-3)


@pytest.mark.parametrize(("heads", "ranks"), [(8, 2), (40, 4), (5, 2), (6, 4)])
def test_ranks_together_have_all_and_zeros_pad(heads, ranks):
    share = -(-heads // ranks)
    parts = [alibi_slopes(heads, rank * share, share) for rank in range(ranks)]
    assert all(len(part) == share for part in parts)
    together = [slope for part in parts for slope in part]
    assert together[:heads] == list(alibi_slopes(heads, 0, heads))
    assert together[heads:] == [0.0] * (share * ranks - heads)


def test_transformers_agrees():
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom")
    alibi = bloom.build_alibi_tensor(torch.ones(1, 2, dtype=torch.long), 12, torch.float32)
    assert alibi[:, 0, 1].tolist() == pytest.approx(alibi_slopes(12, 0, 12), rel=1e-5)
