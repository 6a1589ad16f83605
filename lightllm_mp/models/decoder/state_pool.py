"""The states of linear-attention layers: what a sequence's earlier tokens leave behind in place of keys and values."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lightllm_mp.kernels.table import DeltaState
from lightllm_mp.models.decoder.kv_pool import lazy_zeros
from lightllm_mp.models.spec import ModelSpec


class StatePool:
    """States of all linear-attention layers, by place.

    Places 0 .. rows - 1 hold the working states of running sequences, by table row; place `rows` is the spare row that
    padding writes to; places from `first_checkpoint` on hold `checkpoints` kept copies. A state is only good for the
    exact prefix it was made from. Who uses a place calls `clear` or `copy` first: memory of earlier sequences stays.
    """

    def __init__(
        self, spec: ModelSpec, rows: int, checkpoints: int, *, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        """`dtype`: the model's own, of the convolution's inputs; the recurrent state is float32."""
        delta = spec.delta
        assert delta is not None, "only models with linear attention have states"
        self.rows, self.checkpoints = rows, checkpoints
        self.spare_row = rows
        self.first_checkpoint = rows + 1
        places, layers = rows + 1 + checkpoints, len(spec.linear_layers)
        heads = (delta.value_heads, delta.key_dim, delta.value_dim)
        self.recurrent = lazy_zeros((layers, places, *heads), torch.float32, device)
        """[linear layers, places, value heads, key_dim, value_dim]"""
        self.conv = lazy_zeros((layers, places, delta.taps - 1, delta.channels), dtype, device)
        """[linear layers, places, taps - 1, channels]: the last inputs of the convolution, the oldest first."""
        self.layers = {layer: DeltaState(self.recurrent[i], self.conv[i]) for i, layer in enumerate(spec.linear_layers)}
        """By number of the layer in the model."""

    def clear(self, places: Sequence[int]) -> None:
        """Sets places to the state before the first token."""
        if places:
            at = self._indices(places)
            self.recurrent.index_fill_(1, at, 0.0)
            self.conv.index_fill_(1, at, 0.0)

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copies sources[i] to targets[i] in all layers. The targets differ from each other and from all sources."""
        for source, target in zip(sources, targets, strict=True):  # one by one: all at once take as much memory again
            self.recurrent[:, target].copy_(self.recurrent[:, source])
            self.conv[:, target].copy_(self.conv[:, source])

    def _indices(self, places: Sequence[int]) -> torch.Tensor:
        """int64, queued on the device without waiting for it."""
        at = torch.tensor(places, dtype=torch.int64)
        device = self.recurrent.device
        return at.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else at

    @staticmethod
    def place_bytes(spec: ModelSpec, dtype: torch.dtype) -> int:
        """Bytes of one place over all linear-attention layers; 0 for a model without."""
        recurrent, conv = spec.state_elements
        return recurrent * torch.float32.itemsize + conv * dtype.itemsize
