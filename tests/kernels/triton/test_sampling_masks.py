"""Masks of constrained rows in the sampler for GPUs, against the one for CPUs."""

from __future__ import annotations

from dataclasses import replace as changed

import pytest
import torch
from msgspec.structs import replace

from lightllm_mp.messages import Sampling
from tests.engine.sampling.sampling_reference import choose, only
from tests.engine.sampling.test_torch_sampler import HEATS
from tests.kernels.triton.test_sampling import HOT, RULES, on_device, random_line, same, small_blocks

__all__ = ["small_blocks"]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("vocab", [100, 300])
def test_masks_choose_as_on_the_cpu(vocab: int) -> None:
    """Every rule with a mask, beside the same rules without."""
    plain = [random_line(rules, vocab, seed=seed) for seed, rules in enumerate(RULES.values())]
    guides = [tuple(range(number % 3, vocab, 3 + number % 5)) for number in range(len(plain))]
    lines = [changed(line, guide=guide) for line, guide in zip(plain, guides, strict=True)]
    both = [line for pair in zip(lines, plain, strict=True) for line in pair]
    choice = on_device(both)
    same(choice, choose(both))
    assert all(token in guide for token, guide in zip(choice.ids.tolist()[::2], guides, strict=True))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("heat", HEATS)
def test_only_ids_of_the_mask_are_sampled_under_every_rule(heat: str) -> None:
    lines = [
        changed(random_line(Sampling(seed=seed, **HEATS[heat]), 300, 5.0, seed), prompt=[9, 7, 240, 3], guide=(9, 240))
        for seed in range(6)
    ]
    choice = on_device(lines)
    assert set(choice.ids.tolist()) <= {9, 240}
    same(choice, choose(lines))


def test_a_mask_and_rules_that_leave_no_id_are_told() -> None:
    early, line = replace(HOT, min_new_tokens=9), random_line(HOT)
    lines = [
        changed(line, sampling=early, masked=(3,), guide=(3,)),
        changed(line, sampling=early, masked=(3,), guide=(3, 4)),
        changed(line, guide=()),
        changed(line, sampling=Sampling(seed=0, **only(7)), guide=(8,)),
        changed(line, sampling=replace(HOT, top_p=0.5), guide=()),
        line,
    ]
    choice = on_device(lines)
    assert torch.isneginf(choice.logprobs).tolist() == [True, False, True, True, True, False]
    assert choice.ids[1] == 4
    same(choice, choose(lines))
