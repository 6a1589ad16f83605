"""Logprobs of a prompt's tokens if logits are not finite."""

from __future__ import annotations

import pytest
import torch

from lightllm_mp.engine.sampling.logprobs import FLOOR, finite_or_nan, known_logprobs_at


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 3])
def test_a_row_that_is_not_finite_has_no_logprob(broken: float, place: int) -> None:
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    whole = torch.log_softmax(logits, -1)
    logits[1, place] = broken
    table = torch.log_softmax(logits, -1)
    for ids in ([0, 3, 4], [0, 4, 4], [0, 99, 4]):  # the broken id, another one, and an id outside the vocabulary
        column = torch.tensor(ids)
        found = finite_or_nan(known_logprobs_at(table, column), table)
        assert found.isnan().tolist() == [False, True, False]
        assert torch.equal(found[[0, 2]], whole[[0, 2], column[[0, 2]]])


def test_what_cannot_be_sampled_has_the_lowest_logprob() -> None:
    logits = torch.tensor([[0.0, 1.0, -float("inf")]] * 2)
    table = torch.log_softmax(logits, -1)
    assert finite_or_nan(known_logprobs_at(table, torch.tensor([2, 7])), table).tolist() == [FLOOR, FLOOR]
