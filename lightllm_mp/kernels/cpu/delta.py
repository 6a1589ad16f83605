"""The gated delta rule in the C extension."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from lightllm_mp.kernels.batch import Batch, StateSave
from lightllm_mp.kernels.cpu.runtime import native
from lightllm_mp.kernels.cpu.values import TYPES, float_bits
from lightllm_mp.kernels.reference.gated_delta import gated_delta as reference_delta
from lightllm_mp.kernels.table import DeltaLayout, DeltaState, DeltaWeights

MAX_DIM, MAX_TAPS = 256, 8

_c = native()


def gated_delta(
    projected: Tensor, ba: Tensor, weights: DeltaWeights, state: DeltaState, batch: Batch, layout: DeltaLayout
) -> Tensor:
    taps = weights.conv.shape[0]
    if any(dim % 16 or dim > MAX_DIM for dim in (layout.key_dim, layout.value_dim)) or taps > MAX_TAPS:
        return reference_delta(projected, ba, weights, state, batch, layout)
    out = torch.empty((projected.shape[0], layout.value_size), dtype=projected.dtype)
    _c.delta(
        projected.data_ptr(),
        ba.data_ptr(),
        weights.conv.data_ptr(),
        weights.decay.data_ptr(),
        weights.dt_bias.data_ptr(),
        weights.norm.data_ptr(),
        state.recurrent.data_ptr(),
        state.conv.data_ptr(),
        out.data_ptr(),
        batch.seq_start.data_ptr(),
        batch.rows.data_ptr(),
        _saves(batch.state_saves).data_ptr(),
        batch.sequences,
        len(batch.state_saves),
        layout.key_heads,
        layout.value_heads,
        layout.key_dim,
        layout.value_dim,
        taps,
        float_bits(layout.norm_eps),
        TYPES[projected.dtype],
    )
    return out


@lru_cache(maxsize=4)
def _saves(saves: tuple[StateSave, ...]) -> Tensor:
    """The saves as int32 [saves, 3]; all layers of a step use the same tensor."""
    return torch.tensor(saves, dtype=torch.int32)
