"""How many replicas a fleet needs: as many as hold their work to a number of tokens each.

A replica reports the tokens that it expects to compute for the requests that it has, queued and running. Serve takes
the mean of some time, calls the policy, and applies bounds and delays to what it answers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

TOKENS = "expected_tokens"
"""The name under which replicas report their work."""
SLACK = 0.8
"""A fleet shrinks only to a size at which its work is this share of what it may be, so that it does not grow again."""


class ScalingContext(Protocol):
    """What the policy reads of Serve's `AutoscalingContext`."""

    @property
    def target_num_replicas(self) -> int: ...
    @property
    def aggregated_metrics(self) -> Mapping[str, Mapping[Any, float]] | None: ...


class TokenPolicy:
    """`target_tokens`: expected work of a replica."""

    def __init__(self, target_tokens: float) -> None:
        self._target = target_tokens

    def __call__(self, context: ScalingContext) -> tuple[int, dict[str, Any]]:
        """The number of replicas, and no state. Where no replica reports, it stays."""
        reports = (context.aggregated_metrics or {}).get(TOKENS, {})
        present = context.target_num_replicas
        if not reports:
            return present, {}
        work = sum(reports.values())
        wanted = max(1, math.ceil(work / self._target))
        if wanted < present:
            wanted = min(present, max(1, math.ceil(work / (SLACK * self._target))))
        return wanted, {}
