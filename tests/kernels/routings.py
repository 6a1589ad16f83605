"""Routings of the kernel tests: (experts, routing)."""

from __future__ import annotations

import torch

from lightllm_mp.kernels.table import Routing


def correction(experts: int) -> torch.Tensor:
    """Changes most choices, in both directions."""
    return torch.arange(experts).mul(0.7).sin()


ROUTINGS = [
    (8, Routing(2, True)),
    (128, Routing(8, True)),
    (64, Routing(6, False)),
    (160, Routing(6, False, scale=16.0, groups=8, top_groups=3)),
    (60, Routing(4, True, groups=3, top_groups=1)),
    (7, Routing(7, False)),
    (1, Routing(1, True)),
    (64, Routing(6, True, sigmoid=True)),
    (64, Routing(4, False, scale=1.8, sigmoid=True, correction=correction(64))),
    (96, Routing(8, True, 2.5, groups=8, top_groups=4, group_best=2, sigmoid=True, correction=correction(96))),
    (60, Routing(3, True, groups=3, top_groups=2, group_best=2, sigmoid=True, correction=correction(60) - 9.0)),
]
NAMES = [
    f"{experts}-{how.top_k}-{how.groups}" + "-sigmoid" * how.sigmoid + "-corrected" * (how.correction is not None)
    for experts, how in ROUTINGS
]
