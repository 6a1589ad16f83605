"""The attention half of a layer: fused projection, rotary embedding, KV write, attention, output projection."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightllm_mp.kernels.table import HeadLayout, OpTable, Prepared, Rotation
from lightllm_mp.models.batch import Batch, KVPool
from lightllm_mp.models.rotary import RotaryTable
from lightllm_mp.models.spec import ModelSpec


def head_layout(spec: ModelSpec) -> HeadLayout:
    return HeadLayout(
        heads=spec.heads,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        scale=spec.head_dim**-0.5,
        window=spec.window or 0,
    )


@dataclass(slots=True)
class Attention:
    """Self-attention of one layer over the KV pool."""

    ops: OpTable
    layer: int
    layout: HeadLayout
    rotary: RotaryTable
    qkv: Prepared
    o: Prepared

    def forward(self, x: Tensor, batch: Batch, kv: KVPool) -> Tensor:
        """[tokens, hidden] -> [tokens, hidden]; writes the new tokens' keys and values."""
        layer, rotation = kv.layers[self.layer], Rotation(self.rotary.cos, self.rotary.sin)
        qkv = self.ops.linear(x, self.qkv)
        q = self.ops.rotary_kv_write(qkv, rotation, layer, batch, self.layout, None)
        return self.ops.linear(self.ops.attention(q, layer, batch, self.layout), self.o)
