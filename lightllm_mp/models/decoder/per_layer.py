"""Per-layer embeddings, and what ends a layer behind its MLP (Gemma 4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightllm_mp.kernels.table import Norm, OpTable, Prepared
from lightllm_mp.models.checkpoint.assembly import ModelWeights
from lightllm_mp.models.decoder.norms import read_norm
from lightllm_mp.models.spec import Activation, ModelSpec


class PerLayerInputs:
    """Makes the inputs of all layers: a table's row of the token, and a projection of its embedding."""

    def __init__(self, weights: ModelWeights, spec: ModelSpec, ops: OpTable) -> None:
        assert spec.per_layer is not None
        self._ops, self._spec, self._width = ops, spec, spec.per_layer.width
        self._image_id = spec.per_layer.image_id
        self._table, self._project = weights.table("per_layer_embed"), weights.linear("per_layer_project")
        self._norm = read_norm(weights, "per_layer_norm", spec)
        self._scale = torch.tensor(self._width**0.5, dtype=weights.dtype).item()  # rounded as upstream does

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        """ids [tokens], of images beyond the vocabulary, and embeddings x [tokens, hidden], images included
        -> [layers, tokens, width]."""
        spec = self._spec
        known = ids.masked_fill(ids >= spec.vocab, self._image_id)
        rows = self._ops.embedding(known, self._table).mul_(self._scale).view(-1, self._width)
        of_x = self._ops.linear(x, self._project).mul_(spec.hidden**-0.5).view(-1, self._width)
        both = self._ops.norm(of_x, self._norm).add_(rows).mul_(2**-0.5)
        return both.view(-1, spec.layers, self._width).transpose(0, 1).contiguous()


@dataclass(slots=True)
class PerLayerBlock:
    """norm(project(activation(gate x) * input)), added to x."""

    ops: OpTable
    activation: Activation
    gate: Prepared
    project: Prepared
    norm: Norm

    def forward(self, x: Tensor, inputs: Tensor) -> Tensor:
        """x [tokens, hidden], inputs [tokens, width] -> [tokens, hidden]."""
        gated = self.ops.activate(self.ops.linear(x, self.gate), self.activation).mul_(inputs)
        return self.ops.norm(self.ops.linear(gated, self.project), self.norm)


@dataclass(slots=True)
class LayerEnd:
    """Behind the MLP: the per-layer embedding, if any, then a factor on the whole."""

    block: PerLayerBlock | None
    scale: Tensor
    """[1]"""

    def forward(self, x: Tensor, inputs: Tensor | None) -> Tensor:
        """x [tokens, hidden], changed in place."""
        if self.block is not None:
            assert inputs is not None
            x = x.add_(self.block.forward(x, inputs))
        return x.mul_(self.scale)


def read_layer_end(weights: ModelWeights, at: str, spec: ModelSpec, ops: OpTable) -> LayerEnd | None:
    """What ends the layer of the parameters at `at`; None where the model has nothing there."""
    if not spec.layer_scale:
        return None
    if spec.per_layer is None:
        return LayerEnd(None, weights.tensor(at + "out_scale"))
    block = PerLayerBlock(
        ops,
        spec.activation,
        weights.linear(at + "per_layer_gate"),
        weights.linear(at + "per_layer_out"),
        Norm(weights.tensor(at + "per_layer_out_norm"), spec.norm_eps),
    )
    return LayerEnd(block, weights.tensor(at + "out_scale"))
