"""A random step of linear attention, for comparing ops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from lightllm_mp.kernels.batch import Batch, StateSave
from lightllm_mp.kernels.table import DeltaLayout, DeltaState, DeltaWeights

Op = Callable[[Tensor, Tensor, DeltaWeights, DeltaState, Batch, DeltaLayout], Tensor]
TAPS, PLACES = 4, 16


class DeltaStep:
    """Sequences with these numbers of new tokens in shuffled rows, with states of earlier tokens. `saves`: (sequence,
    tokens) of states to keep, in places from 8 on."""

    def __init__(
        self,
        queries: list[int],
        layout: DeltaLayout,
        dtype: torch.dtype,
        *,
        saves: tuple[tuple[int, int], ...] = (),
        device: str = "cpu",
    ) -> None:
        random = torch.Generator().manual_seed(len(queries))
        self.layout, self.queries, self.device = layout, queries, device

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return torch.randn(shape, generator=random) * scale

        tokens, heads = sum(queries), layout.value_heads
        self.projected = normal(tokens, layout.channels + layout.value_size).to(dtype).to(device)
        self.ba = normal(tokens, 2 * heads, scale=2.0).to(device)
        self.weights = DeltaWeights(
            normal(TAPS, layout.channels, scale=0.5).to(dtype).to(device),
            *(x.to(device) for x in (normal(heads).exp() * 0.2, normal(heads), normal(layout.value_dim) + 1)),
        )
        self.recurrent = normal(PLACES, heads, layout.key_dim, layout.value_dim, scale=0.3)
        self.conv = normal(PLACES, TAPS - 1, layout.channels).to(dtype)
        self.rows = torch.randperm(8, generator=random)[: len(queries)].tolist()
        self.saves = tuple(StateSave(sequence, count, 8 + i) for i, (sequence, count) in enumerate(saves))

    def state(self) -> DeltaState:
        """A copy of the states before the step."""
        return DeltaState(self.recurrent.to(self.device, copy=True), self.conv.to(self.device, copy=True))

    def run(self, op: Op, state: DeltaState) -> Tensor:
        """Runs the op over the step; it advances `state`."""
        return op(self.projected, self.ba, self.weights, state, self.batch(self.queries), self.layout)

    def run_in_chunks(self, op: Op, state: DeltaState, size: int) -> Tensor:
        """Runs every sequence alone in chunks, without saves."""
        out, first = [], 0
        for count, row in zip(self.queries, self.rows, strict=True):
            for start in range(0, count, size):
                part = slice(first + start, first + min(start + size, count))
                batch = self._batch([part.stop - part.start], [row])
                inputs = self.projected[part].contiguous(), self.ba[part].contiguous()
                out.append(op(*inputs, self.weights, state, batch, self.layout))
            first += count
        return torch.cat(out)

    def batch(self, queries: list[int]) -> Batch:
        return replace(self._batch(queries, self.rows), state_saves=self.saves)

    def _batch(self, queries: list[int], rows: list[int]) -> Batch:
        table = torch.zeros(PLACES, max(queries), dtype=torch.int32, device=self.device)
        return Batch.of(queries, queries, rows, table)
