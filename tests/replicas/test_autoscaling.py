"""The number of replicas that the policy wants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from lightllm_mp.replicas.autoscaling import TOKENS, TokenPolicy


@dataclass
class Context:
    target_num_replicas: int
    aggregated_metrics: Any


def wanted(present: int, *work: float) -> int:
    found, state = TokenPolicy(100.0)(Context(present, {TOKENS: dict(enumerate(work))}))
    assert state == {}
    return found


@pytest.mark.parametrize(
    ("present", "work", "replicas"),
    [
        (1, (0.0,), 1),
        (1, (100.0,), 1),
        (1, (101.0,), 2),
        (1, (1000.0,), 10),
        (2, (500.0, 100.0), 6),
        (4, (90.0, 90.0, 90.0, 90.0), 4),  # three would be at the limit at once
        (4, (70.0, 70.0, 70.0, 10.0), 3),
        (4, (0.0, 0.0, 0.0, 0.0), 1),
        (3, (120.0,), 2),  # two replicas are starting or ending
    ],
)
def test_as_many_replicas_as_the_work_needs(present: int, work: tuple[float, ...], replicas: int):
    assert wanted(present, *work) == replicas


@pytest.mark.parametrize("metrics", [None, {}, {"other": {1: 5.0}}, {TOKENS: {}}])
def test_a_fleet_that_says_nothing_stays(metrics: Any):
    assert TokenPolicy(100.0)(Context(3, metrics)) == (3, {})


def test_a_steady_load_settles():
    for load in range(0, 2000, 37):
        present = 8
        for _ in range(5):
            present = wanted(present, *[load / present] * present)
        again = wanted(present, *[load / present] * present)
        assert again == present
        assert load <= 100.0 * present
