"""The autoscaling policy of a fleet: enough replicas that each has at most a target number of tokens to compute.

Each replica reports the tokens that it expects to compute for its requests, queued and running. Ray Serve averages the
reports over a time window, calls the policy, and applies bounds and delays to the policy's answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

TOKENS = "expected_tokens"
"""The name of the metric in which replicas report their work."""
SLACK = 0.8
"""A fleet shrinks only to a size at which its work is this share of the target, so that it does not grow again."""


class ScalingContext(Protocol):
    """The part of Serve's `AutoscalingContext` that the policy reads."""

    @property
    def target_num_replicas(self) -> int: ...
    @property
    def aggregated_metrics(self) -> Mapping[str, Mapping[Any, float]] | None: ...


class TokenPolicy:
    """`target_tokens`: the most expected work of a replica, in tokens."""

    def __init__(self, target_tokens: float) -> None:
        self._target = target_tokens

    def __call__(self, context: ScalingContext) -> tuple[int, dict[str, Any]]:
        """The number of replicas, and an empty state. Without reports the number stays."""
        reports = (context.aggregated_metrics or {}).get(TOKENS, {})
        present = context.target_num_replicas
        if not reports:
            return present, {}
        work = sum(reports.values())
        wanted = max(1, math.ceil(work / self._target))
        if wanted < present:
            wanted = min(present, max(1, math.ceil(work / (SLACK * self._target))))
        return wanted, {}
