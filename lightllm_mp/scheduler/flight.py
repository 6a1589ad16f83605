"""A plan that has been given out and not yet answered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True, eq=False)
class InFlightStep:
    """One entry per sequence of the plan, in plan order; the first `decodes` are decode tokens."""

    step: int
    rows: NDArray[np.int64]
    lives: NDArray[np.int64]
    """Whose entries these are: a row may have passed to another sequence when the answer comes."""
    ends: NDArray[np.int64]
    """First position after the computed ones; the sampled id belongs there."""
    sampled: NDArray[np.bool_]
    """Whose next id the answer holds."""
    decodes: int
    scored: NDArray[np.bool_]
    """Whose score the answer holds."""
