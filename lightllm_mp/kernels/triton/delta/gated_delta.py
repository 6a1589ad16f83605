"""The op `gated_delta`: sequences with one new token by the recurrence, the others in chunks."""

from __future__ import annotations

from torch import Tensor

from lightllm_mp.kernels.batch import Batch
from lightllm_mp.kernels.table import DeltaLayout, DeltaState, DeltaWeights
from lightllm_mp.kernels.triton.delta.chunks import chunks_of
from lightllm_mp.kernels.triton.delta.convolve import convolve
from lightllm_mp.kernels.triton.delta.decode import decode
from lightllm_mp.kernels.triton.delta.prefill import prefill


def gated_delta(
    projected: Tensor, ba: Tensor, weights: DeltaWeights, state: DeltaState, batch: Batch, layout: DeltaLayout
) -> Tensor:
    out = projected.new_empty((projected.shape[0], layout.value_size))
    chunks = None if batch.max_query == 1 and not batch.state_saves else chunks_of(batch)
    mixed = convolve(projected, weights, state, batch, layout, None if chunks is None else chunks.token_rows)
    if chunks is None or chunks.apart:
        decode(mixed, projected, ba, out, weights, state, batch, layout)
    if chunks is not None:
        prefill(mixed, projected, ba, out, weights, state, batch, layout, chunks)
    return out
