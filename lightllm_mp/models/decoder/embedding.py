"""The ends of a decoder: token embedding, and the output head that gives logits.

The rows (vocabulary) of both matrices may be split over the ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightllm_mp.kernels.batch import Batch
from lightllm_mp.kernels.table import OpTable
from lightllm_mp.models.checkpoint.assembly import ModelWeights
from lightllm_mp.models.decoder.norms import read_norm
from lightllm_mp.models.parallel.group import RankGroup
from lightllm_mp.models.parallel.sharding import Shard
from lightllm_mp.models.spec import ModelSpec


class ImageRows(NamedTuple):
    """Part of an image: it replaces the embeddings of a step's tokens from row `first` on."""

    first: int
    rows: Tensor
    """[tokens, hidden] in the model's dtype, on any device. A copy from pinned host memory is asynchronous: the memory
    must not change before the step is done."""
    deep: Tensor | None = None
    """DeepStack: [levels, tokens, hidden]; plane i is added to the hidden states of these tokens after layer i."""

    def add_plane(self, level: int, hidden: Tensor) -> None:
        """Adds plane `level` to hidden states [tokens of the step, hidden] in place."""
        if self.deep is not None:
            plane = self.deep[level].to(hidden.device, non_blocking=True)
            hidden[self.first : self.first + plane.shape[0]].add_(plane)


def visible_keys(batch: Batch, images: Sequence[ImageRows]) -> Tensor:
    """`Batch.visible` of a step whose images are whole."""
    visible = batch.positions + 1
    for image in images:
        end = image.first + image.rows.shape[0]
        visible[image.first : end] = visible[end - 1]
    return visible


class Embedding:
    """Token embedding, with the scale, segments, learned positions and norm that the model has."""

    def __init__(self, weights: ModelWeights, spec: ModelSpec, ops: OpTable, group: RankGroup, shard: Shard) -> None:
        self.table, self._rows = weights.table("embed"), weights.shape("embed")[0]
        self._ops, self._group, self._start, self._vocab = ops, group, shard.vocab_start, spec.vocab
        self._types = weights.tensor("types") if spec.token_types else None
        self._positions = weights.tensor("positions") if spec.learned_positions else None
        self._norm = read_norm(weights, "embed_norm", spec) if spec.embed_norm else None
        self._scale = torch.tensor(spec.embed_scale, dtype=weights.dtype).item()  # rounded as upstream does

    def forward(self, ids: Tensor, batch: Batch, images: Sequence[ImageRows] = ()) -> Tensor:
        """ids [tokens] -> [tokens, hidden], newly allocated. Ids that `images` replace may lie outside the vocabulary.
        Image rows are not scaled. Every rank has all of them, so they are written after the sum over ranks."""
        if images:
            ids = ids.clamp(max=self._vocab - 1)
        segments, ids = (ids // self._vocab, ids % self._vocab) if self._types is not None else (None, ids)
        x = self._ops.embedding(ids, self.table) if self._group.size == 1 else self._summed(ids)
        if self._scale != 1.0:
            x = x.mul_(self._scale)
        for image in images:
            x[image.first : image.first + image.rows.shape[0]].copy_(image.rows, non_blocking=True)
        if self._types is not None and segments is not None:
            x = x.add_(self._ops.embedding(segments, self._types))
        if self._positions is not None:
            x = x.add_(self._ops.embedding(batch.positions, self._positions))
        return x if self._norm is None else self._ops.norm(x, self._norm)

    def _summed(self, ids: Tensor) -> Tensor:
        """The row of an id is on one rank; the others add zeros."""
        row = ids - self._start
        elsewhere = (row < 0) | (row >= self._rows)
        part = self._ops.embedding(row.clamp(0, self._rows - 1), self.table)
        return self._group.sum(part.masked_fill_(elsewhere.unsqueeze(1), 0.0))


class OutputHead:
    """The projection to the vocabulary."""

    def __init__(self, weights: ModelWeights, spec: ModelSpec, ops: OpTable, group: RankGroup) -> None:
        self._spec, self._ops, self._group = spec, ops, group
        self._linear = weights.linear("embed" if spec.tied else "head")

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, hidden] -> float32 [n, vocab]."""
        part = self._ops.linear_float(hidden, self._linear)
        logits = self._group.side_by_side(part)[:, : self._spec.vocab].contiguous()
        if self._spec.logit_scale != 1.0:
            logits = logits.mul_(self._spec.logit_scale)
        cap = self._spec.logit_softcap
        return logits.div_(cap).tanh_().mul_(cap) if cap else logits
